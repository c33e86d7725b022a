"""A decoder is trained on: codes and prior of the run stay what they are."""

import shutil

import jax
import numpy as np
import pytest

from dermvq_jax import config_files, errors, inference, main
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop, pretrained, tasks


def _config(start, *overrides):
  return config_files.load(
    'vqvae:smoke+sharpen',
    [
      f'--config.start_from={start}',
      '--config.num_train_steps=3',
      *(f'--config.{o}' for o in overrides),
    ],
  )


@pytest.fixture(scope='module')
def sharpened(smoke_run, tmp_path_factory):
  run = run_lib.Run(tmp_path_factory.mktemp('sharpened') / 'run')
  loop.train(_config(smoke_run), run)
  return run


def test_the_decoder_alone_is_trained(smoke_run, sharpened):
  old = run_lib.Run(smoke_run)
  before, after = old.vqvae.weights, sharpened.vqvae.weights
  assert before['params'].keys() == after['params'].keys()
  for part, tree in before['params'].items():
    same = [
      np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves(tree), jax.tree.leaves(after['params'][part])
      )
    ]
    assert not any(same) if part == 'decoder' else all(same)
  jax.tree.map(
    np.testing.assert_array_equal, before['model_state'], after['model_state']
  )
  assert sharpened.vqvae_digest == old.vqvae_digest
  assert sharpened.vqvae.config.quantizer == old.vqvae.config.quantizer


def test_the_prior_comes_along(smoke_run, sharpened):
  old, new = inference.load(smoke_run), inference.Model(sharpened)
  codes = old.sample_codes(['mel', 'nv'], seed=3)
  np.testing.assert_array_equal(new.sample_codes(['mel', 'nv'], seed=3), codes)
  assert np.any(new.decode(codes) != old.decode(codes))


def test_the_prior_draws_in_the_frequencies_of_the_classes(smoke_run):
  run = run_lib.Run(smoke_run)
  config = pretrained.resolve(_config(smoke_run), run, run_lib.Run('other'))
  start = pretrained.start(config, run)
  labels = np.random.default_rng(config.seed).choice(
    run.codes.labels('train'), 16
  )
  np.testing.assert_array_equal(
    start.drawn_codes, inference.load(smoke_run).sample_codes(labels)
  )
  without = _config(smoke_run, 'discriminator.num_samples=0')
  assert pretrained.start(without, run).drawn_codes is None


def test_drawn_images_train_the_decoder(smoke_run, sharpened):
  """With all else equal, and nothing but the decoder."""
  run = run_lib.Run(smoke_run)
  config = pretrained.resolve(_config(smoke_run), run, run_lib.Run('other'))
  start = pretrained.start(config, run)
  batch = {'image': run.images.split('train')[0]['image'][None]}
  facts, key = run.images.facts, jax.random.key(0)

  def gradients(drawn_codes):
    start_from = pretrained.Start(start.weights, drawn_codes)
    task = tasks.make(config, facts, start_from)
    params, state = jax.device_put(task.init(key, [batch]))
    return jax.jit(
      jax.grad(
        lambda p: task.loss_fn(p, state, batch, key, train=True, step=9)[0]
      )
    )(params)

  grads = [
    gradients(codes) for codes in (start.drawn_codes, start.drawn_codes[:1])
  ]
  for part in grads[0]:
    pairs = zip(*(jax.tree.leaves(g[part]) for g in grads))
    same = [np.array_equal(a, b) for a, b in pairs]
    if part == 'decoder':
      assert not any(same)
    elif part == 'discriminator':  # The hinge loss may cancel for a bias.
      assert not all(same)
    else:
      assert not any(np.any(x) for x in jax.tree.leaves(grads[0][part])), part
  assert sharpened.vqvae.config.prior_digest
  assert 'step/drawn_loss' in sharpened.vqvae.metrics()[-2]


def test_resumes_only_with_the_same_run(smoke_run, sharpened, tmp_path):
  """Wherever that run is now."""
  loop.train(_config(smoke_run), sharpened)  # Nothing is left to do.
  moved = tmp_path / 'moved'
  for phase in ('vqvae', 'prior'):
    shutil.copytree(smoke_run / phase, moved / phase)
  data = f'data_dir={smoke_run}/data'
  loop.train(_config(moved, data), sharpened)
  # Encoder, codebook and prior are the same, the decoder is another one.
  other = smoke_run / 'squared_error'
  with pytest.raises(errors.UserError, match=r'config\.start_digest was'):
    loop.train(_config(other, data), sharpened)


def test_data_in_the_own_folder_may_move_with_it(smoke_run, monkeypatch):
  """`dermvq demo` trains on from a run in its own folder."""
  run = run_lib.Run(smoke_run)
  assert run.vqvae.config.start_from == str(smoke_run / 'squared_error')
  assert run.vqvae.config.data_dir == ''
  other = pretrained.resolve(_config(smoke_run), run, run_lib.Run('other'))
  assert other.data_dir == str(smoke_run / 'data')
  monkeypatch.chdir(smoke_run.parent)
  own = run_lib.Run(smoke_run.name)
  assert pretrained.resolve(_config(smoke_run), run, own).data_dir == ''


@pytest.mark.parametrize(
  ('start', 'message'),
  [
    ('', 'give --config.start_from=RUN'),
    ('nowhere', 'dermvq train --config=vqvae'),
  ],
)
def test_mistakes(start, message, tmp_path):
  config = config_files.load('vqvae:smoke+sharpen')
  if start:
    config.start_from = str(tmp_path / start)
  with pytest.raises(errors.UserError, match=message):
    loop.train(config, run_lib.Run(tmp_path / 'new'))
  assert not (tmp_path / 'new').exists()


def test_a_run_without_a_prior(smoke_run, tmp_path):
  start = tmp_path / 'start'
  shutil.copytree(smoke_run / 'vqvae', start / 'vqvae')
  new = run_lib.Run(tmp_path / 'new')
  with pytest.raises(errors.UserError, match='num_samples=0') as e:
    loop.train(_config(start), new)
  assert '\n' not in str(e.value) and not new.workdir.exists()


def test_samples_come_next(smoke_run, sharpened, capsys):
  overrides = [f'--config.start_from={smoke_run}', '--config.num_train_steps=3']
  argv = ['train', '--config=vqvae:smoke+sharpen', *overrides]
  assert main.main([*argv, f'--workdir={sharpened.workdir}']) == 0
  assert 'Next: dermvq sample' in capsys.readouterr().out
