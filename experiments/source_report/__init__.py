r"""The source report's protocol, run again, and its claims put to the test.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
python -m experiments.source_report --workdir=W --data_dir=DATA
python -m experiments.source_report --workdir=W --data_dir=DATA \
  --dataset=synthetic_dermoscopy/64
python -m experiments.source_report --workdir=W --page
```

The report trains a VQ-VAE on dermoscopic images for 10 epochs and a Gated
PixelCNN on its codes for 20. `protocol.py` says what is trained, `claims.py`
by which rules its claims are judged, `page.py` draws its figures 3 to 9.
`W/index.html` has both side by side. Start the command again when it was
stopped: it goes on where it was. `--page` draws what there is so far.
"""
