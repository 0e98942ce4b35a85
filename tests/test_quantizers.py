"""What every quantizer promises, and what GM-VQ does."""

import functools
import re

import chex
import compositions
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest
import reference

import gmvq_jax
from gmvq_jax import assignment
from gmvq_jax import checkpoint
from gmvq_jax import distributed
from gmvq_jax import quantizers

C, L = 16, 4
FIELDS = dict(num_codes=C, dim=L, gamma=0.1, beta=0.5)
METHODS = [
    'gmvq', 'vqvae', 'vqvae+l2', 'vqvae+replace', 'vqvae+l2+replace',
    'vqvae+affine', 'vqvae+opt', 'vqvae+affine+opt', 'sqvae', 'gumbel',
    'vqvae+affine+opt+replace+l2', 'vqvae+ema', 'vqvae+ema+replace',
    'vqvae+ema+l2', 'fsq', 'frozen', 'gmvq+l2+replace', 'sqvae+replace',
    'lfq', 'bsq', 'simvq', 'diveq', 'vqvae+rotation', 'simvq+rotation+replace',
    'vqvae+affine+rotation+l2+replace', 'bsq+rotation', 'diveq+l2+replace',
]  # fmt: skip
QUANTIZERS = {name: quantizers.make(name, **FIELDS) for name in METHODS} | {
    'gmvq, expected': gmvq_jax.gmvq(
        C, L, gamma=0.1, beta=2.0, latent='expected'
    ),
    'gmvq, aggregated': gmvq_jax.gmvq(
        C, L, gamma=0.1, beta=2.0, latent='aggregated'
    ),
    'gmvq, batch': gmvq_jax.gmvq(C, L, gamma=0.1, beta=2.0, aggregate='batch'),
    'gmvq, soft': gmvq_jax.gmvq(C, L, gamma=0.1, beta=2.0, hard=False),
    'gmvq, tiled': gmvq_jax.gmvq(
        C, L, gamma=0.1, beta=2.0, assignment='tiled'
    ),
    'gumbel, soft': quantizers.gumbel(C, L, hard=False),
    'gumbel, tiled': quantizers.gumbel(C, L, assignment='tiled'),
    'sqvae, tiled': quantizers.sqvae(C, L, assignment='tiled'),
    'sqvae, image': quantizers.sqvae(C, L, variance='image'),
    'sqvae, position': quantizers.sqvae(C, L, variance='position'),
    'gmvq, codewords': gmvq_jax.gmvq(
        C, L, gamma=0.1, beta=2.0, gaussian_noise=False
    ),
    'lfq, tiled': quantizers.lfq(C, assignment='tiled'),
    'vqvae+affine, groups': quantizers.with_affine(
        quantizers.vqvae(C, L), affine_groups=4
    ),
} | compositions.EXAMPLES


def those(condition):
  """Parametrises over some of them, by a condition on their names."""
  chosen = {k: v for k, v in QUANTIZERS.items() if condition(k)}
  return pytest.mark.parametrize('quantizer', chosen.values(), ids=chosen)


each = those(lambda name: True)
# Where every one takes seconds.
some = those(
    lambda name: name in compositions.SOME or name not in compositions.EXAMPLES
)
written = those(lambda name: QUANTIZERS[name].write is not None)

stochastic = those(lambda name: re.search('gmvq|sqvae|gumbel', name))


def inputs(quantizer, leading=(8, 3), dtype=jnp.float32):
  params, state = quantizer.init(jax.random.key(0))
  shape = (*leading, sum(quantizer.heads))
  return params, state, jax.random.normal(jax.random.key(1), shape, dtype)


def train(quantizer, params, state, h, **kwargs):
  return quantizer.apply(
      params,
      state,
      h,
      key=jax.random.key(2),
      temperature=0.7,
      train=True,
      **kwargs,
  )


