r"""Does synthetic data help? A classifier, trained with and without it.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
python -m experiments.usefulness --workdir=W --data_dir=DATA
python -m experiments.usefulness --workdir=W --run=RUN --guidance_scale=2
python -m experiments.usefulness --workdir=W --table
```

The classifier of configs/classifier.py is trained, for the same number of steps
each, on

- `real`: real images as they are; its loss knows the class shares (logit
  adjustment);
- `oversampled`: real images, each class repeated to be as frequent as the most
  frequent one;
- `real_and_synthetic`: real images, each class filled up with samples instead;
- `synthetic`: as many samples of each class, no real image;

and tested on held-out real lesions: balanced accuracy and recall per class,
with 95% bootstrap intervals over lesions and seeds. The differences between the
ways are paired: the same lesions, the same seeds.

No held-out image has any part in what it is used to judge. By default lesions
are divided into 5 folds, and each fold is held out once: from the classifier,
and from a VQ-VAE and a prior of its own, trained on the other four (a tenth of
which chooses their best step). That is five times `dermvq train` of both.
`--run=RUN` takes a trained run instead: the classifier learns from its training
split, and its val and test splits are held out together (val chose the best
step of the VQ-VAE and the prior, and nothing else). That is much faster, and
judges on a fifth of the lesions, with intervals twice as wide.

A full run is 60 classifiers of 1,250 steps and 5 generators: three hours on 2
CPU cores; with `--run` it is 12 classifiers. `--guidance_scale` is that of the
samples; choose it by `dermvq evaluate`, not by what comes out here.

Start it again when it was stopped: it goes on where it was.
"""
