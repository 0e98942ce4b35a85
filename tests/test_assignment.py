"""Soft assignment: plain against NumPy, tiled against plain, shards, memory."""

import functools
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from gmvq_jax import assignment
from gmvq_jax import noise
from gmvq_jax import quantizers

KEY = jax.random.key(7)


def operands(rng, shape, num_codes, k=6, dim=5, dtype=np.float32):
  """Queries, keys, values, and weights of the rows."""
  arrays = (
      rng.normal(size=(*shape, k)),
      rng.normal(size=(num_codes, k)),
      rng.normal(size=(num_codes, dim)),
      rng.uniform(0.1, 1, shape),
  )
  return [jnp.asarray(x, dtype) for x in arrays]


class Result(NamedTuple):
  """Everything that is known of positions."""

  z: jax.Array
  codes: jax.Array
  codewords: jax.Array
  entropy: jax.Array
  q_c: jax.Array


def assign(
    queries,
    keys,
    values,
    *,
    key=None,
    temperature=1.0,
    hard=True,
    mask=None,
    **kwargs,
):
  """Assigns positions by their queries."""

  def of_rows(plan, params, queries, weights, seeds):
    assigned = assignment.assign(
        plan,
        queries,
        params['keys'],
        params['values'],
        weights=weights,
        seeds=seeds,
        temperature=params['temperature'],
        hard=hard,
    )
    results = assigned._asdict()
    return results.pop('posterior'), results

  params = {
      'keys': keys,
      'values': values,
      'temperature': jnp.asarray(temperature, keys.dtype),
  }
  if mask is None:
    mask = jnp.ones(queries.shape[:-1], bool)
  q_c, results = assignment.map_positions(
      of_rows,
      params,
      queries,
      num_codes=len(keys),
      mask=mask,
      keys=key,
      **kwargs,
  )
  return Result(q_c=q_c, **results)


def scalar(queries, keys, values, weights, temperature, **kwargs):
  """A loss that every output and so every gradient takes part in."""
  result = assign(
      queries, keys, values, temperature=temperature, mask=weights, **kwargs
  )
  parts = (result.z, result.q_c, result.entropy, result.codewords)
  rng = np.random.default_rng(1)
  loss = sum(jnp.sum(x * rng.normal(size=x.shape)) for x in parts)
  return loss, result


def value_and_gradients(arrays, temperature, **kwargs):
  def loss(*arguments):
    return scalar(*arguments, **kwargs)

  dtype = arrays[0].dtype
  return jax.jit(jax.value_and_grad(loss, range(5), has_aux=True))(
      *arrays, jnp.asarray(temperature, dtype)
  )


@pytest.fixture
def small_tiles(monkeypatch):
  """Tiles of a few rows, and of a few codes from 41 codes on."""
  monkeypatch.setattr(assignment, '_TILE', {'cpu': 100})
  monkeypatch.setattr(assignment, '_MIN_ROWS', 4)
  monkeypatch.setattr(assignment, '_MAX_TILE', 160)
  monkeypatch.setattr(assignment, '_MAX_CODES', 16)


@pytest.mark.parametrize('hard', [True, False])
@pytest.mark.parametrize('method', ['plain', 'tiled'])
def test_against_numpy(rng, x64, small_tiles, method, hard):
  n, c, tau = 24, 50, 0.6
  q, k, v, w = operands(rng, (n,), c, dtype=np.float64)
  actual = assign(
      q, k, v, key=KEY, temperature=tau, hard=hard, mask=w, method=method
  )
  gumbel = noise.gumbel(noise.row_seeds(KEY, n), c, dtype=jnp.float64)
  q, k, v, w, gumbel = map(np.asarray, (q, k, v, w, gumbel))
  logits = q @ k.T
  probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  relaxed = np.exp((logits + gumbel) / tau)
  relaxed /= relaxed.sum(1, keepdims=True)
  codes = (logits + gumbel).argmax(1)
  np.testing.assert_array_equal(actual.codes, codes)
  np.testing.assert_array_equal(actual.codewords, v[codes])
  np.testing.assert_allclose(actual.z, v[codes] if hard else relaxed @ v)
  np.testing.assert_allclose(actual.q_c, w @ probs / w.sum())
  entropy = -(probs * np.log(probs)).sum(1)
  np.testing.assert_allclose(actual.entropy, entropy)


