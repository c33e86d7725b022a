"""Tests of lesions that are known to be the same.

`test_isic2018` and `test_isic2019` test the tables and images.
"""

from dermvq_jax.data.datasets import isic


def test_the_18_duplicate_pairs():
  images = [name for pair in isic.DUPLICATE_IMAGES for name in pair]
  assert len(isic.DUPLICATE_IMAGES) == 18
  assert len(set(images)) == 36
  lesions = {name: f'HAM_{i:07d}' for i, name in enumerate(images)}
  groups = isic.group_lesions(lesions)
  for a, b in isic.DUPLICATE_IMAGES:
    assert groups[a] == groups[b] == min(lesions[a], lesions[b])
  assert len(set(groups.values())) == 18


def test_joining_takes_all_images_of_both_lesions():
  (a, b), *_ = isic.DUPLICATE_IMAGES
  lesions = {a: 'HAM_2', 'ISIC_1': 'HAM_2', b: 'HAM_1', 'ISIC_2': 'HAM_1'}
  assert set(isic.group_lesions(lesions).values()) == {'HAM_1'}
  del lesions[b]
  assert isic.group_lesions(lesions)[a] == 'HAM_2'
