"""k-means, nearest codes and counts."""

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
from gmvq_jax import assignment
from gmvq_jax import codebook
from gmvq_jax import distributed


def clusters(rng, count=5, per=40, dim=3, spread=0.05):
  centres = 3 * rng.normal(size=(count, dim))
  noise = spread * rng.normal(size=(count, per, dim))
  points = (centres[:, None] + noise).reshape(-1, dim)
  return centres, jnp.asarray(rng.permutation(points), jnp.float32)


def inertia(points, centroids):
  distances = ((points[:, None] - centroids[None]) ** 2).sum(-1)
  return distances.min(axis=1).mean()


def test_nearest_codes_are_nearest(rng):
  points = rng.normal(size=(6, 4, 3)).astype(np.float32)
  codebook = rng.normal(size=(9, 3)).astype(np.float32)
  codes = gmvq_jax.nearest_codes(points, codebook)
  chex.assert_shape(codes, (6, 4))
  distances = ((points[:, :, None] - codebook) ** 2).sum(-1)
  np.testing.assert_array_equal(codes, distances.argmin(-1))
  twice = np.concatenate([codebook, codebook])
  np.testing.assert_array_equal(gmvq_jax.nearest_codes(points, twice), codes)


def test_code_counts(rng):
  codes = jnp.asarray(rng.integers(0, 5, (3, 4)))
  mask = jnp.asarray(rng.integers(0, 2, (3, 4)), bool)
  counts = gmvq_jax.code_counts(codes, 6)
  np.testing.assert_array_equal(counts, np.bincount(codes.ravel(), minlength=6))
  masked = gmvq_jax.code_counts(codes, 6, mask=mask)
  expected = np.bincount(np.asarray(codes)[mask], minlength=6)
  np.testing.assert_array_equal(masked, expected)


def test_kmeans_finds_clusters(rng):
  centres, points = clusters(rng)
  centroids, assignments = gmvq_jax.kmeans(jax.random.key(0), points, 5)
  chex.assert_shape([centroids, assignments], [(5, 3), (200,)])
  assert assignments.dtype == jnp.int32
  order = np.argmin(
      ((centres[:, None] - centroids[None]) ** 2).sum(-1), axis=1
  )
  assert sorted(order) == list(range(5))
  np.testing.assert_allclose(centroids[order], centres, atol=0.05)
  np.testing.assert_array_equal(
      assignments, gmvq_jax.nearest_codes(points, centroids)
  )


def test_kmeans_iterations_are_lloyds(rng, x64):
  """One iteration more, from the same start, is one by hand."""
  points = jnp.asarray(rng.normal(size=(60, 3)))
  key = jax.random.key(1)
  before, codes = gmvq_jax.kmeans(key, points, 4, num_iterations=2)
  after, _ = gmvq_jax.kmeans(key, points, 4, num_iterations=3)
  means = np.stack([points[codes == c].mean(0) for c in range(4)])
  np.testing.assert_allclose(after, means, rtol=1e-10)
  assert inertia(points, after) <= inertia(points, before)


def test_kmeans_start_spreads_more_than_random_points(rng):
  _, points = clusters(rng, count=20, per=20, dim=8)
  plus_plus, random = [], []
  for seed in range(10):
    start, _ = gmvq_jax.kmeans(
        jax.random.key(seed), points, 20, num_iterations=0
    )
    plus_plus.append(inertia(points, start))
    random.append(inertia(points, points[rng.permutation(400)[:20]]))
  assert np.mean(plus_plus) < 0.5 * np.mean(random)


def test_an_empty_cluster_moves_to_the_worst_represented_point():
  """Of three centroids on a point two are empty; a masked point counts not."""
  points = jnp.asarray([[0.0], [0.2], [3.0], [5.0], [99.0]])
  weights = jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0])
  centroids = jnp.zeros((3, 1))
  moved = codebook.lloyd(points, weights, centroids)
  np.testing.assert_allclose(moved[:, 0], [8.2 / 4, 5.0, 3.0], rtol=1e-6)


