"""The tab that changes two controls at once."""

import base64
import io
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors, flags
from dermvq_jax.explore import requests, sweeps

REQUEST = requests.Request({'mel': 1}, numbers={'top_k': 9})


def images_in(html):
  for data in re.findall(r'base64,([^"]+)"', html):
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
      assert image.text['Synthetic'] == 'true'
      yield np.asarray(image)


def test_each_image_is_that_of_its_command(session):
  down, across = ('temperature', '0.5, 1'), ('class', 'mel, nv')
  steps = list(sweeps.sweep(session, REQUEST, down, across))
  assert len(steps) == 2  # a row at a time
  html, commands = steps[-1]
  commands, shown = commands.splitlines(), list(images_in(html))
  assert len(commands) == len(shown) == 4
  asked = set()
  for command, image in zip(commands, shown):
    args = flags.parse(shlex.split(command)[1:])
    asked.add((args.temperature, *args.counts, args.out))
    assert args.top_k == 9
    [expected] = session.model.sample(
      args.counts, temperature=args.temperature, top_k=args.top_k
    )
    np.testing.assert_array_equal(image, expected)
  assert {(t, name) for t, name, _ in asked} == {
    (t, name) for t in (0.5, 1.0) for name in ('mel', 'nv')
  }
  assert len(asked) == 4


@pytest.mark.parametrize(
  ('down', 'across', 'message'),
  [
    (('seed', '1'), ('seed', '2'), 'both change seed'),
    (('seed', ''), ('class', 'mel'), 'seed has 0 values'),
    (('seed', '1,' * 13), ('class', 'mel'), 'seed has 13 values'),
    (('seed', '1.5'), ('class', 'mel'), 'whole ones for seed'),
    (('top_p', 'much'), ('class', 'mel'), "top_p has the values 'much'"),
    (('top_p', '2'), ('class', 'mel'), 'top_p is 2.0'),
    (('seed', '1'), ('class', 'wart'), 'wart'),
  ],
)
def test_mistakes(session, down, across, message):
  with pytest.raises(errors.UserError, match=message):
    list(sweeps.sweep(session, REQUEST, down, across))


def test_suggestions_can_be_read(session):
  for name in sweeps.names(session.model):
    text = sweeps.suggestion(session.model, name)
    assert len(sweeps.read_values(name, text)) > 1, name
