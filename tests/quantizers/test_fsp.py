"""FSP against NumPy in float64: its CDF, its steps and its noise."""

import functools
import math
import statistics

from compiled import call
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers
from gmvq_jax.ops import counter_rng

KEY = 3


def normal_cdf(h):
  """The probability that a standard normal number is less, by its integral."""
  return np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2)(
      np.asarray(h, np.float64)
  )


def normal_density(h):
  return np.exp(-np.square(np.asarray(h, np.float64)) / 2) / np.sqrt(2 * np.pi)


def within(p):
  """Reflects what has left [0, 1] at the end that it has left by."""
  return np.where(p < 0, -p, np.where(p > 1, 2 - p, p))


def noise_of(count, levels):
  """The uniform numbers in (0, 1) of each position and channel."""
  seeds = counter_rng.row_seeds(jax.random.key(KEY), count)
  return np.asarray(counter_rng.uniform(seeds, len(levels)), np.float64)


def train(quantizer, h):
  return quantizer.apply({}, {}, h, key=jax.random.key(KEY), train=True)[0]


def evaluate(quantizer, h):
  return call(quantizer.apply, {}, {}, np.asarray(h, np.float32))[0]


@pytest.mark.parametrize('levels', [(5, 3), (8, 6, 5), (2, 4), (7,)])
def test_codes_enumerate_the_grid(levels):
  """Every point once, and found again from its own probability."""
  quantizer = quantizers.fsp(levels=levels)
  count = int(np.prod(levels))
  assert quantizer.num_codes == count
  assert quantizer.heads == (len(levels),)
  points = call(quantizer.embed, {}, {}, np.arange(count))
  # The first channel is the fastest.
  index = np.unravel_index(np.arange(count), levels[::-1])[::-1]
  expected = [(k + 0.5) / n * 2 - 1 for k, n in zip(index, levels, strict=True)]
  np.testing.assert_allclose(points, np.stack(expected, axis=-1), atol=1e-6)
  normal = statistics.NormalDist()
  latents = np.vectorize(normal.inv_cdf)((points.astype(np.float64) + 1) / 2)
  quantized = evaluate(quantizer, latents)
  np.testing.assert_array_equal(quantized.codes, np.arange(count))
  np.testing.assert_array_equal(quantized.z, points)


def test_evaluation_is_its_equation(rng):
  levels = (5, 4)
  quantizer = quantizers.fsp(levels=levels)
  h = (1.5 * rng.normal(size=(6, 50, 2))).astype(np.float32)
  quantized = evaluate(quantizer, h)
  p = normal_cdf(h)
  steps = np.floor(p * np.asarray(levels))
  middle = (steps + 0.5) / levels
  np.testing.assert_array_equal(quantized.codes, steps @ [1, 5])
  np.testing.assert_allclose(quantized.z, 2 * middle - 1, atol=1e-6)
  assert quantized.loss == 0
  counts = np.bincount(quantized.codes.ravel(), minlength=20)
  np.testing.assert_allclose(quantized.q_c, counts / 300, rtol=1e-5)
  np.testing.assert_allclose(
      quantized.metrics['quantization_error'],
      np.square(2 * (p - middle)).mean(),
      rtol=1e-4,
  )
  np.testing.assert_allclose(
      quantized.metrics['latent_variance'],
      (2 * p).reshape(-1, 2).var(axis=0).mean(),
      rtol=1e-4,
  )
  loss = quantizer.objective(np.float32(0.3), quantized, data_shape=(6, 9))
  np.testing.assert_allclose(loss, 0.3, rtol=1e-6)


def test_training_adds_a_step_of_noise_within_the_ends(rng):
  """And its gradient is that of the sum, through the CDF."""
  levels = (5, 3)
  quantizer = quantizers.fsp(levels=levels)
  h = (1.5 * rng.normal(size=(200, 2))).astype(np.float32)
  weights = rng.normal(size=h.shape).astype(np.float32)

  def task(h):
    quantized = train(quantizer, h)
    return jnp.sum(weights * quantized.z), quantized

  gradient, quantized = call(jax.grad(task, has_aux=True), h)
  noisy = normal_cdf(h) + (noise_of(200, levels) - 0.5) / levels
  outside = (noisy < 0) | (noisy > 1)
  assert 0 < outside.sum() < outside.size / 2
  np.testing.assert_allclose(quantized.z, 2 * within(noisy) - 1, atol=1e-5)
  slope = 2 * normal_density(h) * np.where(outside, -1, 1)
  np.testing.assert_allclose(gradient, weights * slope, atol=1e-5)
  # The codes are those of evaluation.
  np.testing.assert_array_equal(quantized.codes, evaluate(quantizer, h).codes)


