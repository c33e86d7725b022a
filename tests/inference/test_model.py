"""Tests of the Python interface to a trained run."""

import dataclasses
import inspect
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dermvq_jax
from dermvq_jax import errors, inference
from dermvq_jax.data import prepared
from dermvq_jax.data.datasets import builder
from dermvq_jax.models import build
from dermvq_jax.models.priors import sampler
from dermvq_jax.runs import checkpoints, logs
from dermvq_jax.runs import run as run_lib

IMAGES = 'synthetic_dermoscopy/smoke'
LABELS = [3, 0, 3, 7, 6]
BATCH_SIZES = [0, 1, 33]


@pytest.fixture(scope='module')
def model(smoke_run):
  return dermvq_jax.load(str(smoke_run))


@pytest.fixture(scope='module')
def images(smoke_run):
  source = prepared.Dataset(IMAGES, smoke_run / 'data').split('train')
  return np.stack([source[i]['image'] for i in range(33)])


@pytest.fixture(scope='module')
def codes(model, images):
  return model.encode(images)


def some_labels(n):
  return np.arange(n) % 8


def test_attributes(model):
  assert tuple(model.class_names) == builder.CLASS_NAMES
  assert model.config.vqvae.task == 'vqvae'
  assert model.config.prior.prior.name == 'gated_pixelcnn'
  assert (model.image_size, model.grid, model.codebook_size) == (16, (4, 4), 32)


# Encode and decode.


@pytest.mark.parametrize('n', BATCH_SIZES)
def test_encode_and_decode_any_number(model, images, codes, n):
  encoded = model.encode(images[:n])
  assert encoded.shape == (n, 4, 4) and encoded.dtype == np.int32
  assert not n or (encoded.min() >= 0 and encoded.max() < 32)
  np.testing.assert_array_equal(encoded, codes[:n])
  for made in (model.decode(encoded), model.reconstruct(images[:n])):
    assert made.shape == (n, 16, 16, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(made, model.decode(codes)[:n])


def test_parts_together_are_the_whole(smoke_run, model, images):
  encoder, codebook, decoder = (
    dermvq_jax.load_part(smoke_run, part)
    for part in ('encoder', 'codebook', 'decoder')
  )
  latents = encoder(images)
  assert codebook.shape == (32, latents.shape[-1])
  distances = np.square(latents[..., None, :] - codebook).sum(-1)
  codes = distances.argmin(-1)
  np.testing.assert_array_equal(codes, model.encode(images))
  np.testing.assert_array_equal(decoder(codebook[codes]), model.decode(codes))


def test_no_such_part(smoke_run, tmp_path):
  with pytest.raises(errors.UserError, match="'prior'.*encoder, codebook, d"):
    dermvq_jax.load_part(smoke_run, 'prior')
  with pytest.raises(errors.UserError, match='dermvq train'):
    dermvq_jax.load_part(tmp_path, 'decoder')


def test_encode_and_decode_are_those_of_the_vqvae(smoke_run, model, images):
  config = run_lib.Run(smoke_run).vqvae.config
  weights = checkpoints.load_best(smoke_run / 'vqvae')
  vqvae = build.vqvae(config)
  variables = {'params': weights['params'], **weights['model_state']}
  output = vqvae.apply(variables, images[:5] / np.float32(255))
  np.testing.assert_array_equal(
    model.encode(images[:5]), output.quantized.codes
  )
  expected = np.clip(np.asarray(output.reconstruction), 0, 1) * 255
  made = model.reconstruct(images[:5])
  np.testing.assert_allclose(made, expected, atol=0.51)


def test_other_sizes_of_images(model):
  images = np.zeros((2, 8, 20, 3), np.uint8)
  assert model.encode(images).shape == (2, 2, 5)
  assert model.reconstruct(images).shape == images.shape
  labels = [0, 1]
  assert model.log_likelihood(model.encode(images), labels).shape == (2,)


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    (np.zeros((1, 16, 16, 3), np.int32), r'of uint8 or .*, not int32'),
    (np.zeros((1, 1, 16, 16, 3), np.uint8), r'not uint8 \[1, 1, 16, 16, 3\]'),
    (np.full((1, 16, 16, 3), 255.0), r'floats must be in \[0, 1\]'),
    (np.zeros((1, 16, 16), np.uint8), 'uint8'),
    (np.zeros((16, 16), np.uint8), 'uint8'),
    (np.zeros((1, 16, 16, 4), np.uint8), 'uint8'),
    (np.zeros((1, 3, 16, 16), np.uint8), 'uint8'),
    (np.zeros((1, 18, 16, 3), np.uint8), '18x16 px .* downsampling, 4'),
    (np.zeros((1, 16, 15, 3), np.uint8), '16x15 px'),
    ([], 'uint8'),
    ('lesion.jpg', 'there is no file lesion.jpg'),
  ],
)
def test_refuses_images(model, images, message):
  for method in (model.encode, model.reconstruct, model.classify, model.score):
    with pytest.raises(errors.UserError, match=message):
      method(images)


