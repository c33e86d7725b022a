"""Datasets, the input pipeline and augmentation."""

from absl import logging


def _is_worth_logging(record) -> bool:
  """Drops what TFDS says about itself; the user can do nothing with it."""
  if 'tensorflow_datasets' not in record.pathname:
    return True
  is_info = record.levelno <= logging.converter.STANDARD_INFO
  return not (is_info or str(record.msg).startswith('OpenCV is not installed'))


# At import, so that grain's worker processes have it as well.
logging.get_absl_logger().addFilter(_is_worth_logging)