def test_the_noise_is_uniform_and_of_each_channel(rng):
  """By Monte Carlo, far from the ends: mean, variance, range, correlation."""
  levels, count = (5, 4, 8), 40_000
  quantizer = quantizers.fsp(levels=levels)
  h = np.broadcast_to(np.float32([0.1, -0.3, 0.5]), (count, 3))
  z = call(functools.partial(train, quantizer), h).z.astype(np.float64)
  steps = ((z + 1) / 2 - normal_cdf(h[0])) * levels
  assert np.abs(steps).max() <= 0.5 + 1e-5
  np.testing.assert_allclose(steps.mean(axis=0), 0, atol=0.01)
  np.testing.assert_allclose(steps.var(axis=0), 1 / 12, rtol=0.02)
  shares, _ = np.histogram(steps, bins=10, range=(-0.5, 0.5))
  np.testing.assert_allclose(shares / steps.size, 0.1, atol=0.005)
  correlation = np.corrcoef(steps.T)
  np.testing.assert_allclose(correlation, np.eye(3), atol=0.02)


def test_near_an_end_the_noise_is_reflected(rng):
  """By Monte Carlo: mean and variance of |p + u / n|, from NumPy's samples."""
  levels, count = (4,), 40_000
  quantizer = quantizers.fsp(levels=levels)
  for latent in (-1.9, 1.7):
    h = np.full((count, 1), latent, np.float32)
    p = (call(functools.partial(train, quantizer), h).z + 1) / 2
    assert 0 <= p.min() and p.max() <= 1
    uniform = rng.uniform(-0.5, 0.5, count) / levels[0]
    expected = within(normal_cdf(latent) + uniform)
    np.testing.assert_allclose(p.mean(), expected.mean(), atol=2e-3)
    np.testing.assert_allclose(p.std(), expected.std(), rtol=0.03)


def test_standard_normal_latents_use_all_codes_evenly(rng):
  """What the decoder sees is uniform then: mean 0, variance 1 / 3."""
  quantizer = quantizers.fsp(levels=(3, 5))
  h = rng.normal(size=(60_000, 2)).astype(np.float32)
  quantized = call(functools.partial(train, quantizer), h)
  np.testing.assert_allclose(quantized.q_c, 1 / 15, rtol=0.06)
  np.testing.assert_allclose(quantized.z.mean(axis=0), 0, atol=0.01)
  np.testing.assert_allclose(quantized.z.var(axis=0), 1 / 3, rtol=0.02)
  shares, _ = np.histogram(quantized.z, bins=20, range=(-1, 1))
  np.testing.assert_allclose(shares / quantized.z.size, 0.05, rtol=0.05)


def test_latents_far_away_have_the_outermost_codes():
  """And finite gradients."""
  quantizer = quantizers.fsp(levels=(5, 3))
  h = np.float32([[-40.0, -40.0], [40.0, 40.0], [-1e30, 1e30]])

  def total(h):
    quantized = train(quantizer, h)
    return jnp.sum(quantized.z), quantized

  gradient, quantized = call(jax.grad(total, has_aux=True), h)
  np.testing.assert_array_equal(quantized.codes, [0, 14, 10])
  np.testing.assert_array_equal(evaluate(quantizer, h).codes, [0, 14, 10])
  assert np.all(np.abs(quantized.z) <= 1)
  assert np.all(np.isfinite(gradient))


def test_levels_are_those_of_fsq_by_default():
  for num_codes in (16, 240, 1024):
    one, other = quantizers.fsp(num_codes), quantizers.fsq(num_codes)
    assert one.num_codes == other.num_codes and one.heads == other.heads
  for levels in ((5, 1), (5, 2.5)):
    with pytest.raises(ValueError, match='fsp: levels=.*must be at least 2'):
      quantizers.fsp(levels=levels)


def test_training_needs_a_key():
  quantizer = quantizers.fsp(levels=(5, 3))
  with pytest.raises(ValueError, match='fsp: train=True without key'):
    quantizer.apply({}, {}, np.zeros((2, 2), np.float32), train=True)
