"""Anchors, against closed forms and NumPy."""

import json

import commands
import numpy as np
import pytest
from scipy import optimize
import tiny

from gmvq_jax import data
from gmvq_jax.training import baselines
from gmvq_jax.training.baselines import Patches


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def test_equal_variances_share_the_bits():
  """D = variance * 2^(-2 R / n)."""
  mse = baselines.water_filling(np.full(10, 3.0), 25.0)
  np.testing.assert_allclose(mse, 3 * 2**-5.0)


def test_no_bits_leave_the_variance():
  variances = np.array([4.0, 1.0, 0.0, 0.25])
  np.testing.assert_allclose(
      baselines.water_filling(variances, 0.0), variances.mean()
  )


def test_few_bits_go_to_the_largest_variance():
  """One bit on 4 makes it 1; the others stay as they are."""
  mse = baselines.water_filling(np.array([4.0, 1.0, 0.25]), 1.0)
  np.testing.assert_allclose(mse, (1 + 1 + 0.25) / 3)


@pytest.mark.parametrize('bits', [3.0, 40.0, 300.0])
def test_water_filling_is_the_best_allocation(rng, bits):
  """Against a solver that shares out the bits itself."""
  variances = rng.exponential(size=12) ** 2

  def distortion(rates):
    return np.mean(variances * 2 ** (-2 * rates))

  best = optimize.minimize(
      distortion,
      np.full(12, bits / 12),
      bounds=[(0, None)] * 12,
      constraints={'type': 'eq', 'fun': lambda r: r.sum() - bits},
      options={'ftol': 1e-14, 'maxiter': 1000},
  )
  np.testing.assert_allclose(
      baselines.water_filling(variances, bits), best.fun, rtol=1e-3, atol=1e-9
  )


def test_gaussian_finds_the_covariance_of_its_data(rng):
  """Images of 4 x 4 whose pixels have a known covariance."""
  mix = rng.normal(size=(16, 16))
  images = 128 + 6 * rng.normal(size=(20_000, 16)) @ mix
  images = np.clip(np.round(images), 0, 255).astype(np.uint8)
  result = baselines.gaussian(images.reshape(-1, 4, 4, 1), 20.0)
  covariance = np.cov(images.T / 255)
  expected = baselines.water_filling(np.linalg.eigvalsh(covariance), 20.0)
  assert result['mse'] == pytest.approx(expected, rel=1e-3)
  assert result['psnr'] == pytest.approx(-10 * np.log10(expected), rel=1e-3)
  assert result['whole'] and result['block'] == 4


def test_blocks_where_there_are_too_few_images(rng):
  images = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
  result = baselines.gaussian(images, 100.0)
  assert result['block'] == 4  # 48 values, of 160 blocks.
  assert not result['whole']


def test_kmeans_of_few_patches_is_exact(rng):
  """Images made of 6 different patches, each as often as the others."""
  patches = rng.integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
  chosen = np.stack([rng.permutation(np.arange(16) % 6) for _ in range(300)])
  images = patches[chosen].reshape(300, 4, 4, 2, 2, 3)
  images = images.swapaxes(2, 3).reshape(300, 8, 8, 3)
  metrics = baselines.kmeans_patches(images, images, Patches(2, 6, 0.0))
  assert metrics['mse'] == pytest.approx(0, abs=1e-9)
  counts = np.bincount(chosen.ravel()) / chosen.size
  entropy = -np.sum(counts * np.log2(counts))
  assert metrics['split_perplexity'] == pytest.approx(2**entropy)
  assert metrics['bits_per_image'] == pytest.approx(16 * entropy)


def test_kmeans_is_near_the_best_in_one_dimension(rng):
  """A uniform source: 8 centroids leave a variance of (1 / 8)^2 / 12."""
  images = rng.integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
  metrics = baselines.kmeans_patches(
      images[:300], images[300:], Patches(1, 8, 0.0)
  )
  assert metrics['mse'] == pytest.approx(1 / 64 / 12, rel=0.05)
  assert metrics['perplexity'] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize(
    'bits, side, num_codes',
    [(640, 4, 1024), (64, 8, 16), (1280, 2, 32), (16, 16, 16), (4, 32, 16)],
)
def test_patches_are_chosen_for_the_bits(bits, side, num_codes):
  """Of those that give them the largest, whose centroids see the most."""
  patches = baselines.patches_for_bits(bits, (32, 32, 3))
  assert patches == Patches(side, num_codes, bits)


