"""The promises of every quantizer, and those of GM-VQ.

What a promise is checked on is computed once for each quantizer, by two
programs: `evaluated` and `trained`, of NumPy arrays.
"""

import contextlib
import functools
import math
import re
from typing import Any
from typing import NamedTuple

import chex
from compiled import call
from compiled import init
import compositions
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest
import reference

import gmvq_jax
from gmvq_jax import quantizers
from gmvq_jax.ops import albo
from gmvq_jax.ops import posterior
from gmvq_jax.ops import soft_assignment
from gmvq_jax.runtime import distributed
from gmvq_jax.training import checkpoint

C, L = 16, 4
FIELDS = dict(num_codes=C, dim=L, gamma=0.1, beta=0.5, two_sigma2=1.5)
METHODS = [
    'gmvq', 'vqvae', 'vqvae+l2', 'vqvae+replace', 'vqvae+affine', 'vqvae+opt',
    'vqvae+rotation', 'vqvae+affine+rotation+l2+replace', 'vqvae+ema',
    'vqvae+ema+replace', 'sqvae', 'gumbel', 'fsq', 'frozen', 'lfq', 'bsq',
    'simvq', 'diveq', 'fsp',
]  # fmt: skip
# Slow: their parts are among `METHODS`.
COMBINED = [
    'vqvae+l2+replace', 'vqvae+affine+opt', 'vqvae+affine+opt+replace+l2',
    'vqvae+ema+l2', 'gmvq+l2+replace', 'sqvae+replace', 'diveq+l2+replace',
    'simvq+rotation+replace', 'bsq+rotation',
]  # fmt: skip
gmvq = functools.partial(gmvq_jax.gmvq, C, L, gamma=0.1, beta=2.0)
QUANTIZERS = {
    name: compositions.make(name, **FIELDS) for name in METHODS + COMBINED
} | {
    'gmvq, expected': gmvq(two_sigma2=1.5, latent='expected'),
    'gmvq, aggregated': gmvq(two_sigma2=1.5, latent='aggregated'),
    'gmvq, batch': gmvq(aggregate='batch'),
    'gmvq, soft': gmvq(hard=False),
    'gmvq, tiled': gmvq(assignment='tiled'),
    'gumbel, soft': quantizers.gumbel(C, L, hard=False),
    'gumbel, tiled': quantizers.gumbel(C, L, assignment='tiled'),
    'sqvae, tiled': quantizers.sqvae(C, L, assignment='tiled'),
    'sqvae, image': quantizers.sqvae(C, L, variance='image'),
    'sqvae, position': quantizers.sqvae(C, L, variance='position'),
    'gmvq, codewords': gmvq(gaussian_noise=False),
    'lfq, tiled': quantizers.lfq(C, assignment='tiled'),
    'vqvae+affine, groups': quantizers.with_affine(
        quantizers.vqvae(C, L), affine_groups=4
    ),
} | compositions.EXAMPLES
# One of each mechanism: gradient, moving average, posterior (in tiles too), no
# codebook, and a composition.
REPRESENTATIVES = (
    'vqvae',
    'vqvae+ema',
    'gmvq',
    'gmvq, tiled',
    'fsq',
    'residual vqvae+ema+replace',
)
TEMPERATURE = 0.7
DATA_DIM = 12


def mostly_slow(default, condition=lambda name: True):
  """Parametrises over the quantizers whose names meet a condition.

  All but those in `default` are slow.
  """
  return pytest.mark.parametrize('name', [
      pytest.param(name, marks=() if name in default else pytest.mark.slow)
      for name in filter(condition, QUANTIZERS)
  ])


def by_default(name):
  """Whether a quantizer is tested by default; most combinations are slow."""
  if name in compositions.EXAMPLES:
    return name in compositions.DEFAULT
  return name not in (*COMBINED, 'gumbel, tiled', 'sqvae, tiled')


def those(condition):
  """As `mostly_slow`, with those that are `by_default`."""
  return mostly_slow(list(filter(by_default, QUANTIZERS)), condition)


each = those(lambda name: True)
written = those(lambda name: QUANTIZERS[name].write is not None)
stochastic = those(lambda name: re.search('gmvq|sqvae|gumbel', name))
noisy = those(lambda name: re.search('gmvq|sqvae|gumbel|diveq|fsp', name))
needs_only_a_key = those(lambda name: re.search('replace|diveq|fsp', name))
# Of the compositions, which take seconds on several devices, one of each kind.
on_devices = mostly_slow(
    # GM-VQ in tiles.
    tuple(name for name in REPRESENTATIVES if name != 'gmvq'),
    lambda name: name in compositions.SOME or name not in compositions.EXAMPLES,
)


