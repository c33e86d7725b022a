"""All steps with each quantizer; `smoke_run` has them with the default."""

import shutil

import jax
import numpy as np
import pytest

from dermvq_jax import config_files, errors, inference
from dermvq_jax.data import prepared
from dermvq_jax.evaluation import evaluate
from dermvq_jax.generation import encode, reconstructions
from dermvq_jax.models import digests
from dermvq_jax.reporting import report
from dermvq_jax.runs import checkpoints
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop

_IMAGES = 'synthetic_dermoscopy/smoke'
# Small quantizers that together use every option.
_SMALL = {
  'vq': {
    'codebook_size': 16,
    'code_dim': 4,
    'restart_after': 1,
    'codebook_init': 'random',
  },
  'l2_norm': {'codebook_size': 16, 'code_dim': 4},
  'fsq': {'values_per_dim': (5, 4)},
  'residual': {
    'codebook_size': 8,
    'code_dim': 4,
    'num_levels': 2,
  },
}


# This one differs most from the default. Each quantizer takes half a minute.
_FAST = ('residual',)


@pytest.fixture(
  scope='module',
  params=[
    pytest.param(name, marks=() if name in _FAST else pytest.mark.slow)
    for name in _SMALL
  ],
)
def run(request, smoke_run, tmp_path_factory):
  """A quantizer, a workdir trained with it for two steps, and its codes."""
  name = request.param
  workdir = tmp_path_factory.mktemp(name) / 'run'
  shutil.copytree(smoke_run / 'data' / _IMAGES, workdir / 'data' / _IMAGES)
  steps = [
    '--config.num_train_steps=2',
    '--config.optim.warmup_steps=1',
    '--config.eval_every_steps=2',
  ]
  config = config_files.load('vqvae:smoke', steps)
  config.quantizer = config_files.load(f'vqvae:{name}').quantizer
  config.quantizer.update(_SMALL[name])
  trained = run_lib.Run(workdir)
  loop.train(config, trained)
  codes = encode.encode(trained, copies=1)
  loop.train(config_files.load('prior:smoke', steps), trained)
  return name, workdir, codes


def test_whole_path(run, tmp_path):
  name, workdir, codes_name = run
  model = inference.load(workdir)
  num_levels = 2 if name == 'residual' else 1
  facts = prepared.Dataset(codes_name, workdir / 'data').facts
  assert (facts['num_levels'], facts['grid']) == (num_levels, list(model.grid))
  num_codes = {'fsq': 20}.get(name, 16)
  assert facts['codebook_size'] == model.codebook_size == num_codes
  assert model.grid == (4, 4 * num_levels)

  source = prepared.Dataset(_IMAGES, workdir / 'data').split('val')
  images = np.stack([source[i]['image'] for i in range(3)])
  codes = model.encode(images)
  assert codes.shape == (3, *model.grid)
  assert model.reconstruct(images).shape == images.shape
  assert np.isfinite(model.classify(images).log_probs).all()

  # Samples and completions have codes that can be decoded.
  known = np.arange(model.grid[0])[:, None] < np.ones(model.grid) * 2
  drawn = model.sample_codes(
    [0, 1, 2],
    temperature=3.0,
    guidance_scale=2.0,
    known_codes=codes,
    known_mask=np.stack([known] * 3),
  )
  np.testing.assert_array_equal(drawn[:, known], codes[:, known])
  assert model.decode(drawn).shape == images.shape
  likelihood = model.log_likelihood(drawn, [0, 1, 2])
  assert np.isfinite(likelihood).all()

  trained = run_lib.Run(workdir)
  reconstructions.reconstruct(
    trained, tmp_path / 'out', split='val', num_images=2, through_prior=True
  )
  result = evaluate.evaluate(trained)
  assert 0 < result.prior.bits_per_code < 20
  written = report.report(trained)
  assert 'index.html' in {path.name for path in written}


def test_digest_changes_with_everything_that_decides_the_codes(run):
  name, workdir, codes_name = run
  weights = checkpoints.load_best(workdir / 'vqvae')

  def is_new(path, leaf):
    """Whether the digest changes with this leaf."""

    def change(other_path, other):
      return np.array(other) + (other_path == path)

    changed = jax.tree_util.tree_map_with_path(change, weights)
    digest = digests.of_encoding(changed, run_lib.Run(workdir).vqvae.facts)
    return f'codes/{digest}' != codes_name

  decides = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
    keys = [key.key for key in path]
    decides.setdefault((keys[1], keys[-1]), is_new(path, leaf))
  statistics = {'ema_counts', 'ema_sums', 'unused_steps'}
  for (part, leaf), new in decides.items():
    assert new == (part != 'decoder' and leaf not in statistics), (part, leaf)


def test_codes_of_a_wrong_level(run):
  name, workdir, _ = run
  model = inference.load(workdir)
  codes = np.zeros((1, *model.grid), np.int32)
  if name == 'residual':
    with pytest.raises(errors.UserError, match='codes of level j % 2'):
      model.decode(codes)
  else:
    model.decode(codes)