@pytest.mark.parametrize('num_codes', [1, 3, 40, 41, 100])
@pytest.mark.parametrize('shape', [(1,), (7,), (16, 3), (2, 8, 5)])
@pytest.mark.parametrize('kind', ['hard', 'soft', 'still'])
def test_tiles_change_nothing(rng, x64, small_tiles, kind, shape, num_codes):
  arrays = operands(rng, shape, num_codes, dtype=np.float64)
  kwargs = dict(key=None if kind == 'still' else KEY, hard=kind != 'soft')
  plain, tiles = (
      value_and_gradients(arrays, 0.5, method=method, **kwargs)
      for method in ('plain', 'tiled')
  )
  chex.assert_trees_all_close(plain, tiles, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('num_rows, num_codes', [(500, 64), (96, 1500)])
@pytest.mark.parametrize('hard', [True, False])
def test_tiles_change_nothing_in_float32(
    rng, small_tiles, hard, num_rows, num_codes
):
  arrays = operands(rng, (num_rows,), num_codes, k=32, dim=16)
  plain, tiles = (
      value_and_gradients(arrays, 0.5, method=method, key=KEY, hard=hard)
      for method in ('plain', 'tiled')
  )
  np.testing.assert_array_equal(plain[0][1].codes, tiles[0][1].codes)
  scale = jax.tree.map(lambda x: jnp.max(jnp.abs(x)), plain)
  difference = jax.tree.map(
      lambda a, b, s: jnp.max(jnp.abs(a - b)) / s, plain, tiles, scale
  )
  assert max(jax.tree.leaves(difference[1])) < 1e-5
  assert max(jax.tree.leaves(difference[0])) < 1e-5


def test_extreme_logits_stay_finite(rng, small_tiles):
  q, k, v, w = operands(rng, (16,), 50)
  for scale in (0.0, 1e4, 1e8):
    (loss, result), gradients = value_and_gradients(
        [scale * q, k, v, w], 1e-2, method='tiled', key=KEY
    )
    chex.assert_tree_all_finite((loss, result, gradients))


def test_a_nan_is_seen_and_a_code_may_be_impossible(rng, small_tiles):
  q, k, v, w = operands(rng, (16,), 50)
  broken = q.at[3].set(jnp.nan)
  for method in ('plain', 'tiled'):
    result = assign(broken, k, v, key=KEY, method=method)
    assert jnp.all(jnp.isnan(result.z[3]))
    chex.assert_tree_all_finite(result.z[4:])
    assert result.codes[3] == 0
  # A logit of -inf.
  q, k = q.at[:, 0].set(1), k.at[7, 0].set(-jnp.inf)
  for key in (KEY, None):
    plain, tiles = (
        assign(q, k, v, key=key, method=method) for method in ('plain', 'tiled')
    )
    chex.assert_trees_all_close(plain, tiles, rtol=1e-5, atol=1e-6)
    assert tiles.q_c[7] == 0


def test_equals_take_the_first_code(small_tiles):
  q, k, v = jnp.ones((8, 2)), jnp.ones((50, 2)), jnp.ones((50, 3))
  for method in ('plain', 'tiled'):
    codes = assign(q, k, v, method=method).codes
    np.testing.assert_array_equal(codes, 0)


def test_codes_are_drawn_from_the_posterior(rng, small_tiles):
  _, k, v, _ = operands(rng, (1,), 60)
  query = jnp.asarray(rng.normal(size=6), jnp.float32)
  queries = jnp.broadcast_to(query, (40_000, 6))
  result = jax.jit(
      functools.partial(assign, method='tiled', key=KEY)
  )(queries, k, v)
  counts = np.bincount(result.codes, minlength=60)
  expected = 40_000 * np.asarray(result.q_c, np.float64)
  chi2 = np.sum((counts - expected) ** 2 / expected)
  assert chi2 < 60 + 5 * np.sqrt(2 * 60)


def test_a_part_of_the_rows_on_each_device_is_the_same(rng, small_tiles):
  arrays = operands(rng, (16, 3), 50)
  kwargs = dict(key=KEY, temperature=0.7)
  for method in ('plain', 'tiled'):
    this = functools.partial(assign, method=method, **kwargs)
    whole = this(*arrays[:3], mask=arrays[3])
    parts = jax.vmap(
        lambda q, w, this=this: this(
            q, *arrays[1:3], mask=w, axis_name='devices'
        ),
        axis_name='devices',
    )(arrays[0].reshape(4, 4, 3, -1), arrays[3].reshape(4, 4, 3))
    np.testing.assert_array_equal(parts.codes.reshape(16, 3), whole.codes)
    for q_c in parts.q_c:
      np.testing.assert_allclose(q_c, whole.q_c, rtol=1e-5)


def _compile(quantizer, num_rows, num_devices):
  """Compiles a gradient through `Quantizer.apply`, rows over the devices."""
  mesh = jax.make_mesh(
      (num_devices,),
      ('data',),
      axis_types=(AxisType.Auto,),
      devices=jax.devices()[:num_devices],
  )
  whole, divided = (
      NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('data',))
  )
  params, state = jax.eval_shape(quantizer.init, KEY)

  def loss(params, h, key):
    quantized, _ = quantizer.apply(
        params, state, h, key=key, temperature=0.5, train=True
    )
    return jnp.sum(jnp.square(quantized.z)) + quantized.loss

  h = jax.ShapeDtypeStruct((num_rows, sum(quantizer.heads)), jnp.float32)
  return (
      jax.jit(
          jax.grad(loss, argnums=(0, 1)),
          in_shardings=(whole, divided, whole),
          out_shardings=(whole, divided),
      )
      .lower(params, h, KEY)
      .compile()
  )


