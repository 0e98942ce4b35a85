"""Codes of bits: the corners of a cube, numbered with the first bit fastest."""

import jax
import jax.numpy as jnp

from gmvq_jax.quantizers import common

# There are arrays of as many numbers as codes.
_MAX_BITS = 24


def num_bits(name: str, num_codes: int) -> int:
  """Returns the logarithm of the number of codes.

  Raises:
    ValueError: if it is no power of two, or too large.
  """
  common.check_sizes(name, num_codes=num_codes)
  bits = num_codes.bit_length() - 1
  if num_codes != 2**bits or not 1 <= bits <= _MAX_BITS:
    raise ValueError(
        f'{name}: num_codes={num_codes}: must be a power of two, from 2 to'
        f' 2^{_MAX_BITS}; more are had by groups'
    )
  return bits


def corner(values: jax.Array) -> jax.Array:
  """Returns the corner nearest to `values [..., L]`, of -1 and 1."""
  return jnp.where(values > 0, 1.0, -1.0).astype(values.dtype)


def codes_of(corners: jax.Array) -> jax.Array:
  """Returns the codes `[...]` int32 of corners `[..., L]`."""
  place = 2 ** jnp.arange(corners.shape[-1], dtype=jnp.int32)
  ones = jnp.where(corners > 0, place, 0)
  return jnp.sum(ones, axis=-1, dtype=jnp.int32)


def corners_of(codes: jax.Array, bits: int) -> jax.Array:
  """Returns the corners `[..., bits]` of codes `[...]`; 0 for -1."""
  ones = codes[..., None] >> jnp.arange(bits) & 1
  return common.zero_unless(codes >= 0, 2.0 * ones - 1)


def bit_entropy(logits: jax.Array) -> jax.Array:
  """Returns the entropy of bits in nats, of their log-odds, elementwise."""
  size = jnp.abs(logits)  # Where neither term is large.
  return jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)