@functools.cache
def initial(name):
  """Returns params and state."""
  return init(QUANTIZERS[name])


def latents(name, leading=(8, 3), dtype=np.float32):
  rng = np.random.default_rng(1)
  return rng.normal(size=(*leading, sum(QUANTIZERS[name].heads))).astype(dtype)


def train(quantizer, params, state, h, seed=2, **kwargs):
  return quantizer.apply(
      params,
      state,
      h,
      key=jax.random.key(seed),
      temperature=TEMPERATURE,
      train=True,
      **kwargs,
  )


# The part of a batch [8, 3] that a mask leaves, and the batch's inputs.
KEPT = np.s_[:6, :2]


def batch(name, case):
  """Returns latents and mask.

  Args:
    name: of a quantizer.
    case: `all` positions count; padding around `KEPT` is `zeros` or `nans`; or
      `none` counts.
  """
  h = latents(name)
  mask = np.zeros((8, 3), bool)
  if case != 'none':
    mask[KEPT if case != 'all' else ...] = True
  h[~mask] = 0 if case == 'zeros' else np.nan
  return h, mask


class Evaluated(NamedTuple):
  """Results at evaluation; gradients are of the loss, to params and latents."""

  quantized: quantizers.Quantized
  gradients: Any
  alone: quantizers.Quantized  # Of the latents at `KEPT`, without a mask.
  gradients_alone: Any
  top_codes: Any  # Of those, and their log-probabilities.


@functools.cache
def evaluation(name):
  """Returns the program of `evaluated`."""
  quantizer = QUANTIZERS[name]

  @jax.jit
  def run(params, state, h, mask):
    def loss(params, h, mask=None):
      quantized, _ = quantizer.apply(params, state, h, mask=mask)
      return quantized.loss, quantized

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    gradients, quantized = gradient(params, h, mask)
    gradients_alone, alone = gradient(params, h[KEPT])
    top_codes = quantizers.top_codes(quantizer, params, state, h[KEPT], 3)
    return Evaluated(quantized, gradients, alone, gradients_alone, top_codes)

  return run


@functools.cache
def evaluated(name, case):
  run = evaluation(name)
  return jax.device_get(run(*initial(name), *batch(name, case)))


class Trained(NamedTuple):
  """Results of a training step; gradients are of `objective`."""

  objective: Any  # Of z as a prediction of 1, `DATA_DIM` values an image.
  gradients: Any  # To params and latents.
  quantized: quantizers.Quantized
  state: Any
  finished: Any
  embedded: Any  # Of the codes given.
  written: Any  # `rows_to_write` at every third row: params and state,
  read: Any  # the codebook before and after,
  finished_written: Any  # and finished.


def rows_to_write(name):
  rows = np.random.default_rng(5).normal(size=(C, L)).astype(np.float32)
  if 'l2' in name:  # On the sphere, where only directions can be written.
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  return rows, np.arange(C) % 3 == 0


@functools.cache
def training(name):
  """Returns the program of `trained`."""
  quantizer = QUANTIZERS[name]

  @jax.jit
  def run(params, state, h, mask, seed, codes):
    def objective(params, h):
      quantized, moved = train(quantizer, params, state, h, seed, mask=mask)
      squared_error = jnp.sum(jnp.square(quantized.z - 1), axis=(1, 2))
      value = quantizer.objective(
          jnp.mean(squared_error) / DATA_DIM,
          quantized,
          data_shape=(len(h), DATA_DIM),
      )
      return value, (quantized, moved)

    (value, (quantized, moved)), gradients = jax.value_and_grad(
        objective, argnums=(0, 1), has_aux=True
    )(params, h)
    written = read = finished_written = None
    if quantizer.write is not None:
      written = quantizer.write(params, state, *rows_to_write(name))
      read = [quantizer.read(*x) for x in ((params, state), written)]
      finished_written = quantizer.finish(*written)
    return Trained(
        objective=value,
        gradients=gradients,
        quantized=quantized,
        state=moved,
        finished=quantizer.finish(params, moved),
        embedded=quantizer.embed(params, state, codes),
        written=written,
        read=read,
        finished_written=finished_written,
    )

  return run


@functools.cache
def trained(name, case, seed=2):
  """The codes it embeds are those of evaluation."""
  arguments = (
      *initial(name),
      *batch(name, case),
      seed,
      evaluated(name, case).quantized.codes,
  )
  return jax.device_get(training(name)(*arguments))


def assert_finite(tree):
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)


LOW = {'bfloat16': (2, 3, 4), 'float16': (5,)}  # And a shape of each.


