"""Codebooks: nearest codes, usage, and the k-means start.

Shapes: `N` points, `C` codes, `L` dimensions.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import blockwise
from gmvq_jax.ops import chunked_map
from gmvq_jax.ops import numerics
from gmvq_jax.ops import placement
from gmvq_jax.ops import soft_assignment


@placement.with_auto_axes('points', lambda x, _: placement.leading(x))
def nearest_codes(points: jax.Array, codebook: jax.Array) -> jax.Array:
  """Returns the code of the nearest codeword, `[...]` int32.

  Little is held at a time, however many points and codewords there are. There
  is no gradient.

  Args:
    points: `[..., L]`.
    codebook: `[C, L]`. Of codewords at equal distance the first wins.
  """
  points, codebook = jax.lax.stop_gradient(numerics.promote(points, codebook))
  # Far from the origin the difference of large squares would be lost.
  centre = jnp.mean(codebook, axis=0)
  keys = codebook - centre
  # Half of what |point|^2 is more than the squared distance is a product.
  energy = jnp.sum(jnp.square(keys), axis=-1, keepdims=True)
  keys = jnp.concatenate([keys, -energy / 2], axis=-1)
  shape = points.shape[:-1]
  devices = placement.num_devices(points)
  plan = soft_assignment.plan(
      'auto', math.prod(shape), len(codebook), devices
  )

  def of_tile(rows: jax.Array) -> tuple[tuple[()], jax.Array]:
    ones = jnp.ones_like(rows[:, :1])
    queries = jnp.concatenate([rows - centre, ones], axis=-1)
    return (), blockwise.largest(plan.codes, queries, keys)

  rows = points.reshape(-1, points.shape[-1])
  if plan.rows is None:
    _, codes = of_tile(rows)
  else:
    _, codes = chunked_map.fold(of_tile, plan.rows, plan.shards, rows)
  return codes.reshape(shape)


@placement.with_auto_axes('codes', lambda *_: placement.REPLICATED)
def code_counts(
    codes: jax.Array, num_codes: int, *, mask: jax.Array | None = None
) -> jax.Array:
  """Returns how often each code occurs, `[C]` float32.

  Args:
    codes: `[...]` integers in `[0, C)`.
    num_codes: C.
    mask: `[...]`, positions that count (True or a weight); all by default.
  """
  weights = None if mask is None else mask.reshape(-1).astype(jnp.float32)
  counts = jnp.bincount(codes.reshape(-1), weights, length=num_codes)
  return counts.astype(jnp.float32)


@placement.with_auto_axes(
    'points', lambda x, _: (placement.REPLICATED, placement.leading(x))
)
@functools.partial(
    jax.jit, static_argnames=('num_clusters', 'num_iterations')
)
def kmeans(
    key: chex.PRNGKey,
    points: jax.Array,
    num_clusters: int,
    *,
    num_iterations: int = 10,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Clusters points: a k-means++ start, then Lloyd's iterations.

  An empty cluster is re-seeded at the point farthest from its centroid. The
  result is a function of the key and the points, so it is the same on every
  host. Start: Arthur and Vassilvitskii 2007, "k-means++".

  Args:
    key: random key.
    points: `[N, L]`.
    num_clusters: C, at most the number of points that count.
    num_iterations: Lloyd's iterations.
    mask: `[N]`, points that count; all by default.

  Returns:
    `centroids [C, L]` and `assignments [N]` int32, the nearest of them.

  Raises:
    ValueError: when there are more clusters than points.
  """
  (points,) = numerics.promote(points)
  chex.assert_rank(points, 2)
  if num_clusters > points.shape[0]:
    raise ValueError(
        f'k-means: num_clusters={num_clusters} is more than the'
        f' {points.shape[0]} points given; it must be at most that'
    )
  weights = jnp.ones(points.shape[0], points.dtype)
  if mask is not None:
    weights = mask.astype(points.dtype)
    points = jnp.where(mask[:, None], points, 0)

  centroids = _kmeans_plus_plus(key, points, weights, num_clusters)

  centroids = jax.lax.fori_loop(
      0, num_iterations, lambda _, c: lloyd(points, weights, c), centroids
  )
  return centroids, nearest_codes(points, centroids)


@jax.jit
def lloyd(
    points: jax.Array, weights: jax.Array, centroids: jax.Array
) -> jax.Array:
  """Returns centroids `[C, L]` after one of Lloyd's iterations.

  Args:
    points: `[N, L]`.
    weights: `[N]`, of their type; those of weight 0 do not count.
    centroids: `[C, L]`. An empty cluster is re-seeded at the point farthest
      from its centroid.
  """
  assignments = nearest_codes(points, centroids)
  counts = jnp.zeros(len(centroids), points.dtype).at[assignments].add(weights)
  sums = jnp.zeros_like(centroids).at[assignments].add(
      points * weights[:, None]
  )
  means = sums / jnp.where(counts > 0, counts, 1)[:, None]
  # The k-th empty cluster takes the k-th worst represented point.
  empty = counts == 0
  distance = jnp.sum(jnp.square(points - centroids[assignments]), axis=-1)
  distance = jnp.where(weights > 0, distance, -1)
  _, worst = jax.lax.top_k(distance, len(centroids))
  rank = jnp.maximum(jnp.cumsum(empty) - 1, 0)
  return jnp.where(empty[:, None], points[worst[rank]], means)


def _kmeans_plus_plus(
    key: chex.PRNGKey,
    points: jax.Array,
    weights: jax.Array,
    num_clusters: int,
) -> jax.Array:
  """Picks points as centroids, each with probability ~ squared distance."""
  log_weights = jnp.log(weights)
  keys = jax.random.split(key, num_clusters)
  first = points[jax.random.categorical(keys[0], log_weights)]
  distance = jnp.sum(jnp.square(points - first), axis=-1)
  centroids = jnp.zeros((num_clusters, points.shape[1]), points.dtype)

  def pick(
      index: jax.Array, carry: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    centroids, distance = carry
    # The floor keeps a choice where all points are centroids already.
    tiny = jnp.finfo(points.dtype).tiny
    logits = jnp.log(jnp.maximum(distance, tiny)) + log_weights
    chosen = points[jax.random.categorical(keys[index], logits)]
    distance = jnp.minimum(
        distance, jnp.sum(jnp.square(points - chosen), axis=-1)
    )
    return centroids.at[index].set(chosen), distance

  last: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(
      1, num_clusters, pick, (centroids.at[0].set(first), distance)
  )
  return last[0]
