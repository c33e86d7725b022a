"""A prior is trained on, until samples show their label without guidance."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import config_files, errors, inference, main
from dermvq_jax.models import build, losses
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop, metrics, pretrained, prior_task, tasks

_FACTS = {
  'dataset': 'codes/0',
  'codebook_size': 5,
  'class_names': ['a', 'b'],
  'conditions': {'label': ['a', 'b'], 'site': ['x']},
}
_BETA, _WEIGHT = 0.2, 3.0
_SHARES = np.array([0.75, 0.25])  # of the labels in training


def test_loss_against_numpy():
  rng = np.random.default_rng(0)
  ratio, negative = 5 * rng.normal(size=(2, 6))
  expected = np.log1p(np.exp(-_BETA * ratio))
  expected += _WEIGHT * np.log1p(np.exp(_BETA * negative))
  found = losses.alignment(ratio, negative, _BETA, _WEIGHT)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # More of the own label, and less of the other one, is better.
  own, other = jax.grad(
    lambda *r: losses.alignment(*r, _BETA, _WEIGHT), (0, 1)
  )(0.0, 0.0)
  assert own < 0 < other and other == pytest.approx(-3 * own)


def test_other_labels_are_others():
  labels = jnp.arange(7).repeat(40)
  codes = np.random.default_rng(0).integers(0, 9, (280, 2, 3))
  everywhere = {(i, j) for i in range(7) for j in range(7) if i != j}
  for rng in (jax.random.key(0), None):
    found = prior_task._other_labels(labels, codes, 7, rng)
    assert set(zip(labels.tolist(), found.tolist())) == everywhere
  # Without a key an image has the same one, wherever it is in a batch.
  np.testing.assert_array_equal(
    prior_task._other_labels(labels[::-1], codes[::-1], 7, None), found[::-1]
  )
  # A null label gets one that exists.
  null = prior_task._other_labels(jnp.full(280, 7), codes, 7, jax.random.key(0))
  assert null.min() >= 0 and null.max() < 7


def test_a_rare_label_counts_less_as_the_other_one():
  weights = prior_task._weights_of_others(
    jnp.array([2, 0, 1]), np.array([0.7, 0.2, 0.1])
  )
  np.testing.assert_allclose(weights, [0.2, 1, 0.4], rtol=1e-6)


@pytest.fixture(
  scope='module', params=['gated_pixelcnn', 'pixelcnn', 'rnn', 'transformer']
)
def toy(request):
  """A task, its model, the prior as it was, and one that was trained on."""
  config = config_files.load(
    'prior:smoke+align',
    [
      f'--config.alignment.beta={_BETA}',
      f'--config.alignment.negative_weight={_WEIGHT}',
    ],
  )
  config.prior = config_files.load(f'prior:{request.param}+smoke').prior
  model = build.prior(config, _FACTS)
  codes, label = np.zeros((1, 3, 4), np.int32), {'label': np.zeros(1, np.int32)}
  shapes = jax.eval_shape(
    lambda key: model.init(key, codes, label, train=False)['params'],
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)
  before, after = (
    jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) / 2), shapes)
    for _ in range(2)
  )
  start = pretrained.Start(
    {'params': before, 'model_state': {}}, label_shares=_SHARES
  )
  return tasks.make(config, _FACTS, start), model, before, after


def _batch(labels):
  codes = np.random.default_rng(1).integers(0, 5, (len(labels), 3, 4))
  return {'codes': np.int32(codes), 'label': np.int32(labels)}


def test_loss_of_each_prior(toy):
  task, model, before, after = toy
  params, state = task.init(jax.random.key(0), iter([]))
  assert params.keys() == before.keys() | {'reference'}
  batch = _batch([0, 1, 1])
  run = jax.jit(
    jax.value_and_grad(
      lambda p: task.loss_fn(p, state, batch, None, train=False), has_aux=True
    )
  )
  (_, (parts, _)), _ = run(params)
  # A label counts as often for others as for its own images, at most.
  weights = _WEIGHT * _SHARES[1 - batch['label']]
  unchanged = np.log(2) * (1 + weights.mean())
  told = metrics.compute(parts)
  assert told['alignment_loss'] == pytest.approx(unchanged, rel=1e-5)

  (value, (parts, _)), gradient = run(after | {'reference': before})

  @jax.jit
  def likelihood(params, label):
    logits = model.apply(
      {'params': params}, batch['codes'], {'label': label}, train=False
    )
    return -losses.nll(logits, batch['codes']).sum((1, 2))

  own, other = (
    likelihood(after, label) - likelihood(before, label)
    for label in (batch['label'], 1 - batch['label'])
  )
  expected = losses.alignment(own, other, _BETA, weights).mean()
  told = metrics.compute(parts)
  assert told['alignment_loss'] == pytest.approx(float(expected), rel=1e-4)
  assert value == pytest.approx(float(expected) / (_BETA * 12), rel=1e-4)
  nll = -float(likelihood(after, batch['label']).mean()) / 12
  assert told['nll'] == pytest.approx(nll, rel=1e-5)
  # Only the prior learns, and only the prior is kept.
  for name, tree in gradient.items():
    is_zero = not any(np.any(x) for x in jax.tree.leaves(tree))
    assert is_zero == (name == 'reference'), name
  assert task.kept(params).keys() == before.keys()


def test_no_label_is_wrong_for_an_unknown_one(toy):
  task, _, before, after = toy
  batch = _batch([2])
  run = jax.jit(lambda p: task.loss_fn(p, {}, batch, None, train=False)[1][0])
  found = metrics.compute(run(after | {'reference': before}))
  same = metrics.compute(run(before | {'reference': before}))
  ratio = 12 * (same['nll'] - found['nll'])
  weight = _WEIGHT * _SHARES[1]  # of the other label for one not known
  expected = np.log1p(np.exp(-_BETA * ratio)) + weight * np.log(2)
  assert found['alignment_loss'] == pytest.approx(expected, rel=1e-4)


def test_shares_are_those_of_training(smoke_run):
  run = run_lib.Run(smoke_run)
  config = config_files.load('prior:smoke+align')
  shares = pretrained.start(config, run).label_shares
  counts = np.bincount(run.codes.labels('train'), minlength=7)
  assert config.class_balance == 0.5
  expected = np.sqrt(counts) / np.sqrt(counts).sum()
  np.testing.assert_allclose(shares, expected, atol=0.02)


def test_one_class_is_refused():
  facts = _FACTS | {'class_names': ['a'], 'conditions': {'label': ['a']}}
  config = config_files.load('prior:smoke+align')
  start = pretrained.Start({'params': {}, 'model_state': {}})
  with pytest.raises(errors.UserError, match='all images have the same label'):
    tasks.make(config, facts, start)


# The whole way.


def _config(start):
  return config_files.load(
    'prior:smoke+align',
    [
      f'--config.start_from={start}',
      '--config.optim.learning_rate=0.01',
      '--config.params_ema_decay=0',
    ],
  )


@pytest.fixture(scope='module')
def aligned(smoke_run, tmp_path_factory):
  run = run_lib.Run(tmp_path_factory.mktemp('aligned') / 'run')
  loop.train(_config(smoke_run), run)
  return run


def _weights_of_val(run):
  labels, codes = run.codes.labels('val'), run.codes.split('val')
  codes = np.stack([record['codes'] for record in codes])
  others = prior_task._other_labels(labels, codes, 7, None)
  config = _config(run.prior.config.start_from)
  start = pretrained.start(config, pretrained.source(config))
  return prior_task._weights_of_others(others, start.label_shares)


def test_the_vqvae_comes_along_and_the_prior_learns(smoke_run, aligned):
  old = run_lib.Run(smoke_run)
  assert aligned.vqvae_digest == old.vqvae_digest
  aligned.check_codes()
  before, after = (run.prior.weights['params'] for run in (old, aligned))
  assert jax.tree.structure(before) == jax.tree.structure(after)
  pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after))
  assert any(np.any(a != b) for a, b in pairs)
  untrained = np.log(2) * (1 + _weights_of_val(aligned).mean())
  assert aligned.prior.metrics()[-1]['val/alignment_loss'] < untrained
  for field in ('prior', 'conditions', 'loss'):
    assert aligned.prior.config[field] == old.prior.config[field]


def test_images_and_codes_are_found(smoke_run, aligned, tmp_path, capsys):
  old = run_lib.Run(smoke_run)
  assert aligned.codes.data_dir == old.codes.data_dir
  assert aligned.images.facts == old.images.facts
  out = tmp_path / 'samples'
  argv = ['sample', f'--workdir={aligned.workdir}', f'--out={out}']
  assert main.main([*argv, '--balance']) == 0
  capsys.readouterr()
  codes = inference.Model(aligned).sample_codes(['mel'] * 4, seed=1)
  other = inference.load(smoke_run).sample_codes(['mel'] * 4, seed=1)
  assert codes.shape == other.shape


def test_resumes_only_with_the_same_prior(smoke_run, aligned):
  loop.train(_config(smoke_run), aligned)  # Nothing is left to do.
  with pytest.raises(errors.UserError, match=r'config\.start_digest was'):
    loop.train(_config(aligned.workdir), aligned)


def test_the_vqvae_is_there_while_the_prior_learns(
  smoke_run, tmp_path, monkeypatch
):
  """So that an interrupted training leaves a whole run."""
  run = run_lib.Run(tmp_path / 'run')

  def stop(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(loop, '_loop', stop)
  with pytest.raises(KeyboardInterrupt):
    loop.train(_config(smoke_run), run)
  assert run_lib.Run(run.workdir).vqvae_digest == run.vqvae_digest
  assert run_lib.Run(run.workdir).vqvae.config.data_dir == str(
    smoke_run / 'data'
  )


def test_a_run_that_is_given_relative_to_the_folder(
  smoke_run, tmp_path, monkeypatch
):
  """Later commands may run in another folder."""
  monkeypatch.chdir(smoke_run.parent)
  run = run_lib.Run(tmp_path / 'run')
  pretrained.copy_vqvae('prior', run_lib.Run(smoke_run.name), run)
  monkeypatch.chdir(tmp_path)
  assert run.vqvae.config.data_dir == str(smoke_run / 'data')
  assert run.images.facts['dataset'] == run.vqvae.facts['dataset']


def test_the_report_shows_the_weights_that_are_kept(aligned):
  metric = tasks.best_metric(aligned.prior.config)
  assert metric == 'alignment_loss'
  config = aligned.prior.config
  with config.unlocked():
    config = config.copy_and_resolve_references()
    config.start_from = ''  # as in an export
  assert tasks.best_metric(config) == metric


def test_mistakes(smoke_run, tmp_path):
  new, start = run_lib.Run(tmp_path / 'new'), tmp_path / 'start'
  shutil.copytree(smoke_run / 'vqvae', start / 'vqvae')
  for folder in (tmp_path / 'nowhere', start):
    with pytest.raises(errors.UserError, match='no trained prior to') as e:
      loop.train(_config(folder), new)
    assert '\n' not in str(e.value) and not new.workdir.exists()


def test_an_export_cannot_be_trained_on(exported_run, tmp_path):
  new = run_lib.Run(tmp_path / 'new')
  with pytest.raises(errors.UserError, match='is an export, which cannot be'):
    loop.train(_config(exported_run), new)
  assert not new.workdir.exists()


def test_a_prior_of_another_kind_is_refused():
  with pytest.raises(errors.UserError, match='leave out rnn'):
    config_files.load('prior:rnn+align')


def test_another_vqvae_is_there(smoke_run, run_copy, monkeypatch):
  real = run_lib.Run.vqvae_digest.fget

  def digest(run):
    return 'other' if run.workdir == run_copy else real(run)

  monkeypatch.setattr(run_lib.Run, 'vqvae_digest', property(digest))
  shutil.rmtree(run_copy / 'prior')
  with pytest.raises(errors.UserError, match='has another VQ-VAE than'):
    loop.train(_config(smoke_run), run_lib.Run(run_copy))