@each
@pytest.mark.parametrize('leading, dtype', [
    ((5,), jnp.float32), ((8, 3), jnp.bfloat16), ((2, 3, 4), jnp.float16),
])
def test_shapes_and_dtypes(quantizer, leading, dtype):
  params, state, h = inputs(quantizer, leading, dtype)
  for apply in (quantizer.apply, functools.partial(train, quantizer)):
    quantized, _ = apply(params, state, h)
    embedded = quantizer.embed(params, state, quantized.codes)
    chex.assert_equal_shape([quantized.z, embedded])
    chex.assert_shape(quantized.codes, leading + quantizer.code_shape)
    chex.assert_axis_dimension(quantized.q_c, -1, quantizer.num_codes)
    chex.assert_shape([quantized.loss, *quantized.metrics.values()], ())
    assert quantized.codes.dtype == jnp.int32
    assert quantized.z.dtype == jnp.float32
    in_range = (quantized.codes >= 0) & (quantized.codes < quantizer.num_codes)
    assert jnp.all(in_range)
    np.testing.assert_allclose(quantized.q_c.sum(-1), 1, rtol=1e-5)
    assert 1 <= quantized.metrics['perplexity'] <= quantizer.num_codes + 1e-3
    assert 0 < quantized.metrics['usage'] <= 1
    chex.assert_tree_all_finite(quantized)


@each
def test_evaluation_is_deterministic_and_embeds_its_codes(quantizer):
  params, state, h = inputs(quantizer)
  quantized, _ = quantizer.apply(params, state, h)
  again, _ = jax.jit(quantizer.apply)(params, state, h)
  np.testing.assert_array_equal(quantized.codes, again.codes)
  embedded = quantizer.embed(params, state, quantized.codes)
  # To the last bit, but where a sum of levels is compiled.
  tolerance = 1e-6 if quantizer.code_shape else 0
  np.testing.assert_allclose(quantized.z, embedded, rtol=0, atol=tolerance)


@stochastic
def test_training_is_a_function_of_the_key(quantizer):
  params, state, h = inputs(quantizer)
  once, _ = train(quantizer, params, state, h)
  again, _ = train(quantizer, params, state, h)
  other, _ = quantizer.apply(
      params, state, h, key=jax.random.key(9), temperature=0.7, train=True
  )
  chex.assert_trees_all_equal(once, again)
  assert not np.array_equal(once.z, other.z)


@each
def test_the_most_probable_code_is_that_of_evaluation(quantizer):
  params, state, h = inputs(quantizer)
  quantized, _ = quantizer.apply(params, state, h)
  codes, log_probs = quantizers.top_codes(quantizer, params, state, h, 3)
  np.testing.assert_array_equal(codes[..., 0], quantized.codes)
  chex.assert_equal_shape([codes, log_probs])
  chex.assert_shape(codes, (*quantized.codes.shape, 3))
  assert jnp.all(log_probs[..., :-1] >= log_probs[..., 1:])
  assert jnp.all(jnp.exp(log_probs).sum(-1) <= 1 + 1e-5)


@each
def test_what_is_masked_takes_no_part(quantizer):
  """Padding may hold anything: result and gradient are those without it."""
  params, state, h = inputs(quantizer)
  mask = jnp.ones(h.shape[:-1], bool).at[5:].set(False)
  padded = h.at[5:].set(jnp.nan)

  def loss(params, h, mask):
    quantized, _ = quantizer.apply(params, state, h, mask=mask)
    return quantized.loss, quantized

  grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
  (of_params, of_h), quantized = grad(params, padded, mask)
  (of_params_alone, of_h_alone), alone = grad(params, h[:5], None)
  chex.assert_trees_all_close(
      (quantized.q_c, quantized.loss, quantized.metrics),
      (alone.q_c, alone.loss, alone.metrics),
      rtol=1e-5,
  )
  chex.assert_trees_all_close(of_params, of_params_alone, atol=1e-6)
  chex.assert_trees_all_close(of_h[:5], of_h_alone, atol=1e-6)
  np.testing.assert_array_equal(of_h[5:], 0)
  np.testing.assert_array_equal(quantized.z[:5], alone.z)
  np.testing.assert_array_equal(quantized.codes[:5], alone.codes)
  np.testing.assert_array_equal(quantized.z[5:], 0)
  np.testing.assert_array_equal(quantized.codes[5:], -1)
  embedded = quantizer.embed(params, state, quantized.codes)
  np.testing.assert_array_equal(embedded[5:], 0)
  # In training the noise differs with the shape; what is in the padding does
  # not matter all the same.
  zeros, _ = train(quantizer, params, state, h.at[5:].set(0), mask=mask)
  nans, _ = train(quantizer, params, state, padded, mask=mask)
  chex.assert_trees_all_equal(zeros, nans)

  def trained(params, h):
    quantized, moved = train(quantizer, params, state, h, mask=mask)
    return jnp.sum(quantized.z**2) + quantized.loss, moved

  grad = jax.grad(trained, argnums=(0, 1), has_aux=True)
  of_zeros, of_nans = (grad(params, h.at[5:].set(x)) for x in (0, jnp.nan))
  chex.assert_tree_all_finite(of_nans)
  chex.assert_trees_all_equal(of_zeros, of_nans)