@pytest.mark.parametrize('dtype, name', [
    pytest.param(dtype, name, marks=pytest.mark.slow if slow else ())
    for dtype in LOW
    for name in QUANTIZERS
    for slow in [dtype == 'float16' and name not in REPRESENTATIVES]
])  # fmt: skip
def test_shapes_and_dtypes(dtype, name):
  leading = LOW[dtype]
  quantizer = QUANTIZERS[name]
  params, state = jax.eval_shape(quantizer.init, jax.random.key(0))

  def both(params, state, h):
    one, still = quantizer.apply(params, state, h)
    other, moved = train(quantizer, params, state, h)
    embedded = quantizer.embed(params, state, one.codes)
    return (one, other), (still, moved), embedded

  h = latents(name, leading, dtype)
  results, states, embedded = jax.eval_shape(both, params, state, h)
  for quantized in results:
    chex.assert_equal_shape([quantized.z, embedded])
    chex.assert_shape(quantized.codes, leading + quantizer.code_shape)
    assert quantized.q_c.shape[-1] == quantizer.num_codes
    chex.assert_shape([quantized.loss, *quantized.metrics.values()], ())
    assert quantized.codes.dtype == np.int32
    assert quantized.z.dtype == np.float32
  for other in states:
    chex.assert_trees_all_equal_shapes_and_dtypes(state, other)


def check_values(quantizer, quantized):
  in_range = (quantized.codes >= 0) & (quantized.codes < quantizer.num_codes)
  assert np.all(in_range), 'codes out of range'
  np.testing.assert_allclose(
      quantized.q_c.sum(-1), 1, rtol=1e-5, err_msg='sum of q(c)'
  )
  assert 1 <= quantized.metrics['perplexity'] <= quantizer.num_codes + 1e-3
  assert 0 < quantized.metrics['usage'] <= 1
  assert_finite(quantized)


@each
def test_codes_shares_and_metrics_are_in_range(name):
  for result in (evaluated(name, 'all'), trained(name, 'all')):
    check_values(QUANTIZERS[name], result.quantized)


@mostly_slow(('vqvae+ema', 'gmvq'))
def test_low_precision_latents_give_values_in_range(name):
  quantizer = QUANTIZERS[name]

  def run(params, state, for_training, for_evaluation):
    return (
        train(quantizer, params, state, for_training)[0],
        quantizer.apply(params, state, for_evaluation)[0],
    )

  low = [latents(name, (8, 3), jnp.dtype(dtype)) for dtype in LOW]
  for quantized in call(run, *initial(name), *low):
    check_values(quantizer, quantized)


@each
def test_evaluation_is_deterministic(name):
  """Programs of other shapes, and with a mask, give the same codes."""
  result = evaluated(name, 'all')
  np.testing.assert_array_equal(
      result.quantized.codes[KEPT], result.alone.codes
  )


@each
def test_evaluation_embeds_its_codes(name):
  # To the last bit, but where sums of levels or norms are compiled.
  tolerance = 1e-6 if QUANTIZERS[name].code_shape or 'l2' in name else 0
  np.testing.assert_allclose(
      evaluated(name, 'all').quantized.z,
      trained(name, 'all').embedded,
      rtol=0,
      atol=tolerance,
  )


@noisy
def test_training_is_a_function_of_the_key(name):
  once, other = (trained(name, 'all', seed).quantized for seed in (2, 9))
  again = training(name)(
      *initial(name), *batch(name, 'all'), 2,
      evaluated(name, 'all').quantized.codes,
  )  # fmt: skip
  chex.assert_trees_all_equal(once, jax.device_get(again.quantized))
  assert not np.array_equal(once.z, other.z)


@each
def test_the_most_probable_code_is_that_of_evaluation(name):
  result = evaluated(name, 'all')
  codes, log_probs = result.top_codes
  np.testing.assert_array_equal(codes[..., 0], result.alone.codes)
  chex.assert_shape([codes, log_probs], (*result.alone.codes.shape, 3))
  assert np.all(log_probs[..., :-1] >= log_probs[..., 1:])
  # Float32 of differences of logits, which may be hundreds.
  assert np.all(np.exp(log_probs).sum(-1) <= 1 + 1e-4)


@each
def test_masked_positions_do_not_count_at_evaluation(name):
  """NaNs in images, and at positions of all images: as if they were not."""
  result = evaluated(name, 'nans')
  quantized, alone = result.quantized, result.alone
  chex.assert_trees_all_close(
      (quantized.q_c, quantized.loss, quantized.metrics),
      (alone.q_c, alone.loss, alone.metrics),
      rtol=1e-5,
  )
  # Products of matrices of other shapes may be rounded differently.
  np.testing.assert_allclose(
      quantized.z[KEPT],
      alone.z,
      rtol=0,
      atol=1e-6 if name.startswith('projected') else 0,
  )
  np.testing.assert_array_equal(quantized.codes[KEPT], alone.codes)


