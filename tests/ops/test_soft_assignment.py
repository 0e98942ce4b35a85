"""Soft assignment: plain against NumPy, tiled against plain, shards, memory."""

import functools
import itertools
import re
from typing import NamedTuple

import chex
import compositions
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import placement
from gmvq_jax.ops import soft_assignment

SEED = 7
METHODS = ('plain', 'kept', 'tiled')
# One code, the relaxed mixture, or the most probable code without noise.
KINDS = ('hard', 'soft', 'still')
SHAPES = ((1,), (7,), (16, 3), (2, 8, 5))
NUM_CODES = (1, 3, 40, 41, 100)
# In float64. Those in float32 are in tiles of few codes, on eight shards.
REPRESENTATIVES = {
    ('hard', (7,), 40),
    ('soft', (7,), 40),
    ('soft', (16, 3), 100),
    ('still', (7,), 3),
}
SHAPE, CODES = (2, 8, 6), 41  # Of the tests in float32.


class Result(NamedTuple):
  """Everything that is known of positions."""

  z: jax.Array
  codes: jax.Array
  codewords: jax.Array
  entropy: jax.Array
  q_c: jax.Array


def operands(shape, num_codes, k=6, dim=5, dtype=np.float64):
  """Returns queries, keys, values, and weights of the rows."""
  rng = np.random.default_rng(0)
  arrays = (
      rng.normal(size=(*shape, k)),
      rng.normal(size=(num_codes, k)),
      rng.normal(size=(num_codes, dim)),
      rng.uniform(0.1, 1, shape),
  )
  return [x.astype(dtype) for x in arrays]


def operands32(shape=SHAPE, num_codes=CODES):
  return operands(shape, num_codes, k=32, dim=16, dtype=np.float32)


def assign(queries, keys, values, weights, temperature, *, kind, **kwargs):
  """Assigns positions by their queries."""

  def of_rows(plan, params, queries, weights, seeds):
    assigned = soft_assignment.assign(
        plan,
        queries,
        params['keys'],
        params['values'],
        weights=weights,
        seeds=seeds,
        temperature=params['temperature'],
        hard=kind != 'soft',
    )
    results = assigned._asdict()
    return results.pop('posterior'), results

  q_c, results = soft_assignment.map_positions(
      of_rows,
      {'keys': keys, 'values': values, 'temperature': temperature},
      queries,
      num_codes=len(keys),
      mask=weights,
      keys=None if kind == 'still' else jax.random.key(SEED),
      **kwargs,
  )
  return Result(q_c=q_c, **results)


@functools.cache
def program(method, kind):
  """Returns the compiled value and gradients of every argument.

  The value is a loss that every output takes part in.
  """

  def loss(*arguments):
    result = assign(*arguments, kind=kind, method=method)
    parts = (result.z, result.q_c, result.entropy, result.codewords)
    rng = np.random.default_rng(1)
    return sum(jnp.sum(x * rng.normal(size=x.shape)) for x in parts), result

  return jax.jit(jax.value_and_grad(loss, range(5), has_aux=True))


class Differentiated(NamedTuple):
  """What a program returns, in NumPy."""

  loss: np.ndarray
  result: Result
  gradients: tuple[np.ndarray, ...]


@pytest.fixture
def run(monkeypatch):
  """Runs a program in tiles of a few rows, and of a few codes from 41 on."""
  monkeypatch.setattr(placement, 'num_devices', lambda _: 8)
  monkeypatch.setattr(soft_assignment, '_CPU_TILE', 100)
  monkeypatch.setattr(soft_assignment, '_MIN_ROWS', 4)
  monkeypatch.setattr(soft_assignment, '_MAX_TILE', 160)
  monkeypatch.setattr(soft_assignment, '_MAX_CODES', 16)

  def run(method, kind, arrays, temperature):
    temperature = np.asarray(temperature, arrays[0].dtype)
    value, gradients = jax.device_get(
        program(method, kind)(*arrays, temperature)
    )
    return Differentiated(*value, gradients)

  return run