def test_images_as_people_have_them(model, images, tmp_path):
  expected = model.encode(images[:1])
  pil = Image.fromarray(images[0])
  pil.save(tmp_path / 'a.png')
  for given in (images[0], images[0] / 255, pil, str(tmp_path / 'a.png')):
    np.testing.assert_array_equal(model.encode(given), expected)
    np.testing.assert_array_equal(model.preprocess(given), images[:1])
  [made] = model.reconstruct(pil, output='pil')
  np.testing.assert_array_equal(made, model.decode(expected)[0])
  table = model.classify([pil, tmp_path / 'a.png'])
  assert len(table) == 2 and table.labels[0] in str(table)


@pytest.mark.parametrize(
  ('codes', 'message'),
  [
    (np.full((1, 4, 4), 32), r'\[0, 32\); these are from 32 to 32'),
    (np.full((1, 4, 4), -1), r'\[0, 32\)'),
    (np.full((1, 4, 4), 2**40), r'\[0, 32\)'),
    (np.zeros((1, 4, 4)), 'integers .* not float64'),
    (np.zeros((4, 4), int), r'not int64 \[4, 4\]'),
    (np.full((1, 4, 4), 2**64 - 1, np.uint64), r'\[0, 32\)'),
    (np.zeros((1, 4, 4), bool), 'integers .* not bool'),
    ([[[0, 1], [0]]], 'codes cannot become an array'),
    (3, 'codes must be integers'),
    (None, 'codes must be integers'),
  ],
)
def test_refuses_codes(model, codes, message):
  for method in (
    model.decode,
    lambda c: model.predict(c, ['mel']),
    lambda c: model.log_likelihood(c, ['mel']),
  ):
    with pytest.raises(errors.UserError, match=message):
      method(codes)


def test_codes_of_every_integer_type(model, codes):
  expected = model.decode(codes[:2])
  for dtype in (np.uint8, np.int8, np.int64, np.uint64):
    np.testing.assert_array_equal(
      model.decode(codes[:2].astype(dtype)), expected
    )


# Labels.


def test_labels(model):
  for labels in (
    ['mel', 'nv', 'akiec'],
    [4, 5, 0],
    ['mel', 5, np.int64(0)],
    np.array(['mel', 'nv', 'akiec']),
    np.array([4, 5, 0], np.uint8),
    jnp.asarray([4, 5, 0]),
    ('mel', 'nv', 'akiec'),
    [jnp.int32(4), np.int8(5), np.str_('akiec')],
  ):
    numbers = model.labels(labels)
    assert numbers.dtype == np.int32
    np.testing.assert_array_equal(numbers, [4, 5, 0])
  np.testing.assert_array_equal(model.labels('mel'), [4])
  np.testing.assert_array_equal(model.labels(7), [7])  # the null label
  assert model.labels([]).shape == (0,)


@pytest.mark.parametrize(
  'label', ['melanoma', 'MEL', '', 8, -1, 1.0, None, True, b'mel', 2**32]
)
def test_unknown_class(model, codes, label):
  for use in (
    lambda: model.labels([label]),
    lambda: model.sample(['mel', label]),
    lambda: model.sample_codes([label]),
    lambda: model.log_likelihood(codes[:1], [label]),
  ):
    with pytest.raises(errors.UserError, match='no class .*akiec, bcc') as e:
      use()
    assert repr(label) in str(e.value)


# Samples.


