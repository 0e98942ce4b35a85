"""Noise that is a function of a row and a column, drawn wherever it is needed.

Row n has a random stream of its own, that of `fold_in(key, n)`. Any columns of
any rows can be drawn apart, and again: on another device, in another tile, in a
backward pass.

A stream is Threefry-2x32 in counter mode (Salmon 2011, "Parallel random
numbers: as easy as 1, 2, 3"), with 13 rounds, the fewest that pass BigCrush
there. All of it is elementwise, so that it fuses with what it is added to.
"""

import math

import chex
import jax
import jax.numpy as jnp

_ROUNDS = 13
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def row_seeds(
    key: chex.PRNGKey, num_rows: int, *, axis_name: str | None = None
) -> jax.Array:
  """Returns the seeds of the streams of rows, `[num_rows, 2]` uint32.

  Args:
    key: random key, `threefry2x32` (JAX's default) or `rbg`.
    num_rows: how many.
    axis_name: a mapped axis (of `pmap` or `shard_map`), along which as many
      rows lie on every device.
  """
  rows = jnp.arange(num_rows, dtype=jnp.uint32)
  if axis_name is not None:
    rows += jnp.uint32(num_rows) * jnp.uint32(jax.lax.axis_index(axis_name))

  def seed(row: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.fold_in(key, row))[:2]

  seeds: jax.Array = jax.vmap(seed)(rows)
  return seeds


def gumbel(
    seeds: jax.Array,
    num_columns: int,
    *,
    first_column: chex.Numeric = 0,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
  """Returns standard Gumbel noise, `[n, num_columns]`.

  `-log(E)` with E exponential. E is exact to a relative 2^-22 down to its
  least, 2^-32, so noise goes up to 22: the largest of 2^18 codes is no tie.

  Args:
    seeds: `[n, 2]`, of `row_seeds`.
    num_columns: of each row.
    first_column: where they begin.
    dtype: of the result.
  """
  uniform = _uniform(seeds, num_columns, first_column, dtype)
  if dtype != jnp.float32:
    return -jnp.log(-jnp.log1p(-uniform))
  exponent, rest = _split(1 - uniform)
  # Near 0 the difference has lost digits that the number has.
  rest = jnp.where(exponent == 0, -uniform, rest)
  return -_log(*_split(-_log(exponent, rest)))


def normal(
    seeds: jax.Array, num_columns: int, *, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """Returns standard normal noise, `[n, num_columns]`; see `gumbel`."""
  symmetric = 2 * _uniform(seeds, num_columns, 0, dtype) - 1
  symmetric = jnp.maximum(symmetric, jnp.finfo(dtype).epsneg - 1)
  return jnp.sqrt(jnp.asarray(2, dtype)) * jax.lax.erf_inv(symmetric)


def uniform(
    seeds: jax.Array, num_columns: int, *, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """Returns uniform noise in (0, 1), `[n, num_columns]`; see `gumbel`."""
  return _uniform(seeds, num_columns, 0, dtype)


def _uniform(
    seeds: jax.Array,
    num_columns: int,
    first_column: chex.Numeric,
    dtype: jnp.dtype,
) -> jax.Array:
  """Returns numbers in (0, 1), `[n, num_columns]`."""
  columns = jnp.uint32(first_column) + jnp.arange(num_columns, dtype=jnp.uint32)
  bits = _threefry(seeds[:, :1], seeds[:, 1:], columns)
  # Signed integers, which every processor converts quickly.
  odd = (bits >> 1).astype(jnp.int32).astype(dtype) * 2.0**-31 + 2.0**-32
  return jnp.minimum(odd, 1 - jnp.finfo(dtype).epsneg)


# XLA's own logarithm minds zeros, infinities and NaNs, at a cost. Here is what
# x - x^2 / 2 leaves of log(1 + x), over x^3, fitted where `_split` leaves x, to
# a relative 2^-24 of the logarithm.
_LOG1P = (
    0.3333390951,
    -0.2500133812,
    0.1996306181,
    -0.1657758504,
    0.1491478682,
    -0.1426747739,
    0.0870036185,
)
_ROOT_HALF = 0x3F3504F3  # The bits of sqrt(1/2), float32.


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns e and r of x = 2^e (1 + r), with 1 + r in [sqrt(1/2), sqrt(2))."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  exponent = (bits - _ROOT_HALF) >> 23
  rest = jax.lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1
  return exponent, rest


def _log(exponent: jax.Array, rest: jax.Array) -> jax.Array:
  """Returns the logarithm of what was split, a normal positive float32."""
  series = jnp.polyval(jnp.float32(_LOG1P[::-1]), rest)
  log1p = rest + rest * rest * (rest * series - 0.5)
  log2: jax.Array = jnp.float32(math.log(2))
  return exponent.astype(jnp.float32) * log2 + log1p


def _threefry(
    k0: jax.Array, k1: jax.Array, counters: jax.Array
) -> jax.Array:
  """Returns the first words of encrypted counters, by broadcasting."""
  keys: tuple[jax.Array, ...] = (k0, k1, k0 ^ k1 ^ jnp.uint32(_PARITY))
  x0, x1 = counters + keys[0], keys[1]
  for index in range(_ROUNDS):
    x0 += x1
    rotation = _ROTATIONS[index % 8]
    x1 = x0 ^ ((x1 << rotation) | (x1 >> (32 - rotation)))
    if index % 4 == 3:
      turn = index // 4 + 1
      x0 += keys[turn % 3]
      x1 += keys[(turn + 1) % 3] + jnp.uint32(turn)
  return x0
