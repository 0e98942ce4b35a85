"""A function of rows, computed tile by tile so that little is held at a time.

What is kept for the backward pass is the rows themselves: it computes each tile
again. Shapes: `N` rows, `T` of them in a tile.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics


class Rows(NamedTuple):
  """Number of rows in a tile, T, for each platform.

  The platform is the one that the program is compiled for.

  Attributes:
    cpu: T on a CPU.
    other: T on a GPU or TPU.
  """

  cpu: int
  other: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def map_rows(
    function: Callable[..., tuple[Any, Any]],
    num_rows: Rows,
    shards: int,
    params: Any,
    rows: Any,
    seeds: Any,
) -> tuple[Any, Any]:
  """Returns `function(params, rows, seeds)`, computed by tiles.

  Every shard computes its own tiles, and only sums of shards are added. Where
  each lies on one device, nothing of the size of the rows leaves it.

  Args:
    function: `(params, rows, seeds) -> (sums, results)` of any number of rows:
      `sums` are added over tiles, `results [n, ...]` are of each row. Rows of
      zeros, which fill the last tile, must add nothing to sums. It closes over
      no traced value.
    num_rows: T, a tile's.
    shards: parts of the rows that are tiled apart: the devices they lie on.
    params: a pytree of floating-point arrays.
    rows: a pytree of floating-point arrays `[N, ...]`.
    seeds: a pytree of integer arrays `[N, ...]`.
  """
  return _forward(function, num_rows, shards, params, rows, seeds)[0]


def _forward(
    function: Callable[..., tuple[Any, Any]],
    num_rows: Rows,
    shards: int,
    params: Any,
    rows: Any,
    seeds: Any,
) -> tuple[tuple[Any, Any], tuple[Any, Any, Any]]:
  def of_tile(tile: Any) -> tuple[Any, Any]:
    return function(params, *tile)

  outputs = fold(of_tile, num_rows, shards, (rows, seeds))
  return outputs, (params, rows, seeds)


def _backward(
    function: Callable[..., tuple[Any, Any]],
    num_rows: Rows,
    shards: int,
    residuals: tuple[Any, Any, Any],
    gradients: tuple[Any, Any],
) -> tuple[Any, Any, None]:
  params, rows, seeds = residuals
  d_sums, d_results = gradients

  def of_tile(tile: Any) -> tuple[Any, Any]:
    rows, seeds, d_results = tile
    _, vjp = jax.vjp(lambda p, r: _floats(function(p, r, seeds)), params, rows)
    d_params, d_rows = vjp((d_sums, d_results))
    return d_params, d_rows

  d_params, d_rows = fold(
      of_tile, num_rows, shards, (rows, seeds, _floats(d_results))
  )
  return d_params, d_rows, None


map_rows.defvjp(_forward, _backward)


def _floats(tree: Any) -> Any:
  """Returns a tree without the leaves that have no gradient."""
  return jax.tree.map(
      lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, tree
  )


def fold(
    of_tile: Callable[[Any], tuple[Any, Any]],
    num_rows: Rows,
    shards: int,
    rows: Any,
) -> tuple[Any, Any]:
  """Returns the sums and the results of all tiles; see `map_rows`.

  It has no derivative of its own. The rows are sliced where they lie; to scan
  over them would copy them.

  Args:
    of_tile: `rows -> (sums, results)`.
    num_rows: T.
    shards: parts of the rows that are tiled apart.
    rows: a pytree of arrays `[N, ...]`.
  """
  per_shard = len(jax.tree.leaves(rows)[0]) // shards
  cpu, other = (min(n, per_shard) for n in num_rows)
  if cpu == other:
    return _fold(of_tile, cpu, shards, rows)
  result: tuple[Any, Any] = jax.lax.platform_dependent(
      rows,
      cpu=lambda rows: _fold(of_tile, cpu, shards, rows),
      default=lambda rows: _fold(of_tile, other, shards, rows),
  )
  return result


def _fold(
    of_tile: Callable[[Any], tuple[Any, Any]],
    num_rows: int,
    shards: int,
    rows: Any,
) -> tuple[Any, Any]:
  """Returns the result of `fold` for one T."""
  total = len(jax.tree.leaves(rows)[0])
  per_shard = total // shards
  padding = -per_shard % num_rows

  def divide(x: jax.Array) -> jax.Array:
    x = x.reshape(shards, per_shard, *x.shape[1:])
    return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

  def collect(x: jax.Array) -> jax.Array:
    return x[:, :per_shard].reshape(total, *x.shape[2:])

  def tile_at(start: jax.Array | int) -> Any:
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, num_rows, 1), rows
    )

  def step(
      index: jax.Array | int, carry: tuple[Any, Any]
  ) -> tuple[Any, Any]:
    start = index * num_rows
    new = jax.vmap(of_tile)(tile_at(start))
    sums = jax.tree.map(jnp.add, carry[0], new[0])
    results = jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, 1),
        carry[1],
        new[1],
    )
    return sums, results

  rows = jax.tree.map(divide, rows)
  sums, results = jax.eval_shape(lambda: jax.vmap(of_tile)(tile_at(0)))
  start = (
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums),
      jax.tree.map(
          lambda x: jnp.zeros(
              (shards, per_shard + padding, *x.shape[2:]), x.dtype
          ),
          results,
      ),
  )
  sums, results = numerics.loop(
      (per_shard + padding) // num_rows, step, start
  )
  sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
  return sums, jax.tree.map(collect, results)
