"""Soft assignment of rows to codes in memory that does not grow with N x C.

Logits, noise and probabilities are made tile by tile, and made again in the
backward pass, as FlashAttention does (Dao 2022,
https://arxiv.org/abs/2205.14135). What is kept between the two is O(N (K + L) +
C). `assignment.assign` leads here, and `assignment.plain` is the same function
in a few lines.

Shapes: `N` rows, `C` codes, `K` the dimension of queries and keys, `L` that of
values. A tile is `[T, S]`: T rows by S codes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gmvq_jax import noise
from gmvq_jax import numerics

# The logit of a code that is none: padding of the last tile.
_NEVER = -1e20


class Tiling(NamedTuple):
  """How an assignment is computed; static.

  Attributes:
    noisy: whether codes are drawn (True) or the most probable are taken.
    soft: whether the relaxed mixture itself is wanted, or its gradient alone.
    num_codes: C. There may be more keys, padding up to a multiple of S.
    rows: T.
    codes: S.
    shards: parts of the rows that are tiled apart: the devices they lie on.
  """

  noisy: bool
  soft: bool
  num_codes: int
  rows: int
  codes: int
  shards: int


class Outputs(NamedTuple):
  """What is computed of the rows.

  Attributes:
    codes: `[N]` int32.
    relaxed: `[N, L]`, the mixture of values by the relaxed one-hot if `soft`;
      else zeros, with the gradient of that to queries and keys.
    posterior: `[C]`, the sum over rows of weight times probability.
    entropy: `[N]`, of each row's probabilities, in nats.
  """

  codes: jax.Array
  relaxed: jax.Array
  posterior: jax.Array
  entropy: jax.Array


class _Kept(NamedTuple):
  """What the backward pass gets of each row.

  Attributes:
    log_norm: `[N]`, log of the sum of exp(logits).
    entropy: `[N]`.
    best: `[N]`, the largest perturbed logit.
    scale: `[N]`, 1 / the sum of exp((perturbed - best) / temperature).
    mixture: `[N, L]` by the relaxed one-hot. None, and `scale` as well, where a
      tile holds all codes: then the backward pass finds them for nothing.
  """

  log_norm: jax.Array
  entropy: jax.Array
  best: jax.Array
  scale: jax.Array | None
  mixture: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def assign(
    tiling: Tiling,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    temperature: jax.Array,
    weights: jax.Array,
    seeds: jax.Array,
) -> Outputs:
  """Returns what `assignment.plain` does.

  Args:
    tiling: how.
    queries: `[N, K]`.
    keys: `[C, K]`.
    values: `[C, L]`.
    temperature: `[]`.
    weights: `[N]`, of the rows in `posterior`.
    seeds: `[N, 2]` uint32, of their noise.
  """
  inputs = (queries, keys, values, temperature, weights, seeds)
  return _forward(tiling, *inputs)[0]


def _forward(tiling, queries, keys, values, temperature, weights, seeds):
  inputs = (queries, keys, values, temperature, weights, seeds)
  whole = tiling.codes == len(keys)
  keep_mixture = tiling.noisy and (tiling.soft or not whole)
  sharpness = 1 / temperature

  def of_rows(posterior, rows):
    queries, weights, seeds = rows
    zeros = jnp.zeros(len(queries), queries.dtype)
    least = zeros + jnp.finfo(queries.dtype).min / 2
    mixture = jnp.zeros((len(queries), values.shape[1]), values.dtype)

    def first_pass(state, part, logits, perturbed):
      (top, total, moment), (best, codes), (relaxed, mixture) = state

      new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
      centred = logits - new_top[:, None]
      share = jnp.exp(centred)
      shrink = jnp.exp(top - new_top)
      moment = shrink * (moment + total * (top - new_top))
      moment += _sum(share * centred)
      total = shrink * total + _sum(share)

      tile_best, tile_codes = _argmax(perturbed)
      codes = jnp.where(tile_best > best, part.start + tile_codes, codes)
      new_best = jnp.maximum(best, tile_best)

      if keep_mixture:
        shrink = jnp.exp((best - new_best) * sharpness)
        share = jnp.exp((perturbed - new_best[:, None]) * sharpness)
        relaxed = shrink * relaxed + _sum(share)
        mixture *= shrink[:, None]
        mixture += _product(share, part.of(values))
      return (new_top, total, moment), (new_best, codes), (relaxed, mixture)

    fold = _over_codes(tiling, queries, keys, seeds)
    state = fold(
        first_pass,
        (
            (least, zeros, zeros),
            (least, jnp.zeros(len(queries), jnp.int32)),
            (zeros, mixture),
        ),
    )
    (top, total, moment), (best, codes), (relaxed, mixture) = state

    def second_pass(posterior, part, logits, perturbed):
      del perturbed
      share = jnp.exp(logits - top[:, None])
      return part.add(posterior, _product(weights / total, share))

    posterior = fold(second_pass, posterior)
    kept = _Kept(
        log_norm=top + jnp.log(total),
        entropy=jnp.log(total) - moment / total,
        best=best,
        scale=1 / relaxed if keep_mixture else None,
        mixture=mixture / relaxed[:, None] if keep_mixture else None,
    )
    return posterior, (codes, kept)

  posterior, (codes, kept) = _over_rows(
      tiling,
      of_rows,
      jnp.zeros(len(keys), queries.dtype),
      (queries, weights, seeds),
  )
  relaxed = jnp.zeros((len(queries), values.shape[1]), values.dtype)
  if tiling.soft:
    relaxed = kept.mixture
  return Outputs(codes, relaxed, posterior, kept.entropy), (inputs, kept)


def _backward(tiling, residuals, gradients):
  (queries, keys, values, temperature, weights, seeds), kept = residuals
  _, d_relaxed, d_posterior, d_entropy = gradients
  sharpness = 1 / temperature

  def of_rows(sums, rows):
    queries, weights, seeds, kept, d_relaxed, d_entropy = rows
    zeros = jnp.zeros(len(queries), queries.dtype)

    def relaxation(part, perturbed):
      """Returns the one-hot before it is normalised, and d of its mixture."""
      share = jnp.exp((perturbed - kept.best[:, None]) * sharpness)
      return share, _product(d_relaxed, part.of(values).T)

    def first_pass(means, part, logits, perturbed):
      posterior_mean, relaxed, relaxed_mean = means
      probs = jnp.exp(logits - kept.log_norm[:, None])
      posterior_mean += _product(probs, part.of(d_posterior))
      if tiling.noisy and kept.mixture is None:
        share, slope = relaxation(part, perturbed)
        relaxed += _sum(share)
        relaxed_mean += _sum(share * slope)
      return posterior_mean, relaxed, relaxed_mean

    fold = _over_codes(tiling, queries, keys, seeds)
    posterior_mean, relaxed, relaxed_mean = fold(
        first_pass, (zeros, zeros, zeros)
    )
    if kept.mixture is None:
      scale, relaxed_mean = 1 / relaxed, relaxed_mean / relaxed
    else:
      scale = kept.scale
      relaxed_mean = jnp.sum(d_relaxed * kept.mixture, axis=-1)

    def second_pass(state, part, logits, perturbed):
      d_queries, (d_keys, d_values, d_temperature) = state
      log_probs = logits - kept.log_norm[:, None]
      slope = part.of(d_posterior) - posterior_mean[:, None]
      rise = log_probs + kept.entropy[:, None]
      d_logits = jnp.exp(log_probs) * (
          weights[:, None] * slope - d_entropy[:, None] * rise
      )
      if tiling.noisy:
        share, slope = relaxation(part, perturbed)
        share *= scale[:, None]
        d_perturbed = share * (slope - relaxed_mean[:, None]) * sharpness
        d_logits += d_perturbed
        d_temperature -= jnp.sum(_sum(d_perturbed * perturbed)) * sharpness
        if tiling.soft:
          d_values = part.add(d_values, _product(d_relaxed.T, share))
      d_queries += _product(d_logits, part.of(keys))
      d_keys = part.add(d_keys, _product(queries.T, d_logits))
      return d_queries, (d_keys, d_values, d_temperature)

    d_queries, sums = fold(second_pass, (jnp.zeros_like(queries), sums))
    return sums, (d_queries, posterior_mean)

  # Transposed, because so nothing of [T, S] needs to be.
  (d_keys, d_values, d_temperature), (d_queries, d_weights) = _over_rows(
      tiling,
      of_rows,
      jax.tree.map(jnp.zeros_like, (keys.T, values.T, temperature)),
      (queries, weights, seeds, kept, d_relaxed, d_entropy),
  )
  return d_queries, d_keys.T, d_values.T, d_temperature, d_weights, None


assign.defvjp(_forward, _backward)


class _Part(NamedTuple):
  """The codes of one tile: S of them, from `start` on."""

  start: jax.Array | int
  size: int

  def of(self, array):
    """Returns the part of an array `[C, ...]`."""
    if self.size == len(array):
      return array
    return jax.lax.dynamic_slice_in_dim(array, self.start, self.size)

  def add(self, array, update):
    """Returns an array `[..., C]` with `update [..., S]` added to the part."""
    if array.shape == update.shape:
      return array + update
    known = jax.lax.dynamic_slice_in_dim(array, self.start, self.size, -1)
    return jax.lax.dynamic_update_slice_in_dim(
        array, known + update, self.start, -1
    )


def _over_codes(tiling, queries, keys, seeds):
  """Returns `(step, state) -> state`, a fold over the tiles of the codes.

  A step is `(state, part, logits, perturbed) -> state`, the last two `[T, S]`.
  What every pass wants of the scores is computed once where one tile holds all.
  """

  def scores(part):
    logits = _product(queries, part.of(keys).T)
    if len(keys) > tiling.num_codes:
      codes = part.start + jnp.arange(part.size)
      logits = jnp.where(codes < tiling.num_codes, logits, _NEVER)
    if not tiling.noisy:
      return logits, logits
    return logits, logits + noise.gumbel(
        seeds, part.size, first_column=part.start, dtype=logits.dtype
    )

  if tiling.codes == len(keys):
    everything = _Part(0, tiling.codes)
    known = scores(everything)
    return lambda step, state: step(state, everything, *known)

  def fold(step, state):
    def body(index, state):
      part = _Part(index * tiling.codes, tiling.codes)
      return step(state, part, *scores(part))

    return jax.lax.fori_loop(0, len(keys) // tiling.codes, body, state)

  return fold


def _over_rows(tiling, step, sums, rows):
  """Folds `step(sums, tile) -> (sums, results)` over tiles of the rows.

  Every shard folds its own rows, and only the sums of shards are added: so
  nothing of the size of the rows leaves its device.

  Args:
    tiling: how.
    step: of a tile of T rows.
    sums: what the first step gets, zeros.
    rows: a pytree of `[N, ...]`.

  Returns:
    The sums of all rows, and the results `[N, ...]`.
  """
  num_rows = len(jax.tree.leaves(rows)[0])
  per_shard = num_rows // tiling.shards
  padding = -per_shard % tiling.rows

  def divide(x):
    x = x.reshape(tiling.shards, per_shard, *x.shape[1:])
    x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(tiling.shards, -1, tiling.rows, *x.shape[2:])

  def of_shard(rows):
    return jax.lax.scan(step, sums, rows)

  sums, results = jax.vmap(of_shard)(jax.tree.map(divide, rows))

  def collect(x):
    x = x.reshape(tiling.shards, -1, *x.shape[3:])[:, :per_shard]
    return x.reshape(num_rows, *x.shape[2:])

  sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
  return sums, jax.tree.map(collect, results)


def _argmax(scores):
  """Returns the maximum of each row, and the lowest index where it is."""
  # jnp.argmax is scalar code on a CPU, five times slower than this.
  best = jnp.max(scores, axis=-1)
  index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  last = scores.shape[1] - 1
  return best, jnp.min(
      jnp.where(scores == best[:, None], index, last), axis=-1
  )


def _sum(x):
  """Returns the sum of each row."""
  # XLA fuses what is summed into its reduction on a CPU, and computes it there
  # ten times slower than on the way to a matrix product.
  return _product(x, jnp.ones(x.shape[1], x.dtype))


def _product(a, b):
  return jnp.matmul(a, b, precision=numerics.PRECISION)
