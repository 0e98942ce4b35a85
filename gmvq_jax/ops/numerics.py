"""The few numerical conventions that every formula here shares."""

from collections.abc import Callable
from typing import Any
from typing import TypeVar

import jax
import jax.numpy as jnp

# A matrix product in TF32 or bfloat16 (what GPUs and TPUs do by default) moves
# logits and distances enough to change which code wins.
PRECISION = jax.lax.Precision.HIGHEST

_State = TypeVar('_State')


def promote(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Brings arrays to one floating-point type, float32 or wider."""
  dtype = jnp.result_type(jnp.float32, *arrays)
  return tuple(jnp.asarray(array, dtype) for array in arrays)


def straight_through(value: jax.Array, surrogate: jax.Array) -> jax.Array:
  """Returns `value`, exactly, with the gradient of `surrogate`."""
  # The difference is an exact 0, so adding it rounds nothing.
  zero = surrogate - jax.lax.stop_gradient(surrogate)
  return jax.lax.stop_gradient(value) + zero


def norm(vectors: jax.Array) -> jax.Array:
  """Returns the norms of `vectors [..., L]`, `[..., 1]`; at least 1e-6."""
  square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
  return jnp.sqrt(jnp.maximum(square, 1e-12))


def normalize(vectors: jax.Array) -> jax.Array:
  """Returns `vectors [..., L]` at a norm of 1; those near 0 stay near it."""
  (vectors,) = promote(vectors)
  return vectors / norm(vectors)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns the matrix product of two arrays, at `PRECISION`."""
  return jnp.matmul(a, b, precision=PRECISION)


def row_sums(x: jax.Array) -> jax.Array:
  """Returns the sum of each row of `[N, C]`, `[N]`."""
  # XLA fuses what is summed into its reduction on a CPU, and computes it there
  # ten times slower than on the way to a matrix product.
  return product(x, jnp.ones(x.shape[1], x.dtype))


def argmax(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the maxima along the last axis, and where each is first, int32.

  Where there is a NaN the index is 0.
  """
  # jnp.argmax is scalar code on a CPU, five times slower than two reductions.
  best = jnp.max(scores, axis=-1)
  index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
  first = jnp.where(scores < best[..., None], scores.shape[-1] - 1, index)
  return best, jnp.min(first, axis=-1)


def loop(
    count: int,
    body: Callable[[jax.Array | int, _State], _State],
    state: _State,
) -> _State:
  """Returns `state` after `state = body(index, state)`, `count` times.

  A `fori_loop` whose state may start the same on all devices of a `shard_map`,
  and become each device's own.
  """
  after = jax.eval_shape(lambda state: body(0, state), state)
  state = jax.tree.map(lambda x, y: _vary(x, _varying(y)), state, after)
  last: _State = jax.lax.fori_loop(0, count, body, state)
  return last


def vary(tree: Any) -> Any:
  """Returns the arrays of a tree, each device's own if one of them is.

  What is the same on all devices of a `shard_map` has a gradient that is a sum
  over them. This takes care of it where `custom_vjp` would refuse.
  """
  axes = [_varying(jax.typeof(x)) for x in jax.tree.leaves(tree)]
  return jax.tree.map(lambda x: _vary(x, frozenset().union(*axes)), tree)


def _vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
  new = tuple(axes - _varying(jax.typeof(x)))
  return jax.lax.pcast(x, new, to='varying') if new else x


def _varying(kind: Any) -> frozenset[str]:
  """Returns the mapped axes along which a value of a type may differ."""
  axes = getattr(kind, 'manual_axis_type', None)  # JAX 0.10 and later.
  return getattr(kind, 'vma', frozenset()) if axes is None else axes.varying


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
