"""Soft assignment of a few rows to many codes, with its own derivative.

For codes in tiles the softmax is online, as in FlashAttention (Dao 2022,
https://arxiv.org/abs/2205.14135): logits, noise and probabilities of a tile are
not kept, but computed again in the backward pass. `soft_assignment` calls this,
and holds the same function in a few lines.

Shapes: `T` rows, `C` codes, `S` of them in a tile, `K` the dimension of queries
and keys, `L` that of values.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple
from typing import Protocol
from typing import TypeVar

import jax
import jax.numpy as jnp

from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics

# The least logit, and that of padding of the last tile.
NEVER = -1e20

_product = numerics.product
_sum = numerics.row_sums

# The arguments of `assign` after its `tiling`.
_Inputs = tuple[
    jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array
]
# What passes over the codes carry.
_Pair = tuple[jax.Array, jax.Array]
_Triple = tuple[jax.Array, jax.Array, jax.Array]
_State = TypeVar('_State')


class Tiling(NamedTuple):
  """How an assignment is computed; static.

  Attributes:
    noisy: whether codes are drawn (True) or the most probable are taken.
    soft: whether the relaxed mixture itself is wanted, or its gradient alone.
    num_codes: C. There may be more keys, padding up to a multiple of S.
    codes: S.
  """

  noisy: bool
  soft: bool
  num_codes: int
  codes: int


class Outputs(NamedTuple):
  """What is computed of the rows.

  Attributes:
    codes: `[T]` int32.
    relaxed: `[T, L]`, the mixture of values by the relaxed one-hot if `soft`;
      else zeros, with the gradient of that to queries and keys.
    posterior: `[C]`, the sum over rows of weight times probability.
    entropy: `[T]`, of each row's probabilities, in nats.
  """

  codes: jax.Array
  relaxed: jax.Array
  posterior: jax.Array
  entropy: jax.Array


class _Kept(NamedTuple):
  """What the backward pass gets of each row.

  Attributes:
    log_norm: `[T]`, log of the sum of exp(logits).
    entropy: `[T]`.
    best: `[T]`, the largest perturbed logit.
    scale: `[T]`, 1 / the sum of exp((perturbed - best) / temperature).
    mixture: `[T, L]` by the relaxed one-hot. None, and `scale` as well, where a
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
  """Returns what `soft_assignment` computes plainly.

  Args:
    tiling: how.
    queries: `[T, K]`.
    keys: `[C, K]`.
    values: `[C, L]`.
    temperature: `[]`.
    weights: `[T]`, of the rows in `posterior`.
    seeds: `[T, 2]` uint32, of their noise.
  """
  inputs = (queries, keys, values, temperature, weights, seeds)
  return _forward(tiling, *inputs)[0]


def _forward(
    tiling: Tiling,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    temperature: jax.Array,
    weights: jax.Array,
    seeds: jax.Array,
) -> tuple[Outputs, tuple[_Inputs, _Kept]]:
  inputs = (queries, keys, values, temperature, weights, seeds)
  whole = tiling.codes == len(keys)
  keep_mixture = tiling.noisy and (tiling.soft or not whole)
  sharpness = 1 / temperature
  zeros = jnp.zeros(len(queries), queries.dtype)
  least = zeros + jnp.finfo(queries.dtype).min / 2
  no_mixture = jnp.zeros((len(queries), values.shape[1]), values.dtype)

  def first_pass(
      state: tuple[_Triple, _Pair, _Pair],
      part: _Part,
      logits: jax.Array,
      perturbed: jax.Array,
  ) -> tuple[_Triple, _Pair, _Pair]:
    (top, total, moment), (best, codes), (relaxed, mixture) = state

    new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
    centred = logits - new_top[:, None]
    share = jnp.exp(centred)
    shrink = jnp.exp(top - new_top)
    moment = shrink * (moment + total * (top - new_top)) + _sum(share * centred)
    total = shrink * total + _sum(share)

    tile_best, tile_codes = numerics.argmax(perturbed)
    codes = jnp.where(tile_best > best, part.start + tile_codes, codes)
    new_best = jnp.maximum(best, tile_best)

    if keep_mixture:
      shrink = jnp.exp((best - new_best) * sharpness)
      share = jnp.exp((perturbed - new_best[:, None]) * sharpness)
      relaxed = shrink * relaxed + _sum(share)
      mixture = shrink[:, None] * mixture + _product(share, part.of(values))
    return (new_top, total, moment), (new_best, codes), (relaxed, mixture)

  fold = _over_codes(tiling, queries, keys, seeds)
  codes = jnp.zeros(len(queries), jnp.int32)
  state = ((least, zeros, zeros), (least, codes), (zeros, no_mixture))
  state = fold(first_pass, state)
  (top, total, moment), (best, codes), (relaxed, mixture) = state

  def second_pass(
      posterior: jax.Array,
      part: _Part,
      logits: jax.Array,
      perturbed: jax.Array,
  ) -> jax.Array:
    del perturbed
    share = jnp.exp(logits - top[:, None])
    return part.add(posterior, _product(weights / total, share))

  posterior = fold(second_pass, jnp.zeros(len(keys), queries.dtype))
  if keep_mixture:
    mixture /= relaxed[:, None]
  kept = _Kept(
      log_norm=top + jnp.log(total),
      entropy=jnp.log(total) - moment / total,
      best=best,
      scale=1 / relaxed if keep_mixture else None,
      mixture=mixture if keep_mixture else None,
  )
  # So that a NaN is seen.
  relaxed = mixture if tiling.soft else no_mixture + 0 * top[:, None]
  return Outputs(codes, relaxed, posterior, kept.entropy), (inputs, kept)


