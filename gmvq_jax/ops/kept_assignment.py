"""Soft assignment of all rows at once, whose backward pass has no exponential.

The forward pass keeps two arrays of `[N, C]`: the probabilities, and the
relaxed one-hot. `blockwise` computes the same in tiles, without them.

Shapes: `N` rows, `C` codes, `K` the dimension of queries and keys, `L` that of
values.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gmvq_jax.ops import blockwise
from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def assign(
    noisy: bool,
    soft: bool,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    temperature: jax.Array,
    weights: jax.Array,
    seeds: jax.Array,
) -> blockwise.Outputs:
  """Returns what `blockwise.assign` does of rows `[N, ...]`.

  Args:
    noisy: see `blockwise.Tiling`.
    soft: see `blockwise.Tiling`.
    queries: `[N, K]`.
    keys: `[C, K]`.
    values: `[C, L]`.
    temperature: `[]`.
    weights: `[N]`, of the rows in `posterior`.
    seeds: `[N, 2]` uint32, of their noise.
  """
  inputs = (queries, keys, values, temperature, weights, seeds)
  return _compute(noisy, soft, *inputs)[0]


def _compute(
    noisy: bool,
    soft: bool,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    temperature: jax.Array,
    weights: jax.Array,
    seeds: jax.Array,
) -> tuple[blockwise.Outputs, Any]:
  product, row_sums = numerics.product, numerics.row_sums

  # The posterior q(c|x), its entropy, and its sum over the rows.
  logits = jnp.maximum(product(queries, keys.T), blockwise.NEVER)
  centred = logits - jnp.max(logits, axis=-1, keepdims=True)
  probs = jnp.exp(centred)
  total = row_sums(probs)
  entropy = jnp.log(total) - row_sums(probs * centred) / total
  posterior = product(weights / total, probs)

  # A sample of it, and the relaxed one-hot.
  scores, chosen = centred, None
  if noisy:
    noise = counter_rng.gumbel(seeds, len(keys), dtype=centred.dtype)
    # Else XLA makes the noise again for each of its uses.
    scores += jax.lax.optimization_barrier(noise)
  best, codes = numerics.argmax(scores)
  relaxed = jnp.zeros((len(queries), values.shape[1]), values.dtype)
  relaxed += 0 * best[:, None]  # So that a NaN is seen.
  if noisy:
    one_hot = jnp.exp((scores - best[:, None]) / temperature)
    chosen = one_hot, row_sums(one_hot)
    if soft:
      relaxed = product(one_hot, values) / chosen[1][:, None]

  outputs = blockwise.Outputs(codes, relaxed, posterior, entropy)
  inputs = (queries, keys, values, temperature, weights)
  return outputs, (inputs, (probs, total, entropy), chosen)


def _forward(
    noisy: bool, soft: bool, *inputs: Any
) -> tuple[blockwise.Outputs, Any]:
  return _compute(noisy, soft, *(x.value for x in inputs))


def _backward(
    noisy: bool, soft: bool, kept: Any, gradients: blockwise.Outputs
) -> tuple[Any, ...]:
  product, row_sums = numerics.product, numerics.row_sums
  inputs, (probs, total, entropy), chosen = kept
  queries, keys, values, temperature, weights = inputs
  _, d_relaxed, d_posterior, d_entropy = gradients
  d_logits = jnp.zeros((), probs.dtype)
  d_values, d_weights = jnp.zeros_like(values), jnp.zeros_like(weights)
  d_temperature = jnp.zeros_like(temperature)

  if not _is_zero(d_posterior):
    d_weights = product(probs, d_posterior) / total
    slope = d_posterior - d_weights[:, None]
    d_logits += probs * ((weights / total)[:, None] * slope)
  if not _is_zero(d_entropy):
    log_probs = jnp.log(jnp.where(probs > 0, probs / total[:, None], 1))
    rise = log_probs + entropy[:, None]
    d_logits -= probs * ((d_entropy / total)[:, None] * rise)
  if noisy and not _is_zero(d_relaxed):
    one_hot, norm = chosen
    slope = product(d_relaxed, values.T)
    slope -= (row_sums(one_hot * slope) / norm)[:, None]
    d_scores = one_hot * (slope / (norm * temperature)[:, None])
    d_logits += d_scores
    # Both add up to 0 over codes, so that the scores may begin at the largest.
    below = jnp.log(jnp.where(one_hot > 0, one_hot, 1))
    d_temperature -= jnp.sum(row_sums(d_scores * below))
    if soft:
      d_values = product((d_relaxed / norm[:, None]).T, one_hot).T

  # Else XLA computes them again for each of the products.
  d_logits = jax.lax.optimization_barrier(
      jnp.broadcast_to(d_logits, probs.shape)
  )
  d_queries = product(d_logits, keys)
  d_keys = product(queries.T, d_logits).T
  return d_queries, d_keys, d_values, d_temperature, d_weights, None


assign.defvjp(_forward, _backward, symbolic_zeros=True)


def _is_zero(gradient: Any) -> bool:
  return isinstance(gradient, jax.custom_derivatives.SymbolicZero)