def test_how_many_samples(model):
  expected = model.sample(['mel', 'mel', 'nv', 'nv'], seed=1)
  for images in (
    model.sample(['mel', 'nv'], 2, seed=1),
    model.sample({'mel': 2, 'nv': 2}, seed=1),
    model.sample([4, 5], count=2, seed=1),
    np.stack(model.sample({4: 2, 'nv': 2}, seed=1, output='pil')),
  ):
    np.testing.assert_array_equal(images, expected)
  np.testing.assert_array_equal(model.sample('mel', 2, seed=1), expected[:2])
  np.testing.assert_array_equal(model.sample('mel', seed=1), expected[:1])
  with pytest.raises(errors.UserError, match='count is -1'):
    model.sample('mel', -1)
  with pytest.raises(errors.UserError, match="give 'array' or 'pil'"):
    model.sample('mel', output='png')


def test_every_option_is_in_the_signatures(model):
  """So that editors complete them, and `help` shows them."""
  names = {
    name: set(inspect.signature(getattr(model, name)).parameters)
    for name in ('sample', 'sample_codes', 'complete')
  }
  controls = {field.name for field in dataclasses.fields(sampler.Controls)}
  for found in names.values():
    assert controls | {'seed', 'count', 'show_progress'} <= found
    assert 'kwargs' not in found
  assert names['sample'] - {'output'} == names['sample_codes']


@pytest.mark.parametrize('n', BATCH_SIZES)
def test_sample_any_number(model, n):
  labels = some_labels(n)
  codes = model.sample_codes(labels, seed=1)
  assert codes.shape == (n, 4, 4) and codes.dtype == np.int32
  assert not n or (codes.min() >= 0 and codes.max() < 32)
  images = model.sample(labels, seed=1)
  assert images.shape == (n, 16, 16, 3) and images.dtype == np.uint8
  np.testing.assert_array_equal(images, model.decode(codes))
  np.testing.assert_array_equal(
    codes, model.sample_codes(some_labels(33), seed=1)[:n]
  )


def test_an_image_is_the_same_alone_and_in_any_batch(model):
  together = model.sample(LABELS, seed=5)
  ids = [0, 0, 1, 0, 0]
  np.testing.assert_array_equal(model.sample(LABELS, seed=5, ids=ids), together)
  for i, (label, n) in enumerate(zip(LABELS, ids)):
    alone = model.sample([label], seed=5, ids=[n])
    np.testing.assert_array_equal(alone[0], together[i])
  shuffled = model.sample(LABELS[::-1], seed=5, ids=ids[::-1])
  np.testing.assert_array_equal(shuffled[::-1], together)
  # In another chunk as well.
  many = model.sample([*[1] * 40, *LABELS], seed=5)
  np.testing.assert_array_equal(many[40:], together)
  names = [*model.class_names, 7]
  np.testing.assert_array_equal(
    model.sample([names[i] for i in LABELS], seed=5), together
  )


def test_seeds_ids_and_labels_matter(model):
  first = model.sample_codes(['mel'], seed=0)
  np.testing.assert_array_equal(model.sample_codes(['mel']), first)
  for other in (
    model.sample_codes(['mel'], seed=1),
    model.sample_codes(['mel'], ids=[1]),
    model.sample_codes(['nv']),
  ):
    assert (other != first).any()


def test_temperature(model):
  """Temperature 0 gives the most likely code everywhere, with any seed."""
  cold = model.sample_codes(['mel', 'mel'], temperature=0)
  np.testing.assert_array_equal(cold[0], cold[1])
  np.testing.assert_array_equal(
    model.sample_codes(['mel'], seed=9, temperature=0.0)[0], cold[0]
  )
  np.testing.assert_array_equal(model.predict(cold, ['mel'])[0], cold)
  for temperature in (-1, float('nan'), float('inf')):
    with pytest.raises(errors.UserError, match='temperature'):
      model.sample(['mel'], temperature=temperature)


@pytest.mark.parametrize(
  'labels', [[np.True_], [['mel', 'nv']], np.zeros((2, 2), int), {'mel': 1}]
)
def test_labels_of_odd_types(model, labels):
  with pytest.raises(errors.UserError, match='there is no class') as e:
    model.labels(labels)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('seed', [-1, 2**32, 2**64, 1.0, True, None, '1'])
def test_refuses_seeds(model, seed):
  """JAX takes 2**32 for 0, and -1 for 2**32 - 1."""
  with pytest.raises(errors.UserError, match='seed is .*0 to 4294967295'):
    model.sample(['mel'], seed=seed)