@each
def test_masked_positions_get_no_code_and_zeros(name):
  _, mask = batch(name, 'nans')
  for result in (evaluated(name, 'nans'), trained(name, 'nans')):
    np.testing.assert_array_equal(result.quantized.codes[~mask], -1)
    np.testing.assert_array_equal(result.quantized.z[~mask], 0)
  np.testing.assert_array_equal(result.embedded[~mask], 0)


@each
def test_masked_positions_reach_no_gradient_of_evaluation(name):
  result = evaluated(name, 'nans')
  of_params, of_h = result.gradients
  of_params_alone, of_h_alone = result.gradients_alone
  chex.assert_trees_all_close(of_params, of_params_alone, atol=1e-6)
  np.testing.assert_allclose(of_h[KEPT], of_h_alone, atol=1e-6)
  _, mask = batch(name, 'nans')
  np.testing.assert_array_equal(of_h[~mask], 0)


@each
def test_what_masked_positions_hold_does_not_matter_in_training(name):
  """The noise differs with the shape, so here with NaNs and with zeros."""
  nans, zeros = trained(name, 'nans'), trained(name, 'zeros')
  assert_finite(nans)
  for field in Trained._fields:
    chex.assert_trees_all_equal(
        getattr(nans, field), getattr(zeros, field), custom_message=field
    )


@each
def test_without_positions_that_count_nothing_happens(name):
  params, _ = initial(name)
  at_training = trained(name, 'none')
  for quantized in (evaluated(name, 'none').quantized, at_training.quantized):
    assert quantized.loss == 0
    assert_finite(quantized)
    np.testing.assert_array_equal(quantized.codes, -1)
  assert_finite(at_training.state)
  finished, _, fresh = at_training.finished
  chex.assert_trees_all_equal(finished, params)
  assert not any(np.any(x) for x in jax.tree.leaves(fresh))


@each
def test_other_shapes_are_refused(name):
  quantizer = QUANTIZERS[name]
  params, state = initial(name)
  h = latents(name)

  def apply(h, **kwargs):
    jax.eval_shape(
        lambda *arguments: quantizer.apply(*arguments, **kwargs),
        params,
        state,
        h,
    )

  for wrong in (h[..., 1:], np.concatenate([h, h], axis=-1)):
    with pytest.raises(ValueError, match='the last dimension must be'):
      apply(wrong)
  with pytest.raises(ValueError, match=r'mask of shape \(8,\): must be \(8, 3'):
    apply(h, mask=np.ones(8))


@stochastic
def test_training_needs_a_key_and_a_temperature(name):
  quantizer = QUANTIZERS[name]
  params, state = initial(name)

  def apply(**given):
    jax.eval_shape(
        lambda *arguments: quantizer.apply(*arguments, train=True, **given),
        params,
        state,
        latents(name),
    )

  for given in ({}, {'key': jax.random.key(0)}, {'temperature': 1.0}):
    with pytest.raises(ValueError, match='must be given'):
      apply(**given)


@needs_only_a_key
def test_training_needs_a_key(name):
  quantizer = QUANTIZERS[name]
  with pytest.raises(ValueError, match='train=True without key.*: must be giv'):
    jax.eval_shape(
        functools.partial(quantizer.apply, train=True),
        *initial(name),
        latents(name),
    )


@written
def test_rows_that_are_written_are_read(name):
  rows, where = rows_to_write(name)
  before, after = trained(name, 'all').read
  assert np.allclose(np.linalg.norm(before, axis=-1), 1) == ('l2' in name)
  np.testing.assert_allclose(after[where], rows[where], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(after[~where], before[~where], rtol=1e-6)


@written
def test_fresh_is_like_params(name):
  params, _, fresh = trained(name, 'all').finished_written
  chex.assert_trees_all_equal_structs(params, fresh)
  jax.tree.map(lambda f, p: np.broadcast_to(f, p.shape), fresh, params)


@each
def test_training_keeps_the_shape_of_params_and_state(name):
  params, state = initial(name)
  result = trained(name, 'all')
  chex.assert_trees_all_equal_shapes_and_dtypes(state, result.state)
  chex.assert_trees_all_equal_shapes_and_dtypes(
      (params, state), result.finished[:2]
  )


@pytest.mark.parametrize('names', [
    list(filter(by_default, QUANTIZERS)),
    pytest.param(list(QUANTIZERS), marks=pytest.mark.slow),
], ids=['default', 'all'])  # fmt: skip
def test_a_checkpoint_holds_params_and_state(tmp_path, names):
  """Those of several quantizers, after a step."""
  trees = {
      name: (initial(name)[0], trained(name, 'all').state) for name in names
  }
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, trees, {})
  checkpoints.close()
  restored, *_ = checkpoint.Checkpoints(tmp_path).restore_latest(trees)
  chex.assert_trees_all_equal(restored, trees)


