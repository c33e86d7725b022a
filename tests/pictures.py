"""Reads and writes image files for tests."""

import csv

import numpy as np
from PIL import Image


def read_csv(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def read_png(path):
  with Image.open(path) as image:
    assert image.format == 'PNG' and image.mode == 'RGB'
    return np.asarray(image)


def names_in(folder):
  return sorted(p.name for p in folder.iterdir())


def files_in(folder):
  """Relative paths."""
  files = (p for p in folder.rglob('*') if p.is_file())
  return sorted(str(p.relative_to(folder)) for p in files)


def sample_file(label, number=0):
  return f'{label}/synthetic_{label}_{number:05d}.png'


def save_image(path, width=40, height=30):
  rng = np.random.default_rng(len(str(path)))
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)
  return path