def _backward(
    tiling: Tiling, residuals: tuple[_Inputs, _Kept], gradients: Outputs
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, None]:
  (queries, keys, values, temperature, weights, seeds), kept = residuals
  _, d_relaxed, d_posterior, d_entropy = gradients
  sharpness = 1 / temperature
  zeros = jnp.zeros(len(queries), queries.dtype)

  def relaxation(part: _Part, perturbed: jax.Array) -> _Pair:
    """Returns the one-hot before it is normalised, and d of its mixture."""
    share = jnp.exp((perturbed - kept.best[:, None]) * sharpness)
    return share, _product(d_relaxed, part.of(values).T)

  def first_pass(
      means: _Triple,
      part: _Part,
      logits: jax.Array,
      perturbed: jax.Array,
  ) -> _Triple:
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
  if kept.scale is None or kept.mixture is None:
    scale, relaxed_mean = 1 / relaxed, relaxed_mean / relaxed
  else:
    scale = kept.scale
    relaxed_mean = jnp.sum(d_relaxed * kept.mixture, axis=-1)

  def second_pass(
      state: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
      part: _Part,
      logits: jax.Array,
      perturbed: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    d_queries, d_keys, d_values, d_temperature = state
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
      # From the largest on, which changes nothing, as they add up to 0.
      below = perturbed - kept.best[:, None]
      d_temperature -= jnp.sum(_sum(d_perturbed * below)) * sharpness
      if tiling.soft:
        d_values = part.add(d_values, _product(d_relaxed.T, share))
    d_queries += _product(d_logits, part.of(keys))
    d_keys = part.add(d_keys, _product(queries.T, d_logits))
    return d_queries, d_keys, d_values, d_temperature

  # Transposed, because so nothing of [T, S] needs to be.
  start = jax.tree.map(
      jnp.zeros_like, (queries, keys.T, values.T, temperature)
  )
  d_queries, d_keys, d_values, d_temperature = fold(second_pass, start)
  return (
      d_queries, d_keys.T, d_values.T, d_temperature, posterior_mean, None
  )  # fmt: skip


assign.defvjp(_forward, _backward)


def largest(num_codes: int, queries: jax.Array, keys: jax.Array) -> jax.Array:
  """Returns where products of queries and keys are largest, `[T]` int32.

  Args:
    num_codes: S, at a time.
    queries: `[T, K]`.
    keys: `[C, K]`. Of equals the first wins.
  """
  tiling = Tiling(False, False, len(keys), num_codes)
  keys = jnp.pad(keys, ((0, -len(keys) % num_codes), (0, 0)))

  def step(
      state: _Pair, part: _Part, products: jax.Array, _: jax.Array
  ) -> _Pair:
    best, codes = state
    tile_best, tile_codes = numerics.argmax(products)
    codes = jnp.where(tile_best > best, part.start + tile_codes, codes)
    return jnp.maximum(best, tile_best), codes

  least = jnp.full(len(queries), -jnp.inf, queries.dtype)
  codes = jnp.zeros(len(queries), jnp.int32)
  return _over_codes(tiling, queries, keys, None)(step, (least, codes))[1]


class _Part(NamedTuple):
  """The codes of one tile: S of them, from `start` on."""

  start: jax.Array | int
  size: int

  def of(self, array: jax.Array) -> jax.Array:
    """Returns the part of an array `[C, ...]`."""
    if self.size == len(array):
      return array
    return jax.lax.dynamic_slice_in_dim(array, self.start, self.size)

  def add(self, array: jax.Array, update: jax.Array) -> jax.Array:
    """Returns an array `[..., C]` with `update [..., S]` added to the part."""
    if array.shape == update.shape:
      return array + update
    known = jax.lax.dynamic_slice_in_dim(array, self.start, self.size, -1)
    return jax.lax.dynamic_update_slice_in_dim(
        array, known + update, self.start, -1
    )


class _Fold(Protocol):
  """A fold over the tiles of the codes."""

  def __call__(
      self,
      step: Callable[[_State, _Part, jax.Array, jax.Array], _State],
      state: _State,
  ) -> _State:
    """Returns the state after `step` of every tile."""


def _over_codes(
    tiling: Tiling,
    queries: jax.Array,
    keys: jax.Array,
    seeds: jax.Array | None,
) -> _Fold:
  """Returns `(step, state) -> state`, a fold over the tiles of the codes.

  A step is `(state, part, logits, perturbed) -> state`, the last two `[T, S]`.
  What every pass wants of the scores is computed once where one tile holds all.
  """

  def scores(part: _Part) -> _Pair:
    # No -inf, whose share would be 0 times infinity.
    logits = jnp.maximum(_product(queries, part.of(keys).T), NEVER)
    if len(keys) > tiling.num_codes:
      codes = part.start + jnp.arange(part.size)
      logits = jnp.where(codes < tiling.num_codes, logits, NEVER)
    if not tiling.noisy:
      return logits, logits
    assert seeds is not None
    noise = counter_rng.gumbel(
        seeds, part.size, first_column=part.start, dtype=logits.dtype
    )
    # Else XLA makes the noise again for each of its uses.
    return logits, logits + jax.lax.optimization_barrier(noise)

  if tiling.codes == len(keys):
    everything = _Part(0, tiling.codes)
    known = scores(everything)
    return lambda step, state: step(state, everything, *known)

  def fold(
      step: Callable[[_State, _Part, jax.Array, jax.Array], _State],
      state: _State,
  ) -> _State:
    def body(index: jax.Array | int, state: _State) -> _State:
      part = _Part(index * tiling.codes, tiling.codes)
      return step(state, part, *scores(part))

    return numerics.loop(len(keys) // tiling.codes, body, state)

  return fold
