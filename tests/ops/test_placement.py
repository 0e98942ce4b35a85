"""Placement: how many devices, and meshes whose axes are Explicit."""

import chex
import compositions
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

import gmvq_jax
from gmvq_jax.ops import placement

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
DATA = PartitionSpec('data')


def mesh_of(sizes, *types):
  count = int(np.prod(sizes))
  return jax.make_mesh(
      sizes,
      ('data', 'model')[: len(sizes)],
      axis_types=types or None,
      devices=jax.devices()[:count],
  )


def put(x, mesh, spec=DATA):
  return jax.device_put(x, NamedSharding(mesh, spec))


@pytest.mark.parametrize('mesh', [
    mesh_of((4,), AUTO), mesh_of((4,)), mesh_of((2, 3), AUTO, EXPLICIT)
])  # fmt: skip
def test_devices_are_those_of_the_mesh(mesh):
  counts = []

  def count(x):
    counts.append(placement.num_devices(x))
    return jnp.tanh(x)

  x = put(np.ones((8, 3), np.float32), mesh)
  jax.eval_shape(count, np.ones(3))
  jax.eval_shape(count, x)
  with jax.set_mesh(mesh):
    jax.eval_shape(count, np.ones(3))
  # An axis that is mapped has one device at a time.
  mapped = jax.shard_map(
      count, mesh=mesh, in_specs=DATA, out_specs=DATA, axis_names={'data'}
  )
  with jax.set_mesh(mesh):
    jax.eval_shape(jax.jit(mapped), x)
  assert counts == [1, mesh.size, mesh.size, mesh.size // mesh.shape['data']]


VQVAE = compositions.of('vqvae', num_codes=9, dim=6)
QUANTIZERS = (VQVAE, gmvq_jax.residual(VQVAE, 2))


@jax.jit
def results(h, points, codebook, initial, key):
  """Returns what the public functions make of latents `[8, 4, 6]`."""

  def start(quantizer, initial):
    params, state = gmvq_jax.kmeans_start(key, quantizer, *initial, h)
    return params, gmvq_jax.top_codes(quantizer, params, state, h, 3)

  weights = jnp.exp(h)
  sampled = {
      method: gmvq_jax.sample_latents(
          key, h, weights, codebook, temperature=0.5, method=method
      )._replace(log_probs=())
      for method in ('plain', 'tiled')
  }
  codes = gmvq_jax.nearest_codes(h, codebook)
  return {
      'sampled': sampled,
      'probable': gmvq_jax.most_probable_latents(h, weights, codebook),
      'codes': codes,
      'counts': gmvq_jax.code_counts(codes, 9),
      'kmeans': gmvq_jax.kmeans(key, points, 5),
      'starts': list(map(start, QUANTIZERS, initial)),
  }


def test_public_functions_take_arrays_on_explicit_axes():
  rng = np.random.default_rng(0)
  h = rng.normal(size=(8, 4, 6)).astype(np.float32)
  codebook = rng.normal(size=(9, 6)).astype(np.float32)
  divided = (h, h.reshape(-1, 6))
  key = jax.random.key(0)
  whole = (codebook, [jax.jit(x.init)(key) for x in QUANTIZERS], key)
  mesh = mesh_of((4,))
  found = results(*put(divided, mesh), *put(whole, mesh, PartitionSpec()))
  chex.assert_trees_all_close(
      jax.device_get(found),
      jax.device_get(results(*divided, *whole)),
      rtol=1e-4,
      atol=1e-5,
  )
  for x in (found['codes'], found['probable'].z, found['sampled']['tiled'].z):
    assert x.sharding.spec[0] == 'data'
  assert found['counts'].sharding.is_fully_replicated


def test_depths_belong_to_examples_of_the_global_batch():
  inner = compositions.of('vqvae', num_codes=9, dim=6)
  quantizer = gmvq_jax.residual(inner, 4, dropout=True)
  params, state = jax.jit(quantizer.init)(jax.random.key(0))
  h = np.float32(np.random.default_rng(0).normal(size=(64, 2, 6)))

  def codes(h, axis_name=None):
    key = jax.random.key(1)
    quantized, _ = quantizer.apply(
        params, state, h, key=key, train=True, axis_name=axis_name
    )
    return quantized.codes

  whole = np.asarray(jax.jit(codes)(h))
  of_devices = jax.vmap(lambda h: codes(h, 'd'), axis_name='d')
  parts = jax.jit(of_devices)(h.reshape(4, 16, 2, 6))
  np.testing.assert_array_equal(parts.reshape(whole.shape), whole)
  depths = (whole >= 0).sum(-1)
  np.testing.assert_array_equal(depths[:, 0], depths[:, 1])
  assert set(depths[:, 0]) == {1, 2, 3, 4}
