"""The few numerical conventions that every formula here shares."""

import jax
import jax.numpy as jnp

# A matrix product in TF32 or bfloat16 (what GPUs and TPUs do by default) moves
# logits and distances enough to change which code wins.
PRECISION = jax.lax.Precision.HIGHEST


def promote(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Brings arrays to one floating-point type, float32 or wider."""
  dtype = jnp.result_type(jnp.float32, *arrays)
  return tuple(jnp.asarray(array, dtype) for array in arrays)


def straight_through(value: jax.Array, surrogate: jax.Array) -> jax.Array:
  """Returns `value`, exactly, with the gradient of `surrogate`."""
  # The difference is an exact 0, so adding it rounds nothing.
  zero = surrogate - jax.lax.stop_gradient(surrogate)
  return jax.lax.stop_gradient(value) + zero


def argmax(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the maxima along the last axis, and where each is first, int32.

  Where there is a NaN the index is the last.
  """
  # jnp.argmax is scalar code on a CPU, five times slower than two reductions.
  best = jnp.max(scores, axis=-1)
  index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
  first = jnp.where(scores == best[..., None], index, scores.shape[-1] - 1)
  return best, jnp.min(first, axis=-1)


def masked_mean(
    values: jax.Array,
    mask: jax.Array,
    *,
    axis_name: str | None = None,
) -> jax.Array:
  """Returns the mean of `values` over positions that count, on all devices.

  Args:
    values: `[..., *rest]`.
    mask: `[...]`, positions that count (True or a weight). The value of any
      other may be anything, NaN too.
    axis_name: a mapped axis (of `pmap` or `shard_map`) to average over as well.
      Under `jit` on sharded arrays the mean is global already.

  Returns:
    `[*rest]`. 0 if the mask leaves nothing.
  """
  (values,) = promote(values)
  mask = mask.astype(values.dtype)
  axes = tuple(range(mask.ndim))
  mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
  total = jnp.sum(jnp.where(mask > 0, values, 0) * mask, axis=axes)
  count = jnp.sum(mask)
  if axis_name is not None:
    total, count = jax.lax.psum((total, count), axis_name)
  return total / jnp.maximum(count, jnp.finfo(values.dtype).tiny)
