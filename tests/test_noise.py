"""Noise by row and column."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gmvq_jax import noise

KINDS = {'gumbel': stats.gumbel_r, 'normal': stats.norm}


def test_the_cipher_is_threefry_of_thirteen_rounds():
  # The first word of a known answer that comes with Random123 (Salmon 2011).
  assert _threefry(0, 0, 0) == 0x9D1C5EC6
  counters = np.random.default_rng(0).integers(0, 2**32, 18, dtype=np.uint32)
  for k0, k1, counter in counters.reshape(-1, 3):
    actual = noise._threefry(
        jnp.uint32(k0), jnp.uint32(k1), jnp.uint32(counter)
    )
    assert int(actual) == _threefry(int(k0), int(k1), int(counter))


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


@pytest.mark.parametrize('kind', KINDS)
def test_noise_has_its_distribution(kind):
  seeds = noise.row_seeds(jax.random.key(0), 200)
  draws = np.asarray(getattr(noise, kind)(seeds, 500))
  assert draws.shape == (200, 500)
  assert stats.kstest(draws.ravel(), KINDS[kind].cdf).pvalue > 1e-3


def test_rows_and_columns_are_independent():
  draws = np.asarray(
      noise.normal(noise.row_seeds(jax.random.key(1), 1000), 1000)
  )
  other = np.asarray(
      noise.normal(noise.row_seeds(jax.random.key(2), 1000), 1000)
  )
  pairs = {
      'rows': (draws[:-1], draws[1:]),
      'columns': (draws[:, :-1], draws[:, 1:]),
      'keys': (draws, other),
      'diagonal': (draws[:-1, :-1], draws[1:, 1:]),
  }
  for name, (x, y) in pairs.items():
    assert abs(np.mean(x * y)) < 4 / np.sqrt(x.size), name


def test_any_part_is_what_the_whole_has_there():
  key = jax.random.key(3)
  whole = noise.gumbel(noise.row_seeds(key, 12), 100)
  part = noise.gumbel(noise.row_seeds(key, 5), 30, first_column=40)
  np.testing.assert_array_equal(part, whole[:5, 40:70])
  devices = jax.vmap(
      lambda _: noise.gumbel(
          noise.row_seeds(key, 4, axis_name='devices'), 100
      ),
      axis_name='devices',
  )(jnp.arange(3))
  np.testing.assert_array_equal(devices.reshape(12, 100), whole)


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
def test_rows_are_of_the_key_folded_with_their_index(impl):
  key = jax.random.key(4, impl=impl)
  seeds = noise.row_seeds(key, 3)
  for row in range(3):
    expected = jax.random.key_data(jax.random.fold_in(key, row))
    np.testing.assert_array_equal(seeds[row], expected[:2])


def test_the_largest_noise_is_far_out_and_finite(monkeypatch):
  # Compiled, because a compiler may simplify what is right as it is written.
  monkeypatch.setattr(noise, '_uniform', lambda seeds, *_: seeds)
  gumbel = jax.jit(lambda uniform: noise.gumbel(uniform, 1))
  extremes = [2.0**-32, 2.0**-27, 2.0**-26, 3 * 2.0**-25, 1 - 2**-24]
  uniform = np.geomspace(2.0**-31, 1, 100_000, endpoint=False)
  uniform = np.float32([*extremes, *uniform, *1 - uniform[uniform > 2**-20]])
  expected = -np.log(-np.log1p(-uniform.astype(np.float64)))
  np.testing.assert_allclose(gumbel(uniform), expected, rtol=1e-6, atol=1e-6)
  assert gumbel(uniform)[0] > 22


def test_noise_is_finite_whatever_the_bits(monkeypatch):
  monkeypatch.setattr(noise, '_threefry', lambda k0, k1, counters: counters)
  for start in (0, 2**32 - 1000):
    for dtype in (jnp.float32, jnp.float64):
      with jax.enable_x64(dtype == jnp.float64):
        seeds = jnp.zeros((1, 2), jnp.uint32)
        draw = jax.jit(
            lambda seeds, start=start, dtype=dtype: noise.gumbel(
                seeds, 1000, first_column=start, dtype=dtype
            )
        )
        assert jnp.all(jnp.isfinite(draw(seeds)))
  monkeypatch.setattr(
      noise, '_threefry', lambda k0, k1, counters: ~counters
  )
  for draw in (noise.gumbel, noise.normal):
    seeds = jnp.zeros((1, 2), jnp.uint32)
    noisy = jax.jit(lambda seeds, draw=draw: draw(seeds, 1000))(seeds)
    assert jnp.all(jnp.isfinite(noisy))
  monkeypatch.setattr(noise, '_threefry', lambda k0, k1, counters: counters)
  noisy = jax.jit(lambda seeds: noise.normal(seeds, 1000))(seeds)
  assert jnp.all(jnp.isfinite(noisy))