def test_seeds_of_numpy(model):
  expected = model.sample_codes(['mel'], seed=7)
  for seed in (np.uint8(7), np.int64(7)):
    np.testing.assert_array_equal(
      model.sample_codes(['mel'], seed=seed), expected
    )
  model.sample_codes(['mel'], seed=2**32 - 1)


@pytest.mark.parametrize('ids', [[-1], [2**32], [0.0], [True], ['a'], [None]])
def test_refuses_ids(model, ids):
  with pytest.raises(errors.UserError, match='ids must be whole numbers'):
    model.sample(['mel'], ids=ids)


def test_ids_for_other_labels(model):
  with pytest.raises(errors.UserError, match='2 labels but 1 ids'):
    model.sample(['mel', 'nv'], ids=[0])


# Likelihood.


@pytest.mark.parametrize('n', BATCH_SIZES)
def test_likelihood_and_prediction(smoke_run, model, codes, n):
  codes, labels = codes[:n], some_labels(n)
  phase = run_lib.Run(smoke_run).prior
  config, facts = phase.config, phase.facts
  weights = checkpoints.load_best(smoke_run / 'prior')
  prior = build.prior(config, facts)
  likelihood = model.log_likelihood(codes, labels)
  assert likelihood.shape == (n,) and likelihood.dtype == np.float32
  predicted, same = model.predict(codes, labels)
  assert predicted.shape == codes.shape and predicted.dtype == np.int32
  np.testing.assert_array_equal(same, likelihood)
  if not n:
    return
  logits = np.asarray(
    prior.apply(
      {'params': weights['params']}, codes, {'label': labels}, train=False
    ),
    np.float64,
  )
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  picked = np.take_along_axis(p, codes[..., None], -1)[..., 0]
  np.testing.assert_allclose(likelihood, np.log(picked).sum((1, 2)), rtol=1e-5)
  np.testing.assert_array_equal(predicted, logits.argmax(-1))


def test_likelihood_is_the_nll_that_training_reports(smoke_run, model):
  [step] = [int(p.name) for p in (smoke_run / 'prior' / 'best').iterdir()]
  [row] = [
    row
    for row in logs.read(smoke_run / 'prior')
    if row['step'] == step and 'val/nll' in row
  ]
  facts = run_lib.Run(smoke_run).prior.facts
  source = prepared.Dataset(facts['dataset'], smoke_run / 'data').split('val')
  records = [source[i] for i in range(len(source))]
  codes = np.stack([record['codes'] for record in records])
  labels = [record['label'] for record in records]
  nll = -model.log_likelihood(codes, labels).sum() / codes.size
  assert nll == pytest.approx(row['val/nll'], rel=1e-5)
  assert row['val/bits_per_code'] == pytest.approx(nll / np.log(2), rel=1e-5)
  accuracy = (model.predict(codes, labels)[0] == codes).mean()
  assert accuracy == pytest.approx(row['val/accuracy'], rel=1e-5)


def test_probabilities_sum_to_one(model):
  """The probabilities of all grids of a single code sum to 1."""
  codes = np.arange(32).reshape(32, 1, 1)
  total = np.exp(model.log_likelihood(codes, ['mel'])).sum()
  assert total == pytest.approx(1, rel=1e-5)


def test_one_label_for_all_and_wrong_numbers_of_labels(model, codes):
  np.testing.assert_allclose(
    model.log_likelihood(codes[:3], 'mel'),
    model.log_likelihood(codes[:3], ['mel'] * 3),
  )
  for labels in (['mel', 'nv'], [], ['mel'] * 4):
    with pytest.raises(errors.UserError, match=f'3 .*{len(labels)} labels'):
      model.log_likelihood(codes[:3], labels)


def _all_likelihoods(workdir, codes, loss='cross_entropy'):
  """log p(codes | class) [B, 7], directly from the prior's logits."""
  phase = run_lib.Run(workdir).prior
  config, facts = phase.config, phase.facts
  weights = checkpoints.load_best(workdir / 'prior')
  prior = build.prior(config, facts)
  result = []
  for label in range(7):
    labels = np.full(len(codes), label)
    logits = np.float64(
      prior.apply(
        {'params': weights['params']}, codes, {'label': labels}, train=False
      )
    )
    p = np.exp(logits) if loss == 'cross_entropy' else 1 / (1 + np.exp(-logits))
    p /= p.sum(-1, keepdims=True)
    picked = np.take_along_axis(p, codes[..., None], -1)[..., 0]
    result.append(np.log(picked).sum((1, 2)))
  return np.stack(result, 1)


