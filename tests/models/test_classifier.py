import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax.models import classifier


def _images():
  return jnp.float32(np.random.default_rng(0).random((3, 16, 16, 3)))


def test_an_image_does_not_depend_on_its_batch():
  model = classifier.Classifier(num_classes=7, features=16, num_stages=2)
  images = _images()
  variables = jax.jit(model.init)(jax.random.key(0), images[:1])
  apply = jax.jit(model.apply)
  logits = apply(variables, images)
  assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)
  alone = apply(variables, images[1:2])
  np.testing.assert_allclose(alone[0], logits[1], rtol=1e-4, atol=1e-5)
  assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_logits_are_a_linear_function_of_the_features():
  model = classifier.Classifier(num_classes=7, features=16, num_stages=2)
  images = _images()
  init = jax.jit(model.init_with_output)
  logits, variables = init(jax.random.key(0), images)
  features = model.apply(variables, images, method='embed')
  assert features.shape == (3, 16) and features.min() >= 0
  head = variables['params']['head']
  expected = features @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_used_inside_only():
  model = classifier.Classifier(7, 16, 2, dtype=jnp.bfloat16)
  images = _images()
  init = jax.jit(model.init_with_output)
  logits, variables = init(jax.random.key(0), images)
  dtypes = {x.dtype for x in jax.tree.leaves(variables)} | {logits.dtype}
  assert dtypes == {jnp.dtype('float32')}