@each
def test_where_all_is_masked_nothing_happens(quantizer):
  params, state, h = inputs(quantizer)
  nothing = jnp.zeros(h.shape[:-1], bool)
  for apply in (quantizer.apply, functools.partial(train, quantizer)):
    quantized, moved = apply(params, state, h, mask=nothing)
    assert quantized.loss == 0
    chex.assert_tree_all_finite((quantized, moved))
    np.testing.assert_array_equal(quantized.codes, -1)
  finished, _, fresh = quantizer.finish(params, moved)
  chex.assert_trees_all_equal(finished, params)
  assert not any(jnp.any(x) for x in jax.tree.leaves(fresh))


@each
def test_other_shapes_are_refused(quantizer):
  params, state, h = inputs(quantizer)
  for wrong in (h[..., 1:], jnp.concatenate([h, h], axis=-1)):
    with pytest.raises(ValueError, match='the last dimension must be'):
      quantizer.apply(params, state, wrong)
  with pytest.raises(ValueError, match=r'mask of shape \(8,\): must be \(8, 3'):
    quantizer.apply(params, state, h, mask=jnp.ones(8))


@each
def test_a_position_masked_everywhere_is_as_if_it_were_not(quantizer):
  params, state, h = inputs(quantizer)
  mask = jnp.ones(h.shape[:-1], bool).at[:, 2].set(False)
  quantized, _ = quantizer.apply(params, state, h, mask=mask)
  alone, _ = quantizer.apply(params, state, h[:, :2])
  chex.assert_trees_all_close(quantized.metrics, alone.metrics, rtol=1e-5)


@stochastic
def test_training_needs_a_key_and_a_temperature(quantizer):
  params, state, h = inputs(quantizer)
  for kwargs in ({}, {'key': jax.random.key(0)}, {'temperature': 1.0}):
    with pytest.raises(ValueError, match='must be given'):
      quantizer.apply(params, state, h, train=True, **kwargs)


@those(lambda name: re.search('gmvq|sqvae|gumbel|diveq', name))
def test_each_device_draws_noise_of_its_own(quantizer):
  params, state, h = inputs(quantizer, (1, 3))
  same = jnp.broadcast_to(h, (8, 3, h.shape[-1]))
  mesh = distributed.data_mesh()

  def local(h):
    quantized, _ = train(quantizer, params, state, h, axis_name='data')
    return quantized.z, quantized.codes

  z, codes = jax.jit(
      jax.shard_map(
          local,
          mesh=mesh,
          in_specs=PartitionSpec('data'),
          out_specs=PartitionSpec('data'),
      )
  )(same)
  # The relaxed mixture differs, or the code that was drawn.
  assert len(np.unique(z[:, 0, 0])) == 8 or np.any(codes != codes[0])


