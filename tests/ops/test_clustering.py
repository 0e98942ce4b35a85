"""k-means, nearest codes and counts."""

import functools

import chex
import jax
import jax.extend
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

import gmvq_jax
from gmvq_jax.ops import clustering
from gmvq_jax.ops import soft_assignment
from gmvq_jax.runtime import distributed

nearest_codes = jax.jit(gmvq_jax.nearest_codes)


@functools.partial(
    jax.jit, static_argnames=('num_clusters', 'num_iterations')
)
def kmeans(seed, points, num_clusters, *, num_iterations=10, mask=None):
  return gmvq_jax.kmeans(
      jax.random.key(seed),
      points,
      num_clusters,
      num_iterations=num_iterations,
      mask=mask,
  )


def clusters(rng, count=5, per=40, dim=3, spread=0.05):
  centres = 3 * rng.normal(size=(count, dim))
  noise = spread * rng.normal(size=(count, per, dim))
  points = (centres[:, None] + noise).reshape(-1, dim)
  return centres, rng.permutation(points).astype(np.float32)


def distances(points, centroids):
  """Returns all squared distances, in float64."""
  points, centroids = np.asarray(points, float), np.asarray(centroids, float)
  return ((points[..., None, :] - centroids) ** 2).sum(-1)


def inertia(points, centroids):
  return distances(points, centroids).min(axis=-1).mean()


def test_nearest_codes_are_nearest(rng):
  points = rng.normal(size=(6, 4, 3)).astype(np.float32)
  rows = rng.normal(size=(9, 3)).astype(np.float32)
  codes = np.asarray(nearest_codes(points, rows))
  chex.assert_shape(codes, (6, 4))
  np.testing.assert_array_equal(codes, distances(points, rows).argmin(-1))
  twice = np.concatenate([rows, rows])
  np.testing.assert_array_equal(
      nearest_codes(points, twice), codes, err_msg='the first of equals'
  )


def test_code_counts(rng):
  codes = rng.integers(0, 5, (3, 4))
  mask = rng.integers(0, 2, (3, 4)).astype(bool)
  counts, masked = jax.jit(
      lambda codes, mask: (
          gmvq_jax.code_counts(codes, 6),
          gmvq_jax.code_counts(codes, 6, mask=mask),
      )
  )(codes, mask)
  np.testing.assert_array_equal(counts, np.bincount(codes.ravel(), minlength=6))
  expected = np.bincount(codes[mask], minlength=6)
  np.testing.assert_array_equal(masked, expected, err_msg='masked')


def test_kmeans_finds_clusters(rng):
  centres, points = clusters(rng)
  centroids, assignments = jax.device_get(kmeans(0, points, 5))
  chex.assert_shape([centroids, assignments], [(5, 3), (200,)])
  assert assignments.dtype == np.int32
  order = distances(centres, centroids).argmin(axis=1)
  assert sorted(order) == list(range(5))
  np.testing.assert_allclose(centroids[order], centres, atol=0.05)
  np.testing.assert_array_equal(
      assignments, distances(points, centroids).argmin(-1)
  )


def test_kmeans_iterations_are_lloyds(rng, x64):
  """One iteration more, of the same initialisation, is one by hand."""
  points = rng.normal(size=(60, 3))
  before, codes = jax.device_get(kmeans(1, points, 4, num_iterations=2))
  after, _ = jax.device_get(kmeans(1, points, 4, num_iterations=3))
  means = np.stack([points[codes == c].mean(0) for c in range(4)])
  np.testing.assert_allclose(after, means, rtol=1e-10)
  assert inertia(points, after) <= inertia(points, before)


def test_kmeans_initialisation_spreads_more_than_random_points(rng):
  _, points = clusters(rng, count=20, per=20, dim=8)
  plus_plus, random = [], []
  for seed in range(10):
    centroids, _ = kmeans(seed, points, 20, num_iterations=0)
    plus_plus.append(inertia(points, centroids))
    random.append(inertia(points, points[rng.permutation(400)[:20]]))
  assert np.mean(plus_plus) < 0.5 * np.mean(random)


def test_an_empty_cluster_moves_to_the_worst_represented_point():
  """Of three centroids on a point two are empty; a masked point is ignored."""
  points = np.float32([[0.0], [0.2], [3.0], [5.0], [99.0]])
  weights = np.float32([1.0, 1.0, 1.0, 1.0, 0.0])
  moved = np.asarray(
      clustering.lloyd(points, weights, np.zeros((3, 1), np.float32))
  )
  np.testing.assert_allclose(moved[:, 0], [8.2 / 4, 5.0, 3.0], rtol=1e-6)