def test_kmeans_uses_every_cluster_though_points_repeat(rng):
  points = np.zeros((64, 2), np.float32)
  points[:40] = rng.normal(size=(40, 2))
  centroids, assignments = gmvq_jax.kmeans(
      jax.random.key(0), jnp.asarray(points), 32, num_iterations=20
  )
  chex.assert_tree_all_finite(centroids)
  assert len(np.unique(assignments)) == 32


def test_kmeans_ignores_what_is_masked(rng):
  _, points = clusters(rng)
  mask = jnp.arange(300) < 200
  padded = jnp.concatenate([points, jnp.full((100, 3), jnp.nan)])
  centroids, _ = gmvq_jax.kmeans(jax.random.key(0), padded, 5, mask=mask)
  chex.assert_tree_all_finite(centroids)
  assert inertia(points, centroids) < 0.02


def test_kmeans_is_the_same_however_points_are_divided(rng):
  _, points = clusters(rng)
  mesh = distributed.data_mesh()
  divided = jax.device_put(points, distributed.batched(mesh))
  assert len(divided.sharding.device_set) == 8
  one, codes = gmvq_jax.kmeans(jax.random.key(3), points, 5)
  many, many_codes = gmvq_jax.kmeans(jax.random.key(3), divided, 5)
  np.testing.assert_allclose(one, many, rtol=1e-5)
  np.testing.assert_array_equal(codes, many_codes)


def test_nearest_codes_far_from_the_origin(rng):
  points = 100 + 0.1 * rng.normal(size=(50, 16))
  book = 100 + 0.1 * rng.normal(size=(20, 16))
  expected = ((points[:, None] - book) ** 2).sum(-1).argmin(-1)
  got = gmvq_jax.nearest_codes(
      points.astype(np.float32), book.astype(np.float32)
  )
  assert np.mean(got == expected) > 0.99


def test_masked_points_are_never_centroids():
  points = jnp.asarray([[9.0], [9], [9], [50], [51], [51]])
  mask = jnp.asarray([False, False, False, True, True, True])
  centroids, _ = gmvq_jax.kmeans(jax.random.key(0), points, 3, mask=mask)
  assert jnp.all(centroids >= 50)


def test_kmeans_builds_no_array_of_every_difference():
  jaxpr = jax.make_jaxpr(lambda p: gmvq_jax.kmeans(jax.random.key(0), p, 16))(
      jnp.zeros((64, 9))
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
    gmvq_jax.kmeans(jax.random.key(0), jnp.zeros((4, 2)), 9)


@pytest.mark.parametrize('num_codes', [7, 50, 100])
def test_many_distances_are_searched_in_parts(rng, monkeypatch, num_codes):
  points = rng.normal(size=(7, 31, 4)).astype(np.float32)
  rows = rng.normal(size=(num_codes, 4)).astype(np.float32)
  rows[num_codes // 2 :] = rows[: -(num_codes // 2)]
  whole = codebook.nearest_codes(points, rows)
  for large, tile, max_codes in ((1, 50, 16), (1, 10**4, 16), (1, 300, 50)):
    monkeypatch.setattr(assignment, '_LARGE', large)
    monkeypatch.setattr(assignment, '_TILE', {'cpu': tile})
    monkeypatch.setattr(assignment, '_MIN_ROWS', 3)
    monkeypatch.setattr(assignment, '_MAX_TILE', 3 * max_codes)
    monkeypatch.setattr(assignment, '_MAX_CODES', max_codes)
    np.testing.assert_array_equal(codebook.nearest_codes(points, rows), whole)


def test_the_search_holds_little_and_sends_nothing():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  whole, divided = (
      NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('data',))
  )
  compiled = (
      jax.jit(
          codebook.nearest_codes,
          in_shardings=(divided, whole),
          out_shardings=divided,
      )
      .lower(
          jax.ShapeDtypeStruct((2**19, 64), jnp.float32),
          jax.ShapeDtypeStruct((2**14, 64), jnp.float32),
      )
      .compile()
  )
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'permute'):
    assert collective not in compiled.as_text()
  # The distances of one device's points would be 4 GiB.
  assert compiled.memory_analysis().temp_size_in_bytes < 2**25