@written
def test_read_write_and_finish(quantizer):
  params, state, _ = inputs(quantizer)
  rows = jax.random.normal(jax.random.key(5), (C, L))
  where = jnp.arange(C) % 3 == 0
  before = quantizer.read(params, state)
  # On the sphere only directions can be written.
  if np.allclose(jnp.linalg.norm(before, axis=-1), 1):
    rows /= jnp.linalg.norm(rows, axis=-1, keepdims=True)
  written = quantizer.write(params, state, rows, where)
  after = quantizer.read(*written)
  np.testing.assert_allclose(after[where], rows[where], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(after[~where], before[~where], rtol=1e-6)
  params, _, fresh = quantizer.finish(*written)
  chex.assert_trees_all_equal_structs(params, fresh)
  jax.tree.map(lambda f, p: jnp.broadcast_to(f, p.shape), fresh, params)


def objective(quantizer, state, params, h, axis_name=None):
  """An evaluation-time loss: without noise it is the same however divided."""
  quantized, _ = quantizer.apply(params, state, h, axis_name=axis_name)
  return quantized.loss, quantized.q_c


@some
def test_pmap_takes_the_gradient_then_the_mean(quantizer):
  params, state, h = inputs(quantizer)
  expected = jax.value_and_grad(
      functools.partial(objective, quantizer, state), has_aux=True
  )(params, h)

  def local(params, h):
    value, gradient = jax.value_and_grad(
        functools.partial(objective, quantizer, state, axis_name='data'),
        has_aux=True,
    )(params, h)
    return value, jax.lax.pmean(gradient, 'data')

  got = jax.pmap(local, axis_name='data', in_axes=(None, 0))(
      params, h.reshape(4, 2, *h.shape[1:])
  )
  for device in range(4):
    chex.assert_trees_all_close(
        jax.tree.map(lambda x, d=device: x[d], got), expected, atol=1e-5
    )


@some
@pytest.mark.parametrize('check_vma', [True, False])
def test_shard_map_takes_either_recipe(quantizer, check_vma):
  """Mean then gradient with `check_vma`, gradient then mean without."""
  params, state, h = inputs(quantizer)
  expected = jax.value_and_grad(
      functools.partial(objective, quantizer, state), has_aux=True
  )(params, h)
  mesh = distributed.data_mesh()

  def local(params, h):
    def mean_loss(params):
      loss, q_c = objective(quantizer, state, params, h, axis_name='data')
      return (jax.lax.pmean(loss, 'data') if check_vma else loss), q_c

    value, gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
    if not check_vma:
      gradient = jax.lax.pmean(gradient, 'data')
    return value, gradient

  replicated, batched = PartitionSpec(), PartitionSpec('data')
  got = jax.jit(
      jax.shard_map(
          local,
          mesh=mesh,
          in_specs=(replicated, batched),
          out_specs=replicated,
          check_vma=check_vma,
      )
  )(params, h)
  chex.assert_trees_all_close(got, expected, atol=1e-5)


@some
def test_any_number_of_devices_gives_the_same(quantizer):
  """Loss, gradients, codes and state of a training step, batch divided."""
  params, state, h = inputs(quantizer)

  @jax.jit
  def step(params, state, h):
    def loss(params, h):
      quantized, moved = train(quantizer, params, state, h)
      squared_error = jnp.sum(jnp.square(quantized.z - 1), axis=(1, 2))
      loss = quantizer.objective(
          squared_error, quantized, data_dim=12, positions=3
      )
      return loss, (moved, quantized.codes, quantized.q_c)

    value, gradients = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(params, h)
    return value, gradients, quantizer.finish(params, value[1][0])

  results = []
  for count in (1, 2, 4):
    mesh = jax.make_mesh(
        (count,),
        (distributed.AXIS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:count],
    )
    everywhere = distributed.replicate((params, state), mesh)
    divided = jax.device_put(h, distributed.batched(mesh))
    results.append(jax.device_get(step(*everywhere, divided)))
  for other in results[1:]:
    chex.assert_trees_all_close(results[0], other, rtol=1e-5, atol=1e-5)


@each
def test_training_keeps_the_shape_of_params_and_state(quantizer):
  params, state, h = inputs(quantizer)
  _, trained = train(quantizer, params, state, h)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, trained)
  finished = quantizer.finish(params, trained)[:2]
  chex.assert_trees_all_equal_shapes_and_dtypes((params, state), finished)


def test_a_checkpoint_holds_params_and_state(tmp_path):
  trees = {}
  for name, quantizer in QUANTIZERS.items():
    params, state, h = inputs(quantizer)
    trees[name] = (params, train(quantizer, params, state, h)[1], h)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, trees, {})
  checkpoints.close()
  restored, *_ = checkpoint.Checkpoints(tmp_path).restore_latest(trees)
  chex.assert_trees_all_equal(restored, trees)