# On several devices.


@mostly_slow(
    ('gmvq, tiled', 'sqvae', 'diveq', 'fsp'),
    lambda name: re.search('gmvq|sqvae|gumbel|diveq|fsp', name),
)
def test_each_device_samples_noise_of_its_own(name):
  quantizer = QUANTIZERS[name]
  params, state = initial(name)
  same = np.repeat(latents(name, (1, 3)), 8, axis=0)
  data = PartitionSpec('data')

  def local(h):
    quantized, _ = train(quantizer, params, state, h, axis_name='data')
    return quantized.z, quantized.codes

  sharded = jax.shard_map(
      local, mesh=distributed.data_mesh(), in_specs=data, out_specs=data
  )
  z, codes = call(sharded, same)
  # The relaxed mixture differs, or the sampled code.
  assert len(np.unique(z[:, 0, 0])) == 8 or np.any(codes != codes[0])


def local_gradient(name, params, h, *, mean_first):
  """Returns value and mean gradient of one device of the axis `data`.

  At evaluation, without noise, they are those of the whole batch.
  """
  quantizer = QUANTIZERS[name]
  _, state = initial(name)

  def loss(params, h):
    quantized, _ = quantizer.apply(params, state, h, axis_name='data')
    loss = quantized.loss
    if mean_first:
      loss = jax.lax.pmean(loss, 'data')
    return loss, quantized.q_c

  value, gradient = jax.value_and_grad(loss, has_aux=True)(params, h)
  if not mean_first:
    gradient = jax.lax.pmean(gradient, 'data')
  return value, gradient


def check_gradient(name, got):
  whole = evaluated(name, 'all')
  value = (whole.quantized.loss, whole.quantized.q_c)
  expected = (value, whole.gradients[0])
  chex.assert_trees_all_close(got, expected, atol=1e-5)


@on_devices
def test_pmap_takes_the_gradient_then_the_mean(name):
  params, _ = initial(name)
  h = latents(name)
  local = functools.partial(local_gradient, name, mean_first=False)
  got = jax.device_get(
      jax.pmap(local, axis_name='data', in_axes=(None, 0))(
          params, h.reshape(4, 2, *h.shape[1:])
      )
  )
  for device in range(4):
    check_gradient(name, jax.tree.map(lambda x, d=device: x[d], got))


@on_devices
@pytest.mark.parametrize('check_vma', [True, False])
def test_shard_map_takes_either_recipe(name, check_vma):
  """Mean then gradient with `check_vma`, gradient then mean without."""
  params, _ = initial(name)
  replicated, batched = PartitionSpec(), PartitionSpec('data')
  sharded = jax.shard_map(
      functools.partial(local_gradient, name, mean_first=check_vma),
      mesh=distributed.data_mesh(),
      in_specs=(replicated, batched),
      out_specs=replicated,
      check_vma=check_vma,
  )
  check_gradient(name, call(sharded, params, latents(name)))


MESHES = {
    'two': ((2,), jax.sharding.AxisType.Auto),
    'four': ((4,), jax.sharding.AxisType.Auto),
    'two axes': ((4, 2), jax.sharding.AxisType.Auto),
    'explicit': ((4,), jax.sharding.AxisType.Explicit),
    'two explicit axes': ((2, 2), jax.sharding.AxisType.Explicit),
}


def check_mesh(name, kind, context):
  """Checks a training step on a batch divided over the mesh of a kind."""
  sizes, axis_type = MESHES[kind]
  axes = (distributed.AXIS, 'model')[: len(sizes)]
  devices = jax.devices()[: math.prod(sizes)]
  types = (axis_type,) * len(sizes)
  mesh = jax.make_mesh(sizes, axes, axis_types=types, devices=devices)
  seed, codes = 2, evaluated(name, 'all').quantized.codes
  *everywhere, seed = distributed.replicate((*initial(name), seed), mesh)
  divided = jax.device_put((*batch(name, 'all'), codes),
                           distributed.batched(mesh))
  with context(mesh):
    got = training(name)(*everywhere, *divided[:2], seed, divided[2])
  chex.assert_trees_all_close(
      jax.device_get(got), trained(name, 'all'), rtol=1e-5, atol=1e-5
  )


