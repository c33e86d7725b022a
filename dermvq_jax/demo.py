"""The whole way once, small: what `make demo` runs."""

from absl import logging
from etils import epath

from dermvq_jax import (
  config_files,
  encode,
  errors,
  report,
  train,
  workdirs,
)
from dermvq_jax.data import prepare


def run(workdir: epath.PathLike, size: str = 'demo'):
  """Prepares, trains both phases, samples and draws; resumes what it finds.

  Args:
    workdir: folder for everything.
    size: argument of both configs, 'demo' or 'smoke'.
  """
  workdir = epath.Path(workdir).expanduser()
  if workdirs.is_remote(workdir):
    raise errors.UserError(f'the demo can not run in {workdir}; give a folder')
  steps = 5

  def tell(number: int, text: str):
    logging.info('\n== %d/%d %s', number, steps, text)

  config = config_files.load(f'vqvae:{size}')
  tell(1, 'Generating images')
  prepare.run(config.dataset, workdirs.data_dir(workdir))
  tell(2, 'Training the VQ-VAE')
  train.run(config, workdir)
  tell(3, 'Turning images into codes')
  encode.run(workdir)
  tell(4, 'Training the prior')
  train.run(config_files.load(f'prior:{size}'), workdir)
  tell(5, 'Making the report: new images, reconstructions, curves')
  report.run(workdir)
  logging.info(
    '\nDone. Open %s in a browser: new images of each class, and how they were '
    'made.\nMore new images: dermvq sample --workdir=%s --out=samples',
    workdir / 'report' / 'index.html',
    workdir,
  )