def test_kmeans_uses_every_cluster_though_points_repeat(rng):
  points = np.zeros((64, 2), np.float32)
  points[:40] = rng.normal(size=(40, 2))
  centroids, assignments = jax.device_get(
      kmeans(0, points, 32, num_iterations=20)
  )
  chex.assert_tree_all_finite(centroids)
  assert len(np.unique(assignments)) == 32


def test_kmeans_ignores_masked_points(rng):
  _, points = clusters(rng)
  mask = np.arange(300) < 200
  padded = np.concatenate([points, np.full((100, 3), np.nan, np.float32)])
  centroids, _ = jax.device_get(kmeans(0, padded, 5, mask=mask))
  chex.assert_tree_all_finite(centroids)
  assert inertia(points, centroids) < 0.02


def test_masked_points_are_never_centroids():
  """Though only as many count as there are clusters."""
  points = np.full((300, 3), 9, np.float32)
  points[-5:] = np.arange(50, 55)[:, None]
  mask = np.arange(300) >= 295
  centroids, _ = jax.device_get(kmeans(0, points, 5, mask=mask))
  np.testing.assert_allclose(np.sort(centroids[:, 0]), np.arange(50, 55))


def test_kmeans_is_the_same_however_points_are_divided(rng):
  _, points = clusters(rng)
  divided = jax.device_put(points, distributed.batched(distributed.data_mesh()))
  assert len(divided.sharding.device_set) == 8
  one, codes = jax.device_get(kmeans(3, points, 5))
  many, many_codes = jax.device_get(kmeans(3, divided, 5))
  np.testing.assert_allclose(one, many, rtol=1e-5)
  np.testing.assert_array_equal(codes, many_codes)


def test_nearest_codes_far_from_the_origin(rng):
  points = 100 + 0.1 * rng.normal(size=(50, 16))
  rows = 100 + 0.1 * rng.normal(size=(20, 16))
  expected = distances(points, rows).argmin(-1)
  found = nearest_codes(points.astype(np.float32), rows.astype(np.float32))
  assert np.mean(np.asarray(found) == expected) > 0.99


def test_kmeans_builds_no_array_of_every_difference():
  jaxpr = jax.make_jaxpr(lambda p: kmeans(0, p, 16))(
      np.zeros((64, 9), np.float32)
  )
  assert max(sizes(jaxpr.jaxpr)) <= 64 * 16


def sizes(jaxpr):
  """Sizes of all arrays in a jaxpr and in those inside it."""
  for eqn in jaxpr.eqns:
    yield from (v.aval.size for v in eqn.outvars)
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from sizes(inner)


def test_more_clusters_than_points_are_refused():
  with pytest.raises(ValueError, match='num_clusters=9 is more than the 4'):
    kmeans(0, np.zeros((4, 2), np.float32), 9)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    'num_codes, tile, max_codes',
    [
        (7, 50, 16),
        (50, 10**4, 16),
        (50, 300, 50),
        (100, 50, 16),
        pytest.param(7, 10**4, 16, marks=SLOW),
        pytest.param(7, 300, 50, marks=SLOW),
        pytest.param(50, 50, 16, marks=SLOW),
        pytest.param(100, 10**4, 16, marks=SLOW),
        pytest.param(100, 300, 50, marks=SLOW),
    ],
)
def test_many_distances_are_searched_in_parts(
    rng, monkeypatch, num_codes, tile, max_codes
):
  points = rng.normal(size=(7, 31, 4)).astype(np.float32)
  rows = rng.normal(size=(num_codes, 4)).astype(np.float32)
  rows[num_codes // 2 :] = rows[: -(num_codes // 2)]
  monkeypatch.setattr(soft_assignment, '_LARGE', 1)
  monkeypatch.setattr(soft_assignment, '_CPU_TILE', tile)
  monkeypatch.setattr(soft_assignment, '_MIN_ROWS', 3)
  monkeypatch.setattr(soft_assignment, '_MAX_TILE', 3 * max_codes)
  monkeypatch.setattr(soft_assignment, '_MAX_CODES', max_codes)
  # Not jitted before, in tiles of another size.
  search = jax.jit(lambda *arrays: clustering.nearest_codes(*arrays))
  codes = search(points, rows)
  np.testing.assert_array_equal(codes, distances(points, rows).argmin(-1))


def test_the_search_holds_little_and_sends_nothing():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  whole, divided = (
      NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('data',))
  )
  compiled = (
      jax.jit(clustering.nearest_codes, out_shardings=divided)
      .lower(
          jax.ShapeDtypeStruct((2**19, 64), jnp.float32, sharding=divided),
          jax.ShapeDtypeStruct((2**14, 64), jnp.float32, sharding=whole),
      )
      .compile()
  )
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'permute'):
    assert collective not in compiled.as_text()
  # The distances of one device's points would be 4 GiB.
  assert compiled.memory_analysis().temp_size_in_bytes < 2**25