@on_devices
@pytest.mark.parametrize('kind', [
    'explicit', *(pytest.param(kind, marks=pytest.mark.slow)
                  for kind in MESHES if kind != 'explicit')
])  # fmt: skip
def test_any_mesh_gives_the_same(name, kind):
  """Loss, gradients, codes and state of a training step."""
  check_mesh(name, kind, lambda mesh: contextlib.nullcontext())


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name == 'gmvq, tiled' else pytest.mark.slow)
    for name in QUANTIZERS
])  # fmt: skip
@pytest.mark.parametrize('kind', ['two axes', pytest.param(
    'two explicit axes', marks=pytest.mark.slow)])  # fmt: skip
def test_any_mesh_of_the_context_gives_the_same(name, kind):
  check_mesh(name, kind, jax.set_mesh)


# GM-VQ.


def posterior_of(name):
  """Returns NumPy's latents, posteriors (each `[N, ...]`) and codebook."""
  h = np.asarray(latents(name), np.float64).reshape(-1, 2 * L)
  z_hat, raw = np.split(h, 2, axis=-1)
  codebook = np.asarray(initial(name)[0]['codebook'], np.float64)
  probs = np.stack([
      reference.posterior(*x, codebook)
      for x in zip(z_hat, np.log1p(np.exp(raw)), strict=True)
  ])
  return z_hat, probs, codebook


@pytest.mark.parametrize('name, latent, gamma, beta', [
    ('gmvq', 'coupled', 0.1, 0.5),
    ('gmvq, expected', 'expected', 0.1, 2.0),
    ('gmvq, aggregated', 'aggregated', 0.1, 2.0),
])  # fmt: skip
def test_gmvq_minimises_the_albo(name, latent, gamma, beta):
  """Its objective is `albo` of its own terms, and of NumPy's."""
  two_sigma2 = 1.5
  result = trained(name, 'all')
  quantized = result.quantized
  squared_error = np.square(quantized.z - 1).sum(axis=(1, 2))
  z_hat, probs, codebook = posterior_of(name)
  q_c = np.mean(probs, axis=0)
  if latent == 'coupled':
    codewords = codebook[quantized.codes.ravel()]
    terms = [
        reference.latent_coupled(*x, two_sigma2)
        for x in zip(z_hat, codewords, strict=True)
    ]
  elif latent == 'expected':
    terms = [
        reference.latent_expected(*x, codebook, two_sigma2)
        for x in zip(z_hat, probs, strict=True)
    ]
  else:
    terms = [
        reference.latent_aggregated(z, q_c, codebook)
        for z in quantized.z.reshape(-1, L)
    ]
  expected = reference.albo(
      squared_error, np.mean(terms), q_c, gamma, beta, DATA_DIM, 3
  )
  np.testing.assert_allclose(result.objective, expected, rtol=1e-5)
  parts = squared_error.mean() / DATA_DIM + 3 / DATA_DIM * quantized.loss
  np.testing.assert_allclose(result.objective, parts, rtol=1e-5)
  entropy = [-np.sum(p * np.log(p)) for p in probs]
  np.testing.assert_allclose(
      quantized.metrics['posterior_entropy'], np.mean(entropy), rtol=1e-5
  )
  np.testing.assert_allclose(
      quantized.metrics['latent_variance'],
      z_hat.var(axis=0).mean(),
      rtol=1e-5,
  )


# Every function of the equations, and what of a training step it decides.
DOCUMENTED = [
    (posterior, 'sample_latents', 'z'),
    (posterior, 'log_posterior', 'q_c'),
    (posterior, 'gumbel_softmax', 'z'),
    (posterior, 'component_variance', 'variance'),
    (posterior, 'reparameterise', 'z'),
    (posterior, 'aggregated_posterior', 'q_c'),
    (posterior, 'posterior_entropy', 'posterior_entropy'),
    (albo, 'latent_coupled', 'latent'),
    (albo, 'kl_to_uniform', 'kl'),
    (albo, 'regulariser', 'loss'),
]


@functools.cache
def small_step(case='documented functions'):
  """Returns what a training step of a tiny GM-VQ gives, without a program."""
  del case  # Which functions were traced.
  quantizer = gmvq_jax.gmvq(4, 2, gamma=0.1, beta=2.0, assignment='plain')
  rng = np.random.default_rng(1)
  params = {'codebook': rng.normal(size=(4, 2)).astype(np.float32)}
  h = rng.normal(size=(3, 4)).astype(np.float32)
  quantized, _ = train(quantizer, params, {}, h)
  return jax.device_get({
      'z': quantized.z,
      'q_c': quantized.q_c,
      'loss': quantized.loss,
      **quantized.metrics,
  })