@pytest.mark.parametrize('n', BATCH_SIZES)
def test_classify_is_bayes_rule(smoke_run, model, images, codes, n):
  log_p = model.classify(images[:n]).log_probs
  assert log_p.shape == (n, 7) and log_p.dtype == np.float32
  if not n:
    return
  likelihoods = _all_likelihoods(smoke_run, codes[:n])
  np.testing.assert_allclose(
    model.class_log_likelihoods(codes[:n]), likelihoods, rtol=1e-5
  )
  p = np.exp(likelihoods)  # 16 codes: nothing underflows in float64.
  expected = p / p.sum(1, keepdims=True)
  np.testing.assert_allclose(np.exp(log_p), expected, rtol=1e-3)
  counts = [3, 1, 0, 2, 5, 60, 1]
  log_p = model.classify(images[:n], class_prior=counts).log_probs
  expected = p * counts / (p * counts).sum(1, keepdims=True)
  np.testing.assert_allclose(np.exp(log_p), expected, rtol=1e-3)
  assert (log_p[:, 2] == -np.inf).all()


@pytest.mark.parametrize(
  'class_prior',
  [
    [1.0] * 6,
    [0] * 7,
    [1] * 6 + [-1],
    [float('nan')] * 7,
    1,
    ['1'] * 7,
    [1j] * 7,
    [[1] * 7, [1]],
    dict.fromkeys(range(7), 1),
    np.ones((7, 7)),
  ],
)
def test_refuses_class_priors(model, images, class_prior):
  message = 'class_prior must be 7 numbers'
  with pytest.raises(errors.UserError, match=message) as e:
    model.classify(images[:1], class_prior=class_prior)
  assert '\n' not in str(e.value)


def test_large_class_priors(model):
  found = model.check_class_prior([1e308] * 7)
  np.testing.assert_allclose(found, 1 / 7)


def test_prior_of_binary_cross_entropy(narrow_run):
  """Likelihood and most likely codes follow the prior's training loss."""
  model = dermvq_jax.load(narrow_run)
  codes = np.random.default_rng(0).integers(0, 32, (3, 8, 8), np.int32)
  expected = _all_likelihoods(narrow_run, codes, 'bce')
  np.testing.assert_allclose(
    model.class_log_likelihoods(codes), expected, rtol=1e-5
  )
  cold = model.sample_codes(['mel'], temperature=0)
  np.testing.assert_array_equal(model.predict(cold, ['mel'])[0], cold)


# Controls and completion.


def test_controls(model):
  plain = model.sample_codes(LABELS)
  on = dict(temperature=0.9, top_k=20, top_p=0.95, guidance_scale=2.0)
  codes = model.sample_codes(LABELS, **on)
  assert (codes != plain).any()
  np.testing.assert_array_equal(model.sample(LABELS, **on), model.decode(codes))
  cold = model.sample_codes(LABELS, temperature=0)
  np.testing.assert_array_equal(model.sample_codes(LABELS, top_k=1), cold)
  np.testing.assert_array_equal(model.sample_codes(LABELS, top_p=1e-6), cold)
  for bad in ({'top_k': -1}, {'top_p': 0}, {'guidance_scale': -1}):
    with pytest.raises(errors.UserError, match=next(iter(bad))):
      model.sample(LABELS, **bad)


def test_completion_in_chunks(model, codes):
  labels = some_labels(33)
  known_mask = np.zeros(codes.shape, bool)
  known_mask[:, :2] = True
  known = dict(known_codes=codes, known_mask=known_mask)
  completed = model.sample_codes(labels, **known)
  np.testing.assert_array_equal(completed[known_mask], codes[known_mask])
  assert (completed != codes).any()
  last = model.sample_codes(
    labels[-1:],
    ids=[4],
    known_codes=codes[-1:],
    known_mask=known_mask[-1:],
  )
  np.testing.assert_array_equal(last, completed[-1:])
  with pytest.raises(errors.UserError, match='known_codes must be integers'):
    model.sample_codes(labels[:3], **known)


