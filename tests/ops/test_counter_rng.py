"""Noise by row and column."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gmvq_jax.ops import counter_rng

KINDS = {'gumbel': stats.gumbel_r, 'normal': stats.norm}


def test_the_cipher_is_threefry_of_thirteen_rounds():
  # The first word of a known answer that comes with Random123 (Salmon 2011).
  assert _threefry(0, 0, 0) == 0x9D1C5EC6
  inputs = np.random.default_rng(0).integers(0, 2**32, (3, 6), dtype=np.uint32)
  actual = np.asarray(jax.jit(counter_rng._threefry)(*inputs))
  for words, word in zip(inputs.T, actual, strict=True):
    assert int(word) == _threefry(*map(int, words))


def _threefry(k0, k1, x0):
  """The same with Python's integers."""
  x1, modulus = 0, 2**32
  keys = [k0, k1, k0 ^ k1 ^ 0x1BD11BDA]
  x0, x1 = (x0 + k0) % modulus, (x1 + k1) % modulus
  for index, turns in enumerate([13, 15, 26, 6, 17, 29, 16, 24] * 2):
    if index == 13:
      break
    x0 = (x0 + x1) % modulus
    x1 = x0 ^ ((x1 << turns | x1 >> 32 - turns) % modulus)
    if index % 4 == 3:
      n = (index + 1) // 4
      x0 = (x0 + keys[n % 3]) % modulus
      x1 = (x1 + keys[(n + 1) % 3] + n) % modulus
  return x0


@functools.partial(jax.jit, static_argnames=('kind',))
def sample(seed, *, kind):
  """Returns noise `[1000, 1000]`."""
  seeds = counter_rng.row_seeds(jax.random.key(seed), 1000)
  return getattr(counter_rng, kind)(seeds, 1000)


@pytest.mark.parametrize('kind', KINDS)
def test_noise_has_its_distribution(kind):
  law = KINDS[kind]
  samples = np.asarray(sample(0, kind=kind), np.float64)
  assert samples.shape == (1000, 1000)
  p = law.cdf(samples).ravel()
  counts = np.bincount((1000 * p).astype(int), minlength=1000)
  assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3
  for tail in (p < 1e-4, p > 1 - 1e-4):
    assert abs(np.sum(tail) - 100) < 4 * 10
  mean, variance, excess = law.stats(moments='mvk')
  error = np.mean(samples) - mean
  assert abs(error) < 4 * np.sqrt(variance / samples.size)
  error = np.var(samples) / variance - 1
  assert abs(error) < 4 * np.sqrt((excess + 2) / samples.size)


def test_rows_and_columns_are_independent():
  samples = np.asarray(sample(1, kind='normal'))
  other = np.asarray(sample(2, kind='normal'))
  pairs = {
      'rows': (samples[:-1], samples[1:]),
      'columns': (samples[:, :-1], samples[:, 1:]),
      'keys': (samples, other),
      'diagonal': (samples[:-1, :-1], samples[1:, 1:]),
  }
  for name, (x, y) in pairs.items():
    assert abs(np.mean(x * y)) < 4 / np.sqrt(x.size), name
    # Of 16 x 16 cells that are equally likely where x and y are independent.
    x, y = ((16 * stats.norm.cdf(v)).astype(int) for v in (x, y))
    counts = np.bincount((16 * x + y).ravel(), minlength=256)
    assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3, name


def test_any_part_is_what_the_whole_has_there():
  @jax.jit
  def parts(seed):
    def of_device(_):
      seeds = counter_rng.row_seeds(key, 4, axis_name='devices')
      return counter_rng.gumbel(seeds, 100)

    key = jax.random.key(seed)
    return {
        'whole': counter_rng.gumbel(counter_rng.row_seeds(key, 12), 100),
        'part': counter_rng.gumbel(
            counter_rng.row_seeds(key, 5), 30, first_column=40
        ),
        'devices': jax.vmap(of_device, axis_name='devices')(jnp.arange(3)),
    }

  found = jax.device_get(parts(3))
  whole = found['whole']
  np.testing.assert_array_equal(found['part'], whole[:5, 40:70])
  np.testing.assert_array_equal(found['devices'].reshape(12, 100), whole)


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
def test_rows_are_of_the_key_folded_with_their_index(impl):
  @jax.jit
  def seeds(seed):
    key = jax.random.key(seed, impl=impl)
    folded = [jax.random.fold_in(key, row) for row in range(3)]
    expected = [jax.random.key_data(k) for k in folded]
    return counter_rng.row_seeds(key, 3), expected

  rows, expected = jax.device_get(seeds(4))
  np.testing.assert_array_equal(rows, np.stack(expected)[:, :2])


def test_the_largest_noise_is_far_out_and_finite(monkeypatch):
  # Compiled, because a compiler may simplify what is right as it is written.
  monkeypatch.setattr(counter_rng, '_uniform', lambda seeds, *_: seeds)
  gumbel = jax.jit(lambda uniform: counter_rng.gumbel(uniform, 1))
  extremes = [2.0**-32, 2.0**-27, 2.0**-26, 3 * 2.0**-25, 1 - 2**-24]
  uniform = np.geomspace(2.0**-31, 1, 100_000, endpoint=False)
  uniform = np.float32([*extremes, *uniform, *1 - uniform[uniform > 2**-20]])
  expected = -np.log(-np.log1p(-uniform.astype(np.float64)))
  np.testing.assert_allclose(gumbel(uniform), expected, rtol=1e-6, atol=1e-6)
  assert gumbel(uniform)[0] > 22


def test_noise_is_finite_whatever_the_bits(monkeypatch):
  """The least and the largest words, in place of the cipher's."""
  monkeypatch.setattr(counter_rng, '_threefry', lambda k0, k1, columns: k0)
  least = np.arange(1000, dtype=np.uint32)
  words = np.stack([np.concatenate([least, ~least])] * 2, axis=1)
  samplers = {
      'gumbel': counter_rng.gumbel,
      'gumbel in float64': functools.partial(
          counter_rng.gumbel, dtype=jnp.float64
      ),
      'normal': counter_rng.normal,
  }
  for name, sampler in samplers.items():
    with jax.enable_x64('float64' in name):
      compiled = jax.jit(functools.partial(sampler, num_columns=1))
      samples = np.asarray(compiled(words))
    assert samples.shape == (2000, 1), name
    assert np.all(np.isfinite(samples)), name