CASES = [
    pytest.param(
        *case, marks=() if case in REPRESENTATIVES else pytest.mark.slow
    )
    for case in itertools.product(KINDS, SHAPES, NUM_CODES)
]


@functools.cache
def gumbel():
  """Returns the noise of the most rows and codes, float64."""
  num_rows = max(int(np.prod(shape)) for shape in SHAPES)

  def sample():
    seeds = counter_rng.row_seeds(jax.random.key(SEED), num_rows)
    return counter_rng.gumbel(seeds, max(NUM_CODES), dtype=jnp.float64)

  return np.asarray(jax.jit(sample)())


@pytest.mark.parametrize('kind, shape, num_codes', CASES)
def test_plain_is_the_formula_and_the_others_change_nothing(
    x64, run, kind, shape, num_codes
):
  arrays = operands(shape, num_codes)
  plain = run('plain', kind, arrays, 0.6)
  check_against_numpy(plain.result, *arrays, 0.6, kind)
  for method in ('kept', 'tiled'):
    other = run(method, kind, arrays, 0.6)
    chex.assert_trees_all_close(plain, other, rtol=1e-8, atol=1e-10)


def check_against_numpy(actual, q, k, v, w, temperature, kind):
  q, w = q.reshape(-1, q.shape[-1]), w.reshape(-1)
  logits = q @ k.T
  probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  scores = logits
  if kind != 'still':
    scores = logits + gumbel()[: len(q), : len(k)]
  relaxed = np.exp(scores / temperature)
  relaxed /= relaxed.sum(1, keepdims=True)
  codes = scores.argmax(1)
  z = relaxed @ v if kind == 'soft' else v[codes]
  entropy = -(probs * np.log(probs)).sum(1)
  expected = Result(z, codes, v[codes], entropy, w @ probs / w.sum())
  for name, value in expected._asdict().items():
    found = getattr(actual, name).reshape(value.shape)
    np.testing.assert_allclose(found, value, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    'kind, shape, num_codes',
    [
        ('hard', SHAPE, CODES),
        ('still', SHAPE, CODES),
        pytest.param('hard', (96,), 1500, marks=pytest.mark.slow),
        pytest.param('soft', (96,), 1500, marks=pytest.mark.slow),
        pytest.param('hard', (500,), 64, marks=pytest.mark.slow),
        pytest.param('soft', (500,), 64, marks=pytest.mark.slow),
    ],
)
def test_methods_agree_in_float32(run, kind, shape, num_codes):
  arrays = operands32(shape, num_codes)
  plain, *others = (run(method, kind, arrays, 0.5) for method in METHODS)
  for other in others:
    np.testing.assert_array_equal(plain.result.codes, other.result.codes)
    difference = jax.tree.map(
        lambda a, b: np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-30),
        plain,
        other,
    )
    assert np.max(jax.tree.leaves(difference)) < 1e-5, difference


def test_extreme_logits_stay_finite(run):
  q, *others = operands32()
  for scale in (0.0, 1e4, 1e8):
    for method in ('kept', 'tiled'):
      everything = run(method, 'hard', [np.float32(scale) * q, *others], 1e-2)
      chex.assert_tree_all_finite(everything)


def test_a_nan_in_a_row_is_seen_in_its_result_alone(run):
  q, *others = operands32()
  q[1, 2, 3] = np.nan
  for method in METHODS:
    result = run(method, 'hard', [q, *others], 1.0).result
    nan = np.isnan(result.z)
    assert np.all(nan[1, 2, 3]), method
    assert result.codes[1, 2, 3] == 0, method
    assert np.sum(nan) == nan.shape[-1], method


