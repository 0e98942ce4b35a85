"""Crops of photographs that come in packages."""

import importlib.util
import types

import numpy as np
from PIL import Image
import pytest

from gmvq_jax import data
from gmvq_jax.data.sources import photographs
from gmvq_jax.runtime import errors

NAMES = [name for split in photographs._SPLITS for name in split]
HEIGHT, WIDTH = 70, 100


def load(**fields):
  splits, _ = data.load('photographs', **fields)
  return splits


@pytest.fixture
def packages(tmp_path, monkeypatch):
  """Stands for scikit-image and scikit-learn; few crops.

  The photograph i has only the colours `[i, x, y]`, so a crop tells from where
  it is.
  """
  y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
  for i, name in enumerate(NAMES):
    path = (tmp_path / name).with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph = np.stack([np.full_like(x, i), x, y], axis=-1)
    Image.fromarray(photograph).save(path)
    path.rename(tmp_path / name)

  def find_spec(package):
    return types.SimpleNamespace(
        submodule_search_locations=[str(tmp_path / package)]
    )

  monkeypatch.setattr(importlib.util, 'find_spec', find_spec)
  monkeypatch.setattr(photographs, '_COUNTS', (60, 30, 30))
  return tmp_path


@pytest.mark.parametrize('fields, shape', [
    ({}, (32, 32, 3)),
    ({'size': 16}, (16, 16, 3)),
    ({'size': 16, 'channels': 1}, (16, 16, 1)),
])
def test_shapes_and_counts(packages, fields, shape):
  splits = load(**fields)
  assert [images.shape for images in splits] == [
      (60, *shape), (30, *shape), (30, *shape)
  ]
  assert all(images.dtype == np.uint8 for images in splits)


def test_crops_are_always_the_same(packages):
  for one, other in zip(load(), load(), strict=True):
    np.testing.assert_array_equal(one, other)


def test_no_photograph_is_in_two_splits(packages):
  assert len(set(NAMES)) == len(NAMES)
  seen = [set(images[..., 0].flat) for images in load()]
  ends = np.cumsum([len(split) for split in photographs._SPLITS])
  expected = np.split(np.arange(len(NAMES)), ends[:-1])
  assert seen == [set(part) for part in expected]


def test_crops_are_squares_of_one_two_or_four_times_the_size(packages):
  train = load(size=16).train.astype(int)
  # Columns of a crop differ by its scale, and rows by as much.
  scales = np.diff(train[:, 8, 7:9, 1])[:, 0]
  assert set(scales) == {1, 2, 4}
  np.testing.assert_array_equal(scales, np.diff(train[:, 7:9, 8, 2])[:, 0])
  corners = {tuple(image[0, 0, 1:]) for image in train}
  assert len(corners) > 50


def test_crops_reach_the_edges(packages):
  """At 70, all of the height; a crop is then told by its left edge."""
  train = load(size=HEIGHT).train
  assert set(train[:, 0, 0, 2]) == {0} and set(train[:, -1, -1, 2]) == {69}
  assert train[..., 1].min() == 0 and train[..., 1].max() == WIDTH - 1


def refused(message, **fields):
  with pytest.raises(errors.UserError, match=message) as caught:
    load(**fields)
  assert '\n' not in str(caught.value)


def test_mistakes_are_named(packages):
  refused(r'config.data.size=71: a photograph is only 70 high', size=71)
  refused(r'config.data.crop=16: photographs is used as it is', crop=16)


def test_a_missing_package_is_named(packages, monkeypatch):
  hint = r"is missing; install .* pip install 'gmvq_jax\[quickstart\]'"
  (packages / 'skimage/data/coffee.png').unlink()
  refused(f'skimage/data/coffee.png {hint}')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda package: None)
  refused(f'skimage/data/astronaut.png {hint}')


def test_the_photographs_themselves(monkeypatch):
  for package in ('skimage', 'sklearn'):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed')
  splits = load(size=16)
  assert [len(images) for images in splits] == [8192, 512, 1024]
  assert splits.train.shape[1:] == (16, 16, 3)
  # Not blank.
  assert np.median(splits.train.std(axis=(1, 2))) > 10