def test_guidance_needs_a_null_label(run_copy):
  file = run_copy / 'prior' / 'config.json'
  stored = json.loads(file.read_text())
  stored['config']['conditions']['label'] = 0.0
  file.write_text(json.dumps(stored))
  model = dermvq_jax.load(run_copy)
  model.sample_codes(['mel'])
  with pytest.raises(errors.UserError, match='conditions.label=0 and'):
    model.sample_codes(['mel'], guidance_scale=2.0)


def test_hidden_pixels_have_no_influence(narrow_run):
  model = dermvq_jax.load(narrow_run)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (16, 16, 3), np.uint8)
  assert model.grid == (8, 8)
  for rows, columns, cells in (
    (slice(None), slice(8), np.s_[:, :4]),
    (slice(11, 16), slice(None), np.s_[5:]),
    (slice(7, 9), slice(7, 10), np.s_[3:5, 3:5]),
  ):
    hidden = np.zeros((16, 16), bool)
    hidden[rows, columns] = True
    known = np.ones((8, 8), bool)
    known[cells] = False
    masked = model.hide(image, hidden)
    np.testing.assert_array_equal(masked.known, known)
    assert (masked.image[hidden] == 128).all()
    np.testing.assert_array_equal(masked.image[~hidden], image[~hidden])
    other = image.copy()
    other[hidden] = rng.integers(0, 256, (hidden.sum(), 3))
    np.testing.assert_array_equal(model.hide(other, hidden).codes, masked.codes)


def test_plain_skin_hides_without_a_trace(narrow_run):
  model = dermvq_jax.load(narrow_run)
  image = np.full((16, 16, 3), (190, 140, 120), np.uint8)
  hidden = np.zeros((16, 16), bool)
  hidden[4:9, 6:] = True
  np.testing.assert_array_equal(
    model.hide(image, hidden).codes, model.encode(image[None])[0]
  )


@pytest.mark.parametrize(
  'hidden',
  [np.zeros((16, 16)), np.zeros((1, 16, 16), bool), np.zeros((16, 15), bool)],
)
def test_refuses_masks_of_pixels(model, hidden):
  with pytest.raises(errors.UserError, match=r'bool \[H, W\]'):
    model.hide(np.zeros((16, 16, 3), np.uint8), hidden)


def test_a_mask_must_leave_a_code(narrow_run):
  hidden = np.zeros((16, 16), bool)
  hidden[::2] = True
  with pytest.raises(errors.UserError, match='2x2 pixels has hidden ones'):
    dermvq_jax.load(narrow_run).hide(np.zeros((16, 16, 3), np.uint8), hidden)


def test_refuses_images_that_do_not_fit_the_mask(narrow_run):
  hidden, image = np.zeros((16, 16), bool), np.zeros((16, 8, 3), np.uint8)
  hidden[:, :8] = True
  with pytest.raises(errors.UserError, match=r'uint8 \[16, 16, 3\] like'):
    dermvq_jax.load(narrow_run).hide(image, hidden)


def test_complete(narrow_run):
  model = dermvq_jax.load(narrow_run)
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  masked = model.hide(image, 'bottom')
  assert masked.known[:4].all() and not masked.known[4:].any()
  for label, number in (('mel', 4), (None, 7)):
    expected = model.sample([number] * 3, seed=2, **masked.repeat(3))
    completed = model.complete(image, 'bottom', 3, label=label, seed=2)
    np.testing.assert_array_equal(completed, expected)
  [pil] = model.complete(
    Image.fromarray(image), 'bottom', label='mel', seed=2, output='pil'
  )
  np.testing.assert_array_equal(
    pil, model.sample('mel', seed=2, **masked.repeat(1))[0]
  )
  with pytest.raises(errors.UserError, match='give one image, not 2'):
    model.complete([image, image], 'bottom')
  with pytest.raises(FileNotFoundError, match="no mask 'nowhere'"):
    model.complete(image, 'nowhere')


def test_completing_without_a_label_needs_a_null_label(run_copy):
  file = run_copy / 'prior' / 'config.json'
  stored = json.loads(file.read_text())
  stored['config']['conditions']['label'] = 0.0
  file.write_text(json.dumps(stored))
  model = dermvq_jax.load(run_copy)
  with pytest.raises(errors.UserError, match='give label=CLASS'):
    model.complete(np.zeros((16, 16, 3), np.uint8), 'bottom')


# Incomplete runs.