@pytest.mark.parametrize('kind', ['hard', 'still'])
def test_a_code_may_have_a_logit_of_minus_infinity(run, kind):
  q, k, v, w = operands32()
  q[..., 0], k[7, 0] = 1, -np.inf
  plain, *others = (
      run(method, kind, [q, k, v, w], 1.0).result for method in METHODS
  )
  for other in others:
    chex.assert_trees_all_close(plain, other, rtol=1e-5, atol=1e-6)
    assert other.q_c[7] == 0


def test_of_equal_codes_the_first_wins(run):
  arrays = [np.ones_like(x) for x in operands32()]
  for method in METHODS:
    codes = run(method, 'still', arrays, 1.0).result.codes
    np.testing.assert_array_equal(codes, 0, err_msg=method)


def test_codes_are_samples_of_the_posterior(run):
  """40,000 rows of one query, by a chi-squared test."""
  _, k, v, _ = operands((1,), 60, dtype=np.float32)
  query = np.random.default_rng(1).normal(size=6).astype(np.float32)
  queries, weights = np.tile(query, (40_000, 1)), np.ones(40_000, np.float32)
  assign_tiled = functools.partial(assign, kind='hard', method='tiled')
  codes = jax.jit(assign_tiled)(queries, k, v, weights, np.float32(1)).codes
  counts = np.bincount(codes, minlength=60)
  expected = np.exp(query @ k.T)
  expected *= 40_000 / expected.sum()
  chi2 = np.sum((counts - expected) ** 2 / expected)
  assert chi2 < 60 + 5 * np.sqrt(2 * 60)


@pytest.mark.parametrize('method', METHODS)
def test_rows_on_several_devices_are_assigned_as_on_one(run, method):
  q, k, v, w = operands32()
  whole = run(method, 'hard', [q, k, v, w], 0.7).result

  def of_device(q, w, temperature):
    return assign(
        q, k, v, w, temperature, kind='hard', method=method, axis_name='devices'
    )

  of_devices = jax.jit(
      jax.vmap(of_device, in_axes=(0, 0, None), axis_name='devices')
  )
  parts = jax.device_get(
      of_devices(
          q.reshape(4, 4, 6, -1), w.reshape(4, 4, 6), np.float32(0.7)
      )
  )
  np.testing.assert_array_equal(parts.codes.reshape(SHAPE), whole.codes)
  np.testing.assert_allclose(parts.z.reshape(whole.z.shape), whole.z)
  for q_c in parts.q_c:
    np.testing.assert_allclose(q_c, whole.q_c, rtol=1e-5)


@functools.cache
def compiled_gradient(name, method, num_codes, max_codes=None, mesh=(8,)):
  """Compiles a gradient through `Quantizer.apply`.

  2^17 rows are divided over the first axis of a mesh of sizes, 8 in all, whose
  axes are Explicit where they are negative. `max_codes` is of a tile.
  """
  dim = 64
  quantizer = compositions.make(
      name, num_codes=num_codes, dim=dim, gamma=0.1, beta=2.0, assignment=method
  )
  types = tuple(
      AxisType.Auto if size > 0 else AxisType.Explicit for size in mesh
  )
  mesh = jax.make_mesh(
      tuple(map(abs, mesh)), ('data', 'model')[: len(mesh)], axis_types=types
  )
  whole, divided = (
      NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('data',))
  )

  def place(tree, sharding):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
    )

  key = jax.eval_shape(lambda: jax.random.key(SEED))
  params, state = jax.eval_shape(quantizer.init, key)
  h = jax.ShapeDtypeStruct((2**17, sum(quantizer.heads)), jnp.float32)

  def loss(params, h, key):
    quantized, _ = quantizer.apply(
        params, state, h, key=key, temperature=0.5, train=True
    )
    return jnp.sum(jnp.square(quantized.z)) + quantized.loss

  gradient = jax.jit(
      jax.grad(loss, argnums=(0, 1)), out_shardings=(whole, divided)
  )
  with pytest.MonkeyPatch.context() as patch:
    if max_codes:
      patch.setattr(soft_assignment, '_MAX_TILE', 2**15)
      patch.setattr(soft_assignment, '_MAX_CODES', max_codes)
    return gradient.lower(
        place(params, whole), place(h, divided), place(key, whole)
    ).compile()


