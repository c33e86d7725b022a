"""The whole way once, small: what `make demo` runs."""

from absl import logging
from etils import epath

from dermvq_jax import config_files, errors
from dermvq_jax.data import prepare
from dermvq_jax.evaluation import evaluate
from dermvq_jax.generation import encode
from dermvq_jax.reporting import report
from dermvq_jax.runs import workdirs
from dermvq_jax.training import loop


def run(workdir: epath.PathLike, size: str = 'demo'):
  """Prepares, trains, evaluates, samples and draws; resumes what it finds.

  Args:
    workdir: folder for everything.
    size: argument of the configs, 'demo' or 'smoke'.
  """
  workdir = epath.Path(workdir).expanduser()
  if workdirs.is_remote(workdir):
    raise errors.UserError(f'the demo can not run in {workdir}; give a folder')
  steps = 7

  def tell(number: int, text: str):
    logging.info('\n== %d/%d %s', number, steps, text)

  config = config_files.load(f'vqvae:{size}')
  tell(1, 'Generating images')
  prepare.run(config.dataset, workdirs.data_dir(workdir))
  tell(2, 'Training the VQ-VAE')
  loop.run(config, workdir)
  tell(3, 'Turning images into codes')
  prior = config_files.load(f'prior:{size}')
  encode.run(workdir, copies=prior.copies)
  tell(4, 'Training the prior')
  loop.run(prior, workdir)
  tell(5, 'Training a classifier, the judge of new images')
  loop.run(config_files.load(f'classifier:{size}'), workdir)
  tell(6, 'Evaluating: are new images like those of the data, are they copies?')
  if 'memorisation' in (evaluate.current_result(workdir) or {}):
    logging.info('It is already evaluated.')
  else:
    evaluate.run(workdir)
  tell(7, 'Making the report: new images, reconstructions, curves')
  report.run(workdir)
  logging.info(
    '\nDone. Open %s in a browser: new images of each class, and how they were '
    'made.\nMore new images: dermvq sample --workdir=%s --out=samples',
    workdir / 'report' / 'index.html',
    workdir,
  )