def test_without_a_prior(smoke_run, tmp_path, codes):
  shutil.copytree(smoke_run / 'vqvae', tmp_path / 'vqvae')
  model = dermvq_jax.load(tmp_path)
  assert model.decode(codes[:1]).shape == (1, 16, 16, 3)
  assert 'prior' not in model.config
  for use in (
    lambda: model.sample(['mel']),
    lambda: model.log_likelihood(codes, ['mel']),
  ):
    with pytest.raises(errors.UserError, match='no trained prior.*encode') as e:
      use()
    assert f'train --config=prior --workdir={tmp_path}' in str(e.value)


def test_prior_without_weights(run_copy, codes):
  """The training began, but there was no validation yet."""
  shutil.rmtree(run_copy / 'prior' / 'best')
  model = dermvq_jax.load(run_copy)
  assert model.decode(codes[:1]).shape == (1, 16, 16, 3)
  with pytest.raises(errors.UserError, match='train --config=prior'):
    model.sample(['mel'])


def test_nothing_trained(tmp_path):
  for workdir in (tmp_path, tmp_path / 'missing'):
    for kind in (errors.UserError, ValueError, FileNotFoundError):
      with pytest.raises(kind, match='train --config=vqvae'):
        dermvq_jax.load(workdir)


def test_prior_of_another_vqvae(run_copy):
  weights = checkpoints.load_best(run_copy / 'vqvae')
  weights['params']['encoder']['Conv_0']['bias'] += 1
  store = checkpoints.Checkpoints(run_copy / 'vqvae')
  store.save_best(11, weights)
  store.close()
  with pytest.raises(errors.UserError, match='another VQ-VAE.*dermvq encode'):
    dermvq_jax.load(run_copy)


def test_prior_of_other_images(run_copy):
  file = run_copy / 'prior' / 'config.json'
  stored = json.loads(file.read_text())
  stored['facts']['vqvae_digest'] = '0' * 16
  file.write_text(json.dumps(stored))
  with pytest.raises(errors.UserError, match='another VQ-VAE'):
    dermvq_jax.load(run_copy)


def test_a_retrained_decoder_keeps_the_prior(run_copy, model, codes):
  weights = checkpoints.load_best(run_copy / 'vqvae')
  weights['params']['decoder'] = jax.tree.map(
    lambda x: x * 0.9, weights['params']['decoder']
  )
  store = checkpoints.Checkpoints(run_copy / 'vqvae')
  store.save_best(11, weights)
  store.close()
  other = dermvq_jax.load(run_copy)
  assert (other.decode(codes) != model.decode(codes)).any()
  np.testing.assert_array_equal(
    other.sample_codes(LABELS), model.sample_codes(LABELS)
  )


# A workdir from a stranger.


@pytest.mark.parametrize(
  ('phase', 'keys', 'value'),
  [
    ('vqvae', ('quantizer', 'name'), '../stranger'),
    ('vqvae', ('quantizer', 'name'), '__class__'),
    ('vqvae', ('quantizer', 'name'), ['vq']),
    ('prior', ('prior', 'name'), 'os'),
    ('prior', ('prior', 'name'), 'stranger.x'),
    ('prior', ('prior', 'name'), '..data.prepare'),
    ('prior', ('prior', 'name'), 'gated_pixelcnn\n'),
  ],
)
def test_names_resolve_only_inside_the_package(
  run_copy, tmp_path, monkeypatch, phase, keys, value
):
  (tmp_path / 'stranger.py').write_text('raise SystemExit("it ran")')
  monkeypatch.syspath_prepend(tmp_path)
  file = run_copy / phase / 'config.json'
  stored = json.loads(file.read_text())
  stored['config'][keys[0]][keys[1]] = value
  file.write_text(json.dumps(stored))
  with pytest.raises(errors.UserError, match='there is no (quantizer|prior)'):
    inference.load(run_copy).check_prior()


def test_the_model_in_the_package():
  """All of it is there, and it samples the images that came with it."""
  model = dermvq_jax.load('demo')
  assert len(model.class_names) == 7 and model.image_size == 64
  image = model.sample('mel', 1, seed=0)[0]
  folder = pathlib.Path(dermvq_jax.__file__).parent / 'demo_model' / 'samples'
  stored = Image.open(folder / 'mel' / 'synthetic_mel_00000.png')
  difference = np.abs(image.astype(int) - np.asarray(stored))
  # Other devices round otherwise, and a code may differ then.
  assert difference.mean() < 20