@pytest.mark.parametrize('module, name, decided', DOCUMENTED, ids=[
    name for _, name, _ in DOCUMENTED
])  # fmt: skip
def test_training_calls_the_documented_functions(
    monkeypatch, module, name, decided
):
  """Who replaces one of them by another changes what is trained."""
  documented = getattr(module, name)
  calls = []

  def perturbed(*args, **kwargs):
    calls.append(name)
    return jax.tree.map(
        lambda x: 1.01 * x if jnp.issubdtype(x.dtype, jnp.inexact) else x,
        documented(*args, **kwargs),
    )

  before = small_step()
  monkeypatch.setattr(module, name, perturbed)
  after = small_step(name)
  assert calls
  assert not np.allclose(after[decided], before[decided], rtol=1e-3)


def train_once(quantizer, h):
  """Returns params and the result of one training step, from the seed 0."""

  def run(h):
    params, state = quantizer.init(jax.random.key(0))
    return params, train(quantizer, params, state, h)[0]

  return call(run, h)


def test_gmvq_adds_the_noise_of_eq_18():
  h = latents('gmvq', (4000,))
  params, quantized = train_once(gmvq(), h)
  codewords = params['codebook'][quantized.codes]
  error = np.square(h[:, :L] - codewords).mean()  # 2 sigma^2 is 1.
  np.testing.assert_allclose(quantized.metrics['variance'], error, rtol=1e-5)
  np.testing.assert_allclose(
      quantized.metrics['quantization_error'], error, rtol=1e-5
  )
  noise = quantized.z - codewords
  np.testing.assert_allclose(np.mean(noise**2), error, rtol=0.05)


@pytest.mark.parametrize('name, two_sigma2, hard', [
    ('gmvq', 1.5, True), ('gmvq, soft', 1.0, False), ('gmvq, tiled', 1.0, True),
])  # fmt: skip
def test_gmvq_samples_as_the_reference_does(name, two_sigma2, hard):
  quantized = trained(name, 'all').quantized
  z_hat, raw = np.split(latents(name), 2, axis=-1)

  def sample(z_hat, raw, codebook):
    return gmvq_jax.sample_latents(
        jax.random.key(2),
        z_hat,
        jax.nn.softplus(raw),
        codebook,
        temperature=TEMPERATURE,
        hard=hard,
        two_sigma2=two_sigma2,
    )

  expected = call(sample, z_hat, raw, initial(name)[0]['codebook'])
  np.testing.assert_array_equal(quantized.codes, expected.codes)
  np.testing.assert_allclose(quantized.z, expected.z, rtol=1e-5, atol=1e-5)
  probs = np.exp(expected.log_probs)
  np.testing.assert_allclose(quantized.q_c, probs.mean((0, 1)), rtol=1e-5)


TILED = [
    ('gmvq', {}), ('gmvq', {'latent': 'expected'}), ('gmvq', {'hard': False}),
    ('sqvae', {}), ('sqvae', {'variance': 'position'}), ('gumbel', {}),
]  # fmt: skip


def tiled_by_default(name, fields, num_codes, training):
  if (name, fields) == ('gmvq', {}):
    return training == (num_codes == 100)
  return training and num_codes == 100 and (name, fields) != ('sqvae', {})


@pytest.mark.parametrize('name, fields, num_codes, training', [
    pytest.param(
        *case, marks=() if tiled_by_default(*case) else pytest.mark.slow
    )
    for method in TILED
    for num_codes in (C, 100)
    for training in (True, False)
    for case in [(*method, num_codes, training)]
])  # fmt: skip
def test_all_assign_alike(monkeypatch, name, fields, num_codes, training):
  # Tiles of a few rows, the last one padded; of 100 codes a few at a time.
  monkeypatch.setattr(soft_assignment, '_CPU_TILE', 7 * C)
  monkeypatch.setattr(soft_assignment, '_MIN_ROWS', 7)
  monkeypatch.setattr(soft_assignment, '_MAX_TILE', 16 * 7 * 8)
  monkeypatch.setattr(soft_assignment, '_MAX_CODES', 16)
  arguments = FIELDS | {'two_sigma2': 1.0} | fields | {'num_codes': num_codes}
  ways = [
      compositions.make(name, **arguments, assignment=method)
      for method in ('plain', 'kept', 'tiled')
  ]
  h = np.random.default_rng(1).normal(size=(2, 11, sum(ways[0].heads)))

  def gradients(quantizer, params, state, h):
    def loss(params, h, temperature):
      quantized, _ = quantizer.apply(
          params, state, 2 + h, key=jax.random.key(2), temperature=temperature,
          train=training,
      )  # fmt: skip
      weights = jnp.cos(jnp.arange(quantized.z.size))
      value = jnp.sum(quantized.z.ravel() * weights) + quantized.loss
      return value + jnp.sum(quantized.q_c**2), quantized

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, h, 0.2
    )

  def run(h):
    initial = ways[0].init(jax.random.key(0))
    return [gradients(x, *initial, h) for x in ways]

  plain, *others = call(run, h.astype(np.float32))
  for other in others:
    assert_finite(other)
    np.testing.assert_array_equal(plain[0][1].codes, other[0][1].codes)
    difference = jax.tree.map(
        lambda a, b: np.max(np.abs(a - b)) / (np.max(np.abs(a)) + 1e-6),
        plain,
        other,
    )
    # That of the temperature is a small sum of large numbers.
    assert difference[1][2] < 1e-4
    assert max(jax.tree.leaves((difference[0], difference[1][:2]))) < 1e-5


