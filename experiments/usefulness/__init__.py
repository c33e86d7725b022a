r"""Does synthetic data help? A classifier, trained with and without it.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
python -m experiments.usefulness --workdir=W --data_dir=DATA
python -m experiments.usefulness --workdir=W --run=RUN --guidance_scale=2
python -m experiments.usefulness --workdir=W --table
```

The classifier of configs/classifier.py is trained in five ways:

- `real`: on real images as they are; its loss knows the class shares (logit
  adjustment);
- `oversampled`: on real images; each class is repeated until it is as large as
  the largest one;
- `real_and_synthetic`: on real images; each class is topped up with samples
  instead;
- `synthetic`: on equally many samples of each class, without real images;
- `oversampled_and_synthetic`: on the images of `oversampled` and `synthetic`
  together, for twice as many steps, so each real image is seen as often as in
  `oversampled`. All other ways have the same number of steps, so the more
  samples there are, the less often each real image is seen.

It is tested on held-out real lesions. The table has balanced accuracy and the
recall of each class, with 95% bootstrap intervals over lesions and seeds of the
classifier. Differences between the ways are paired: same lesions, same seeds.
Each fold has one generator and one set of samples; the intervals do not show
how much another generator would change the result.

No training sees a held-out image. By default lesions are divided into 5 folds,
and each fold is held out once. Its classifiers, VQ-VAE and prior are trained on
the other four folds (a tenth of these lesions chooses the best step). So the
study runs `dermvq train` five times for the VQ-VAE and the prior. With
`--run=RUN` it takes a trained run instead: the classifiers train on its
training split and are tested on its test split. That is much faster, but it
tests on a tenth of the lesions, and intervals are three times as wide.

`--guidance_scale` is the guidance scale of the samples; choose it with `dermvq
evaluate`, on the validation split. With folds, the validation images of that
run are among the images that are held out later. The guidance scale, like the
defaults of this package for HAM10000, was then chosen with knowledge of some
held-out images, although nothing was trained on them. This favours the samples.

Lesions must be known. In `dermamnist`, or in an `image_folder` without groups,
each image counts as a separate lesion, so held-out lesions may not be new.

A full study is 75 classifiers of 1,250 or 2,500 steps and 5 generators: three
and a half hours on 2 CPU cores; with `--run` it is 15 classifiers. `--ways`
selects the ways to train and to show.

If the study was interrupted, run the command again: it resumes.
"""