@pytest.mark.parametrize(
    'name, method, max_codes, mesh',
    [
        ('gmvq', 'tiled', None, (8,)),
        ('gmvq', 'auto', None, (-4, 2)),
        ('sqvae', 'tiled', None, (-4, 2)),
        ('gumbel', 'tiled', 128, (-8,)),
        *(
            pytest.param(name, method, max_codes, mesh, marks=pytest.mark.slow)
            for name in ('gmvq', 'sqvae', 'gumbel')
            for method, max_codes in (
                ('tiled', None),
                ('tiled', 128),
                ('auto', None),
            )
            for mesh in ((8,), (-8,), (4, 2), (-4, -2))
        ),
    ],
)
def test_no_collective_grows_with_the_rows(name, method, max_codes, mesh):
  """Tiled, or (`auto`) with what is kept on each device."""
  num_codes, dim = 1000, 64
  text = compiled_gradient(name, method, num_codes, max_codes, mesh).as_text()
  # None within a loop, which would send it for every tile.
  before, entry = text.split('ENTRY ')
  assert not collectives(before)
  sizes = collectives(entry)
  # Of the codes or a scalar: neither rows nor tiles are a multiple of 1000.
  assert all(size == 1 or size % num_codes == 0 for size in sizes), sizes
  # Gradients of the codebook are L times larger.
  of_codes = [s for s in sizes if num_codes <= s < num_codes * dim]
  assert len(of_codes) <= 2, sizes
  assert max(sizes) <= num_codes * (dim + 3)


def test_memory_is_a_ninth_of_the_plain_version():
  plain, tiled = (
      compiled_gradient('gmvq', method, 1000)
      .memory_analysis()
      .temp_size_in_bytes
      for method in ('plain', 'tiled')
  )
  assert tiled < plain / 9


def collectives(text):
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


def test_auto_chooses_by_size_and_devices(monkeypatch):
  monkeypatch.setattr(soft_assignment, '_LARGE', 1000)
  monkeypatch.setattr(soft_assignment, '_KEPT', 2000)
  plan = functools.partial(soft_assignment.plan, 'auto', num_codes=111)
  assert plan(num_rows=9, devices=8, keep=True).plain
  assert plan(num_rows=10, devices=8, keep=True).rows is not None
  assert plan(num_rows=9, devices=1, keep=True).plain
  assert plan(num_rows=10, devices=1, keep=True).kept
  assert plan(num_rows=10, devices=1).rows is not None
  assert plan(num_rows=20, devices=1, keep=True).rows is not None
  assert plan(num_rows=16, devices=8, keep=True)[1:] == (111, 8, True)
  assert plan(num_rows=160, devices=8, keep=True).rows is not None


def test_a_tile_holds_few_rows_and_few_codes():
  assert soft_assignment.plan('plain', 2**20, 2**20, 8).rows is None
  for num_codes in (3, 1024, 65_536, 2**20, 2**20 + 1):
    plan = soft_assignment.plan('tiled', 2**20, num_codes, 8)
    assert plan.codes <= num_codes
    assert plan.shards == 8
    whole = soft_assignment.plan('tiled', 2**20, num_codes, 8, whole=True)
    assert whole.codes == num_codes
    assert whole.shards == 8
    for rows in plan.rows:
      assert rows * plan.codes * 8 <= 2**22
      assert rows >= 64
    for rows in whole.rows:
      assert rows * num_codes * 8 <= max(2**22, 8 * num_codes)
  assert soft_assignment.plan('tiled', 2**20, 1024, 1).rows == (128, 4096)
  assert soft_assignment.plan('tiled', 0, 1024, 8).rows is None
  assert soft_assignment.plan('tiled', 2**20 + 4, 1024, 8).shards == 4
