r"""Does synthetic data help? A classifier, trained with and without it.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
python -m experiments.usefulness --workdir=W --data_dir=DATA
python -m experiments.usefulness --workdir=W --run=RUN --guidance_scale=2
python -m experiments.usefulness --workdir=W --table
```

The classifier of configs/classifier.py is trained on

- `real`: real images as they are; its loss knows the class shares (logit
  adjustment);
- `oversampled`: real images, each class repeated to be as frequent as the most
  frequent one;
- `real_and_synthetic`: real images, each class filled up with samples instead;
- `synthetic`: as many samples of each class, no real image;
- `oversampled_and_synthetic`: both of these together, for twice the steps, so
  that each real image is seen as often as when they are repeated alone. The
  others have the same number of steps: where samples are many, each real image
  is seen less often.

and tested on held-out real lesions: balanced accuracy and recall per class,
with 95% bootstrap intervals over lesions and seeds of the classifier. The
differences between the ways are paired: the same lesions, the same seeds. Each
fold has one generator and one set of samples: how far another one would change
the result is not in the intervals.

No training sees a held-out image. By default lesions are divided into 5 folds,
and each fold is held out once: from the classifier, and from a VQ-VAE and a
prior of its own, trained on the other four (a tenth of which chooses their best
step). That is five times `dermvq train` of both. `--run=RUN` takes a trained
run instead: the classifier learns from its training split and is tested on its
test split. That is much faster, and judges on a tenth of the lesions, with
intervals three times as wide.

`--guidance_scale` is that of the samples; choose it by `dermvq evaluate`, on
val. With folds, val of that run is in some of them: guidance, like the defaults
of this package on HAM10000, was then chosen with an eye on images that are held
out later, if not trained on them, which favours the samples.

Lesions must be known: images of `dermamnist`, or of an `image_folder` without
groups, count as a lesion each, and what is held out is not new.

A full run is 75 classifiers of 1,250 or 2,500 steps and 5 generators: three and
a half hours on 2 CPU cores; with `--run` it is 15 classifiers. `--ways` trains
and shows some of them.

Start it again when it was stopped: it goes on where it was.
"""
