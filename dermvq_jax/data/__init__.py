"""From images to batches: datasets, splits, augmentation, the pipeline.

`datasets` has one module for each dataset of images and their base class.
`prepare` writes a dataset to files, `prepared` reads it back, `codes` stores
what a VQ-VAE made of it, and `pipeline` turns records into batches.
"""

from absl import logging


def _is_worth_logging(record) -> bool:
  """Returns False for the messages of TFDS that are of no use to the user."""
  if 'tensorflow_datasets' not in record.pathname:
    return True
  is_info = record.levelno <= logging.converter.STANDARD_INFO
  return not (is_info or str(record.msg).startswith('OpenCV is not installed'))


# On import, so that it holds in grain's worker processes too.
logging.get_absl_logger().addFilter(_is_worth_logging)
