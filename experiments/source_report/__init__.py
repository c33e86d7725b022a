r"""The source report's protocol, repeated, and its claims, tested.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
python -m experiments.source_report --workdir=W --data_dir=DATA
python -m experiments.source_report --workdir=W --data_dir=DATA \
  --dataset=synthetic_dermoscopy/64
python -m experiments.source_report --workdir=W --page
```

The report trains a VQ-VAE on dermoscopic images for 10 epochs and a Gated
PixelCNN on its codes for 20. `protocol.py` defines the trainings, `claims.py`
has the rules that decide the claims, and `page.py` draws the report's figures 3
to 9. `W/index.html` shows the report's statements beside these results. If the
study was interrupted, run the command again: it resumes. `--page` writes the
page from the trainings that are finished.
"""