@those(lambda name: 'tiled' in name or name == 'gmvq')
def test_there_may_be_no_positions(name):
  quantizer = QUANTIZERS[name]
  _, quantized = train_once(quantizer, latents(name, (0, 3)))
  chex.assert_shape(quantized.codes, (0, 3, *quantizer.code_shape))
  assert_finite(quantized.loss)


def test_gmvq_batch_alone_gives_each_position_its_q_c():
  quantized = evaluated('gmvq, batch', 'all').quantized
  _, probs, _ = posterior_of('gmvq, batch')
  of_positions = probs.reshape(8, 3, C).mean(axis=0)
  kls = [reference.kl_to_uniform(q_c) for q_c in of_positions]
  np.testing.assert_allclose(quantized.metrics['kl'], np.mean(kls), rtol=1e-5)


@pytest.mark.parametrize('hard', [True, False])
def test_gmvq_sharpens_its_posterior_and_passes_gradients_by(hard):
  """As other precisions, and the gradient to z on top."""
  h = latents('gmvq')
  toward = np.cos(np.arange(h[..., :L].size)).reshape(*h.shape[:-1], L)
  ways = [
      gmvq(hard=hard, weight_scale=3.0, sharpening=2.0, identity=0.25),
      gmvq(hard=hard, weight_scale=3.0 * 0.5**-2.0),
  ]

  def loss(h, quantizer):
    quantized, _ = quantizer.apply(
        *quantizer.init(jax.random.key(0)), h, key=jax.random.key(1),
        temperature=0.5, train=True,
    )  # fmt: skip
    value = jnp.sum(quantized.z * toward) + quantized.loss
    return value, (quantized.z, quantized.q_c, quantized.codes)

  def run(h):
    return [jax.grad(loss, has_aux=True)(h, quantizer) for quantizer in ways]

  (sharpened, outputs), (scaled, expected) = call(run, h)
  chex.assert_trees_all_close(outputs, expected, rtol=1e-5, atol=1e-6)
  added = np.concatenate([0.25 * toward, np.zeros_like(toward)], axis=-1)
  np.testing.assert_allclose(sharpened, scaled + added, rtol=1e-4, atol=1e-5)


def test_gmvq_without_gaussian_noise_trains_on_codewords():
  quantized = trained('gmvq, codewords', 'all').quantized
  codewords = initial('gmvq, codewords')[0]['codebook'][quantized.codes]
  np.testing.assert_allclose(quantized.z, codewords, atol=1e-6)


@pytest.mark.parametrize('hard', [True, False])
def test_gmvq_hard_is_one_codeword_and_soft_is_their_mixture(hard):
  quantizer = gmvq(two_sigma2=1e12, hard=hard)
  params, quantized = train_once(quantizer, latents('gmvq'))
  distance = np.abs(quantized.z - params['codebook'][quantized.codes])
  assert (distance.max() < 1e-3) == hard


@pytest.mark.parametrize('stop', [True, False])
def test_gmvq_stop_variance_gradient_and_weight_scale(stop):
  """With a flat posterior, gradients reach z_hat through sigma alone."""
  quantizer = gmvq(weight_scale=1e-9, stop_variance_gradient=stop)
  params, state = initial('gmvq')

  def total(h):
    quantized, _ = train(quantizer, params, state, h)
    return jnp.sum(quantized.z), quantized.metrics

  gradient, metrics = call(jax.grad(total, has_aux=True), latents('gmvq'))
  assert (np.abs(gradient[..., :L]).max() < 1e-5) == stop
  np.testing.assert_allclose(
      metrics['posterior_entropy'], np.log(C), rtol=1e-5
  )


def test_other_latent_terms_are_refused():
  with pytest.raises(ValueError, match="latent='typo' is unknown"):
    gmvq(latent='typo')