@pytest.mark.parametrize('latent', quantizers.LATENT_TERMS)
def test_gmvq_minimises_the_albo(rng, latent):
  """Its objective is `albo` of its own terms, and of NumPy's."""
  gamma, beta, two_sigma2 = 0.1, 2.0, 1.5
  quantizer = gmvq_jax.gmvq(
      C, L, gamma=gamma, beta=beta, two_sigma2=two_sigma2, latent=latent
  )
  params, state, h = inputs(quantizer, (2, 3))
  quantized, _ = train(quantizer, params, state, h)
  squared_error = jnp.asarray(rng.gamma(2.0, size=2), jnp.float32)
  loss = quantizer.objective(
      squared_error, quantized, data_dim=12, positions=3
  )
  z_hat, raw = np.split(np.asarray(h, np.float64), 2, axis=-1)
  weights = np.log1p(np.exp(raw))
  codebook = np.asarray(params['codebook'], np.float64)
  at = list(np.ndindex(2, 3))
  probs = [reference.posterior(z_hat[i], weights[i], codebook) for i in at]
  q_c = np.mean(probs, axis=0)
  if latent == 'coupled':
    terms = [
        reference.latent_coupled(
            z_hat[i], codebook[quantized.codes[i]], two_sigma2
        )
        for i in at
    ]
  elif latent == 'expected':
    terms = [
        reference.latent_expected(z_hat[i], p, codebook, two_sigma2)
        for i, p in zip(at, probs, strict=True)
    ]
  else:
    terms = [
        reference.latent_aggregated(np.asarray(quantized.z[i]), q_c, codebook)
        for i in at
    ]
  expected = reference.albo(
      np.asarray(squared_error), np.mean(terms), q_c, gamma, beta, 12, 3
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  parts = squared_error.mean() / 12 + 3 / 12 * quantized.loss
  np.testing.assert_allclose(loss, parts, rtol=1e-5)
  entropy = [-np.sum(p * np.log(p)) for p in probs]
  np.testing.assert_allclose(
      quantized.metrics['posterior_entropy'], np.mean(entropy), rtol=1e-5
  )
  np.testing.assert_allclose(
      quantized.metrics['latent_variance'],
      z_hat.reshape(-1, L).var(axis=0).mean(),
      rtol=1e-5,
  )


def test_gmvq_adds_the_noise_of_eq_18():
  quantizer = QUANTIZERS['gmvq']
  params, state, h = inputs(quantizer, (4000,))
  quantized, _ = train(quantizer, params, state, h)
  noise = quantized.z - params['codebook'][quantized.codes]
  np.testing.assert_allclose(
      jnp.mean(noise**2), quantized.metrics['variance'], rtol=0.05
  )
  np.testing.assert_allclose(
      quantized.metrics['variance'],
      quantized.metrics['quantization_error'],
      rtol=1e-5,
  )


@pytest.mark.parametrize('method', ['plain', 'tiled'])
@pytest.mark.parametrize('hard', [True, False])
def test_gmvq_draws_what_the_reference_draws(method, hard):
  quantizer = gmvq_jax.gmvq(
      C, L, gamma=0.1, beta=2.0, hard=hard, assignment=method
  )
  params, state, h = inputs(quantizer)
  quantized, _ = train(quantizer, params, state, h)
  z_hat, raw = jnp.split(h, 2, axis=-1)
  expected = gmvq_jax.sample_latents(
      jax.random.key(2),
      z_hat,
      jax.nn.softplus(raw),
      params['codebook'],
      temperature=0.7,
      hard=hard,
  )
  np.testing.assert_array_equal(quantized.codes, expected.codes)
  np.testing.assert_allclose(quantized.z, expected.z, rtol=1e-5, atol=1e-5)
  probs = jnp.exp(expected.log_probs)
  np.testing.assert_allclose(quantized.q_c, probs.mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize('name, fields', [
    ('gmvq', {}), ('gmvq', {'latent': 'expected'}), ('gmvq', {'hard': False}),
    ('sqvae', {}), ('sqvae', {'variance': 'position'}), ('gumbel', {}),
])
@pytest.mark.parametrize('num_codes', [C, 100])
@pytest.mark.parametrize('training', [True, False])
def test_tiles_change_nothing(monkeypatch, name, fields, num_codes, training):
  # Tiles of a few rows, the last one padded; of 100 codes a few at a time.
  monkeypatch.setattr(assignment, '_TILE', {'cpu': 7 * C})
  monkeypatch.setattr(assignment, '_MIN_ROWS', 7)
  monkeypatch.setattr(assignment, '_MAX_TILE', 16 * 7 * 8)
  monkeypatch.setattr(assignment, '_MAX_CODES', 16)
  results = []
  for method in ('plain', 'tiled'):
    arguments = FIELDS | fields | {'num_codes': num_codes, 'assignment': method}
    quantizer = quantizers.make(name, **arguments)
    params, state, h = inputs(quantizer, (2, 11))

    def loss(params, h, temperature, quantizer=quantizer, state=state):
      quantized, _ = quantizer.apply(
          params, state, 2 + h, key=jax.random.key(2), temperature=temperature,
          train=training,
      )  # fmt: skip
      weights = jnp.cos(jnp.arange(quantized.z.size))
      value = jnp.sum(quantized.z.ravel() * weights) + quantized.loss
      return value + jnp.sum(quantized.q_c**2), quantized

    gradients = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    )
    results.append(gradients(params, h, 0.2))
  plain, tiled = results
  chex.assert_tree_all_finite(tiled)
  np.testing.assert_array_equal(plain[0][1].codes, tiled[0][1].codes)
  scales = jax.tree.map(lambda x: jnp.max(jnp.abs(x)) + 1e-6, plain)
  difference = jax.tree.map(
      lambda a, b, scale: jnp.max(jnp.abs(a - b)) / scale, plain, tiled, scales
  )
  # That of the temperature is a small sum of large numbers.
  assert difference[1][2] < 1e-4
  assert max(jax.tree.leaves((difference[0], difference[1][:2]))) < 1e-5


@those(lambda name: 'tiled' in name or name == 'gmvq')
def test_there_may_be_no_positions(quantizer):
  params, state, h = inputs(quantizer, (0, 3))
  quantized, _ = train(quantizer, params, state, h)
  chex.assert_shape(quantized.codes, (0, 3, *quantizer.code_shape))
  chex.assert_tree_all_finite(quantized.loss)


def test_gmvq_batch_alone_gives_each_position_its_q_c(rng):
  quantizer = QUANTIZERS['gmvq, batch']
  params, state, h = inputs(quantizer, (8, 3))
  quantized, _ = quantizer.apply(params, state, h)
  probs = jnp.exp(
      gmvq_jax.log_posterior(
          h[..., :L], jax.nn.softplus(h[..., L:]), params['codebook']
      )
  )
  kls = [reference.kl_to_uniform(np.asarray(probs[:, i]).mean(0))
         for i in range(3)]
  np.testing.assert_allclose(quantized.metrics['kl'], np.mean(kls), rtol=1e-5)


def test_gmvq_hard_is_one_codeword_and_soft_is_their_mixture():
  for hard in (True, False):
    quantizer = gmvq_jax.gmvq(
        C, L, gamma=0.1, beta=2.0, two_sigma2=1e12, hard=hard
    )
    params, state, h = inputs(quantizer)
    quantized, _ = train(quantizer, params, state, h)
    distance = jnp.abs(quantized.z - params['codebook'][quantized.codes])
    assert (distance.max() < 1e-3) == hard


def test_gmvq_stop_variance_gradient_and_weight_scale():
  """With a flat posterior sigma is all that a gradient can reach z_hat by."""
  for stop in (True, False):
    quantizer = gmvq_jax.gmvq(
        C, L, gamma=0.1, beta=2.0, weight_scale=1e-9,
        stop_variance_gradient=stop,
    )  # fmt: skip
    params, state, h = inputs(quantizer)

    def total(h, quantizer=quantizer, params=params, state=state):
      quantized, _ = train(quantizer, params, state, h)
      return jnp.sum(quantized.z), quantized.metrics

    gradient, metrics = jax.grad(total, has_aux=True)(h)
    assert (jnp.abs(gradient[..., :L]).max() < 1e-5) == stop
    np.testing.assert_allclose(
        metrics['posterior_entropy'], np.log(C), rtol=1e-5
    )


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="name='vq' is unknown; it must be one"):
    quantizers.make('vq')
  with pytest.raises(ValueError, match="latent='typo' is unknown"):
    gmvq_jax.gmvq(C, L, gamma=1.0, beta=1.0, latent='typo')