def test_patches_come_near_other_bits():
  for bits in (5, 40, 47, 90, 300, 3001):
    patches = baselines.patches_for_bits(bits, (32, 32, 3))
    assert patches.bits == pytest.approx(bits, rel=0.1)


def test_bits_that_no_patches_give():
  for bits in (0.5, 1e6):
    assert baselines.patches_for_bits(bits, (32, 32, 3)) is None


@pytest.mark.parametrize(
    'shape, side',
    [((300, 300), 30), ((180, 320), 20), ((36, 64), 4), ((7, 7), 1)],
)
def test_blocks_are_as_large_as_their_covariance_allows(
    shape, side, monkeypatch
):
  images = np.zeros((60, *shape, 3), np.uint8)
  # The eigenvalues of 2700 x 2700 zeros are known, and take seconds to find.
  monkeypatch.setattr(np.linalg, 'eigvalsh', np.diag)
  assert baselines.gaussian(images, 10.0)['block'] == side


def test_what_does_not_vary_costs_nothing():
  images = np.full((10, 8, 8, 3), 7, np.uint8)
  assert baselines.gaussian(images, 10.0)['mse'] == 0
  metrics = baselines.kmeans_patches(images, images, Patches(4, 4, 8.0))
  assert metrics['mse'] == pytest.approx(0, abs=1e-12)


def test_they_are_cached_by_the_data(photographs, monkeypatch):
  splits = data.Splits(photographs[:400], photographs[:1], photographs[500:])
  patches = Patches(4, 8, 48.0)
  once = baselines.compute(splits, 'some', 48.0, patches)
  with monkeypatch.context() as patch:
    patch.setattr(baselines, 'kmeans_patches', None)
    assert baselines.compute(splits, 'some', 48.0, patches) == once
  other = splits._replace(test=photographs[400:500])
  assert baselines.compute(other, 'some', 48.0, patches) != once


def test_too_many_centroids_are_left_out(photographs):
  splits = data.Splits(photographs[:400], photographs[:1], photographs[500:])
  result = baselines.compute(splits, 'some', 99.0, Patches(4, 2**13, 99.0))
  assert result['kmeans'] is None
  assert result['gaussian']['mse'] > 0


def test_codecs_are_those_of_the_data_set_and_of_no_more_bits(photographs):
  few = photographs[:8]
  for name, bits, expected in (
      ('cifar10', 640, 5), ('cifar10', 400, 1), ('some', 640, 0)
  ):
    result = baselines.compute(data.Splits(few, few, few), name, bits, None)
    assert len(result['codecs']) == expected
    assert all(codec['bits'] <= bits for codec in result['codecs'])


def call(*flags):
  return commands.run_here(*flags, module='gmvq_jax.anchors')


def test_the_command_prints_both(tmp_path, photographs):
  name = tiny.save_images(tmp_path, photographs)
  flags = ['--config=configs/cifar10.py', f'--config.data.name={name}']
  result = call(*flags, '--bits=64')
  assert result.returncode == 0, result.stderr
  printed = json.loads(result.stdout)
  assert printed['bits'] == 64
  assert printed['kmeans']['num_codes'] == 16
  assert 0 < printed['gaussian']['mse'] < printed['kmeans']['mse'] < 0.1


def test_a_mistake_is_one_line(tmp_path, photographs):
  name = tiny.save_images(tmp_path, photographs)
  config = ['--config=configs/cifar10.py', f'--config.data.name={name}']
  for flags, message in [
      ([], '--config is missing'),
      ([*config, '--bits=many'], 'bits'),
      ([*config, '--bits=nan'], '--bits=nan'),
      ([*config, '--bits=-3'], '--bits=-3'),
      ([*config, '--config.network.num_downsamplings=5'], 'be halved'),
      ([*config, 'extra'], 'extra'),
  ]:
    commands.assert_one_line(call(*flags), message)