@pytest.mark.parametrize('name', ['gmvq', 'sqvae', 'gumbel'])
@pytest.mark.parametrize('num_codes, max_codes', [(1024, None), (1000, 128)])
def test_no_collective_grows_with_the_rows(
    monkeypatch, name, num_codes, max_codes
):
  if max_codes:
    monkeypatch.setattr(assignment, '_MAX_TILE', 2**15)
    monkeypatch.setattr(assignment, '_MAX_CODES', max_codes)
  dim = 8
  quantizer = quantizers.make(
      name, num_codes=num_codes, dim=dim, gamma=0.1, beta=2.0,
      assignment='tiled',
  )  # fmt: skip
  sizes = []
  for num_rows in (4096, 16384):
    text = _compile(quantizer, num_rows, 4).as_text()
    # None within a loop, which would send it for every tile.
    before, entry = text.split('ENTRY ')
    assert not _collectives(before)
    sizes.append(_collectives(entry))
  assert sizes[0] == sizes[1]
  # Gradients of the codebook are L times larger.
  of_codes = [s for s in sizes[0] if num_codes <= s < num_codes * dim]
  assert len(of_codes) <= 2
  assert max(sizes[0]) <= num_codes * (2 * dim + 3)


def _collectives(text):
  """Returns the elements of each array that a compiled program sends."""
  pattern = (
      r'= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute'
      r'|reduce-scatter)(?:-start)?\('
  )
  sizes = []
  for shapes in re.findall(pattern, text):
    for dims in re.findall(r'\w+\[([\d,]*)\]', shapes):
      sizes.append(int(np.prod([int(d) for d in dims.split(',') if d])))
  return sorted(sizes)


def test_memory_is_a_tenth_of_the_plain_version():
  def temporary(method):
    quantizer = quantizers.gmvq(
        1024, 64, gamma=0.01, beta=10.0, assignment=method
    )
    compiled = _compile(quantizer, 8 * 16384, 8)
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary('tiled') < temporary('plain') / 10


def test_auto_is_tiled_for_large_ones(monkeypatch):
  monkeypatch.setattr(assignment, '_LARGE', 1000)
  assert assignment.plan('auto', 9, 111).rows is None
  assert assignment.plan('auto', 10, 111).rows is not None


def test_a_tile_holds_few_rows_and_few_codes():
  assert assignment.plan('plain', 2**20, 2**20).rows is None
  for num_codes in (3, 1024, 65_536, 2**20, 2**20 + 1):
    plan = assignment.plan('tiled', 2**20, num_codes)
    assert plan.rows * plan.codes * plan.shards <= 2**22
    assert plan.rows >= 64
    assert plan.codes <= num_codes
    assert plan.shards == 8
    whole = assignment.plan('tiled', 2**20, num_codes, whole=True)
    assert whole.codes == num_codes
    assert whole.rows * whole.codes * whole.shards <= max(2**22, 8 * num_codes)
  assert assignment.plan('tiled', 0, 1024).rows is None
  assert assignment.plan('tiled', 2**20 + 1, 1024).shards == 1
  assert assignment.plan('tiled', 2**20, 1024, 'devices').shards == 1
