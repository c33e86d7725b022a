import json
import re

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.runs import run as run_lib
from experiments import sharpness


def test_a_run_is_judged(smoke_run, tmp_path, capsys):
  arguments = [
    f'--runs={smoke_run}',
    f'--judge={smoke_run}',
    f'--out={tmp_path}',
    '--controls',
    'guidance_scale=2,temperature=0.9',
  ]
  sharpness.main(arguments)
  told = capsys.readouterr().out
  for name in ('real images', 'samples', 'guidance_scale 2, temperature 0.9'):
    assert re.search(rf'{name} *\|', told), name
  [file] = tmp_path.iterdir()
  found = json.loads(file.read_text())
  assert found['codes'] == 16 and 0 < found['usage'] <= 1
  sharpness.main(arguments)  # Nothing is measured again.
  assert capsys.readouterr().out == told


def test_networks_that_saw_photographs(
  smoke_run, tmp_path, capsys, monkeypatch
):
  """Each that is asked for is a space; the images are too small for them."""

  def stages(path):
    return lambda images: images.mean((1, 2))

  monkeypatch.setattr(sharpness, 'Stages', stages)
  sharpness.main(
    [
      f'--runs={smoke_run}',
      '--vgg16=vgg16.npz',
      '--alexnet',
      f'--out={tmp_path}',
      '--controls',
    ]
  )
  told = capsys.readouterr().out
  assert 'KID VGG16 x 1000' in told and 'KID AlexNet x 1000' in told


def test_without_a_judge(smoke_run, tmp_path, capsys):
  sharpness.main([f'--runs={smoke_run}', f'--out={tmp_path}', '--controls'])
  told = capsys.readouterr().out
  assert 'power 1/4-1/2' in told and 'evidence' not in told


def test_a_judge_of_another_size(smoke_run):
  run = run_lib.Run(smoke_run)
  judge = sharpness.Judge(run)
  side = run.classifier.facts['image_size']
  grey = np.array([[[[90]]], [[[130]]]], np.uint8)
  own, larger = (np.tile(grey, (1, s, s, 3)) for s in (side, 3 * side))
  np.testing.assert_array_equal(judge(larger), judge(own))
  np.testing.assert_array_equal(judge.predict(larger), judge.predict(own))


def test_a_judge_of_other_classes(smoke_run):
  run = run_lib.Run(smoke_run)
  judge = sharpness.Judge(run)
  judge.class_names = ('benign', 'malignant')
  with pytest.raises(errors.UserError, match='knows the classes benign, mal'):
    sharpness.measure(run, judge, {}, {})
