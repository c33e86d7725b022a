"""Runs every step once, on small generated data, as `make demo` does."""

from absl import logging
from etils import epath

from dermvq_jax import config_files, errors, files
from dermvq_jax.data import prepare
from dermvq_jax.evaluation import evaluate
from dermvq_jax.generation import encode
from dermvq_jax.reporting import report
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop

# How often each training image is encoded, by the size of the demo.
_COPIES = {'demo': 8, 'smoke': 1}
# Folder, in that of the demo, of the run whose decoder is then trained on.
_FIRST = 'squared_error'


def demo(workdir: epath.PathLike, size: str = 'demo'):
  """Prepares, trains, evaluates, samples and reports; skips finished steps.

  Args:
    workdir: the folder for everything.
    size: argument of the configs, 'demo' or 'smoke'.

  Raises:
    UserError: the folder is not local, or it holds another run.
  """
  if files.is_remote(workdir):
    raise errors.UserError(
      f'the demo cannot run in {workdir}; give a local folder'
    )
  run = run_lib.Run(workdir)
  if run.vqvae.started and 'start_digest' not in run.vqvae.config:
    raise errors.UserError(
      f'{workdir} holds another run; give a new folder as --workdir'
    )
  data_dir = run.workdir / 'data'
  first = run_lib.Run(run.workdir / _FIRST, data_dir)
  steps = 8

  def announce(number: int, text: str):
    logging.info('\n== %d/%d %s', number, steps, text)

  vqvae = config_files.load(f'vqvae:{size}')
  vqvae.data_dir = str(data_dir)
  announce(1, 'Generating images')
  prepare.run(vqvae.dataset, data_dir)
  announce(2, 'Training the VQ-VAE')
  loop.train(vqvae, first)
  announce(3, 'Turning images into codes')
  encode.encode(first, _COPIES[size])
  announce(4, 'Training the prior')
  loop.train(config_files.load(f'prior:{size}'), first)
  announce(5, 'Training the decoder on, until its images are sharp')
  sharpen = config_files.load(f'vqvae:{size}+sharpen')
  sharpen.update({'start_from': str(first.workdir), 'data_dir': str(data_dir)})
  loop.train(sharpen, run)
  announce(6, 'Training a classifier that judges new images')
  loop.train(config_files.load(f'classifier:{size}'), run)
  announce(7, 'Evaluating: do new images look real, and are they copies?')
  result = evaluate.current_result(run)
  if result and result.memorisation:
    logging.info('The run is already evaluated.')
  else:
    evaluate.evaluate(run)
  announce(8, 'Making the report: new images, reconstructions, curves')
  report.report(run)
  logging.info(
    '\nDone. Open %s in a browser to see new images of each class and how they '
    'were made.\nFor more images: dermvq sample --workdir=%s --out=samples',
    run.report_dir / 'index.html',
    run.workdir,
  )
