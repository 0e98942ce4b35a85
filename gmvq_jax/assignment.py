"""Which code each position takes, how probable it was, and its gradient.

A softmax over codes, in the manner of attention: the logits of a position are
products of its query with the keys of the codes, and what it gets is a value.
GM-VQ, SQ-VAE and Gumbel-VQVAE differ in their queries and keys.

Shapes: leading dimensions `...` are positions, `N` in all; `C` codes, `K` the
dimension of queries and keys, `L` that of values.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gmvq_jax import noise
from gmvq_jax import numerics
from gmvq_jax import posterior
from gmvq_jax import tiled

METHODS = ('auto', 'plain', 'tiled')

# From so many logits on, tiles are used.
_LARGE = 2**20
# Logits in a tile, for the caches of a CPU and to fill an accelerator; where
# that would leave too few rows, and where it would be too many codes.
_TILE = {'cpu': 2**17}
_ACCELERATOR_TILE = 2**22
_MIN_ROWS = 64
_MAX_TILE = 2**22
_MAX_CODES = 2**12


class Assignment(NamedTuple):
  """Codes of positions.

  Attributes:
    z: `[..., L]`, the value of the code, or the relaxed mixture of values. Its
      gradient to the logits is that of the relaxed mixture.
    codes: `[...]` int32.
    codewords: `[..., L]`, the values of the codes.
    q_c: `[C]`, the probabilities averaged over positions, eq 12.
    entropy: `[...]`, of the probabilities of each position, in nats.
  """

  z: jax.Array
  codes: jax.Array
  codewords: jax.Array
  q_c: jax.Array
  entropy: jax.Array


def assign(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    key: chex.PRNGKey | None = None,
    temperature: chex.Numeric = 1.0,
    hard: bool = True,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    method: str = 'auto',
) -> Assignment:
  """Draws a code for every position, or takes the most probable.

  Args:
    queries: `[..., K]`.
    keys: `[C, K]`. Logits are `queries keys^T`.
    values: `[C, L]`.
    key: draws codes, as `posterior.gumbel_softmax` does; None takes the most
      probable, the first of equals, without any gradient to the logits.
    temperature: of the relaxed one-hot; positive.
    hard: whether z is one value (True) or the relaxed mixture of them.
    mask: `[...]`, positions that count in `q_c` (True or a weight); all by
      default.
    axis_name: a mapped axis (of `pmap` or `shard_map`), of which positions are
      a part.
    method: `plain` holds arrays of `[N, C]`, `tiled` never does, `auto` is
      `tiled` for large ones. They are the same function of the key.

  Returns:
    An `Assignment`, float32 or wider.

  Raises:
    ValueError: for a `method` that is none of these.
  """
  if method not in METHODS:
    raise ValueError(
        f'assign: method={method!r} is unknown; it must be one of'
        f' {", ".join(METHODS)}'
    )
  queries, keys, values = numerics.promote(queries, keys, values)
  chex.assert_equal(queries.shape[-1], keys.shape[-1])
  chex.assert_equal(len(keys), len(values))
  if mask is None:
    mask = jnp.ones(queries.shape[:-1], bool)
  chex.assert_shape(mask, queries.shape[:-1])
  num_logits = mask.size * len(keys)
  if method == 'auto':
    method = 'tiled' if num_logits >= _LARGE else 'plain'
  compute = _tiled if method == 'tiled' else _plain
  return compute(
      queries, keys, values, key, temperature, hard, mask, axis_name
  )


def _plain(queries, keys, values, key, temperature, hard, mask, axis_name):
  logits = jnp.matmul(queries, keys.T, precision=numerics.PRECISION)
  log_probs = jax.nn.log_softmax(logits)
  if key is None:
    codes = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    z = values[codes]
  else:
    chosen, codes = posterior.gumbel_softmax(
        key,
        log_probs,
        temperature=temperature,
        hard=hard,
        axis_name=axis_name,
    )
    z = jnp.matmul(chosen, values, precision=numerics.PRECISION)
  q_c = posterior.aggregated_posterior(
      jnp.exp(log_probs), mask=mask, axis_name=axis_name
  )
  entropy = posterior.posterior_entropy(log_probs)
  return Assignment(z, codes, values[codes], q_c, entropy)


def _tiled(queries, keys, values, key, temperature, hard, mask, axis_name):
  num_rows, num_codes = mask.size, len(keys)
  tiling = _tiling(num_rows, num_codes, key is not None, hard, axis_name)
  padding = ((0, -num_codes % tiling.codes), (0, 0))
  weights = mask.reshape(-1).astype(queries.dtype)
  if key is None:
    seeds = jnp.zeros((num_rows, 2), jnp.uint32)
  else:
    seeds = noise.row_seeds(key, num_rows, axis_name=axis_name)
  outputs = tiled.assign(
      tiling,
      queries.reshape(num_rows, -1),
      jnp.pad(keys, padding),
      jnp.pad(values, padding),
      jnp.asarray(temperature, queries.dtype),
      weights,
      seeds,
  )
  codes = outputs.codes.reshape(mask.shape)
  codewords = values[codes]
  relaxed = outputs.relaxed.reshape(codewords.shape)
  total, count = outputs.posterior[:num_codes], jnp.sum(weights)
  if axis_name is not None:
    total, count = jax.lax.psum((total, count), axis_name)
  return Assignment(
      z=relaxed if tiling.soft else codewords + relaxed,
      codes=codes,
      codewords=codewords,
      q_c=total / jnp.maximum(count, jnp.finfo(total.dtype).tiny),
      entropy=outputs.entropy.reshape(mask.shape),
  )


def _tiling(num_rows, num_codes, noisy, hard, axis_name):
  """Returns how to divide rows and codes into tiles."""
  devices = 1 if axis_name is not None else jax.device_count()
  shards = devices if num_rows % devices == 0 else 1
  tile = _TILE.get(jax.default_backend(), _ACCELERATOR_TILE)
  rows = max(tile // num_codes, _MIN_ROWS)
  codes = num_codes
  if rows * codes > _MAX_TILE:
    codes = _MAX_CODES
    rows = _MAX_TILE // codes
  return tiled.Tiling(
      noisy=noisy,
      soft=noisy and not hard,
      num_codes=num_codes,
      rows=min(rows, num_rows // shards),
      codes=codes,
      shards=shards,
  )
