"""Residual, grouped and projected quantizers against those they are made of."""

import functools

import chex
from compiled import call
from compiled import init
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers
from gmvq_jax.runtime import distributed

C, L = 12, 4


def make(name='vqvae', **fields):
  return quantizers.make(name, num_codes=C, dim=L, **fields)


def inputs(quantizer, rng, leading=(6, 5)):
  params, state = init(quantizer)
  h = rng.normal(size=(*leading, sum(quantizer.heads)))
  return params, state, h.astype(np.float32)


def train(quantizer, params, state, h, **kwargs):
  """Returns the result of a training step, and the new state."""
  return call(quantizer.apply, params, state, h, train=True, **kwargs)


def evaluate(quantizer, params, state, h, **kwargs):
  return call(quantizer.apply, params, state, h, **kwargs)[0]


def at(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


# Residual.


def by_levels(codebooks, z):
  """Returns codes and residuals, of float64 NumPy."""
  left, codes = np.asarray(z, np.float64), []
  for rows in np.asarray(codebooks, np.float64):
    chosen = np.square(left[..., None, :] - rows).sum(-1).argmin(-1)
    codes.append(chosen)
    left = left - rows[chosen]
  return np.stack(codes, axis=-1), left


def test_residual_is_algorithm_1(rng):
  quantizer = quantizers.residual(make(alpha=2.0), 3)
  params, state, z = inputs(quantizer, rng)
  quantized, _ = train(quantizer, params, state, z)
  codes, left = by_levels(params['codebook'], z)
  np.testing.assert_array_equal(quantized.codes, codes)
  np.testing.assert_allclose(quantized.z, z - left, atol=1e-5)
  error = 0.0
  for level in range(3):
    _, left = by_levels(params['codebook'][: level + 1], z)
    error += np.square(left).mean()
  np.testing.assert_allclose(quantized.loss, 2 * error, rtol=1e-5)
  np.testing.assert_allclose(
      quantized.metrics['quantization_error'], np.square(left).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
      quantized.metrics['latent_variance'],
      z.reshape(-1, L).var(axis=0).mean(),
      rtol=1e-5,
  )
  for level in range(3):
    shares = np.bincount(codes[..., level].ravel(), minlength=C) / 30
    np.testing.assert_allclose(quantized.q_c[level], shares, atol=1e-6)


@pytest.mark.parametrize('dropout', [False, True])
def test_the_decoders_gradient_reaches_the_latents_once(rng, dropout):
  weights = rng.normal(size=(6, 5, L)).astype(np.float32)
  quantizer = quantizers.residual(make(), 3, dropout=dropout)
  params, state, z = inputs(quantizer, rng)

  def task(params, z):
    quantized, _ = quantizer.apply(
        params, state, z, key=jax.random.key(0), train=True
    )
    return jnp.sum(weights * quantized.z)

  of_params, of_z = call(jax.grad(task, argnums=(0, 1)), params, z)
  np.testing.assert_allclose(of_z, weights, rtol=1e-5)
  np.testing.assert_array_equal(of_params['codebook'], 0)


def test_the_loss_of_a_level_has_no_gradient_through_earlier_levels(rng):
  """The gradient of the latents is as if earlier levels were constants."""
  quantizer = quantizers.residual(make(alpha=1.0, beta=0.3), 2)
  params, state, z = inputs(quantizer, rng)

  def loss(params, z):
    return quantizer.apply(params, state, z, train=True)[0].loss

  of_params, of_z = call(jax.grad(loss, argnums=(0, 1)), params, z)
  codes, _ = by_levels(params['codebook'], z)
  expected_z, expected = 0.0, np.zeros((2, C, L))
  for level in range(2):
    _, left = by_levels(params['codebook'][: level + 1], z)
    pull = 2 * left / z.size
    expected_z = expected_z + 0.7 * pull
    np.add.at(
        expected[level],
        codes[..., level].ravel(),
        -0.3 * pull.reshape(-1, L),
    )
  np.testing.assert_allclose(of_z, expected_z, atol=1e-6)
  np.testing.assert_allclose(of_params['codebook'], expected, atol=1e-6)


def test_dropout_keeps_the_first_levels_of_each_example(rng):
  quantizer = quantizers.residual(make(), 4, dropout=True, min_depth=2)
  params, state, z = inputs(quantizer, rng, (400, 2))

  def run(params, z):
    quantized, _ = quantizer.apply(
        params, state, z, key=jax.random.key(0), train=True
    )
    evaluated, _ = quantizer.apply(params, state, z)
    embedded = quantizer.embed(params, state, quantized.codes)
    return quantized, embedded, evaluated

  quantized, embedded, evaluated = call(run, params, z)
  kept = np.sum(quantized.codes >= 0, axis=-1)
  np.testing.assert_array_equal(kept[:, 0], kept[:, 1])
  shares = np.bincount(kept[:, 0], minlength=5) / 400
  np.testing.assert_allclose(shares, [0, 0, 1 / 3, 1 / 3, 1 / 3], atol=0.08)
  codes, _ = by_levels(params['codebook'], z)
  expected = np.where(np.arange(4) < kept[..., None], codes, -1)
  np.testing.assert_array_equal(quantized.codes, expected)
  np.testing.assert_allclose(quantized.z, embedded, atol=1e-5)
  # All of them at evaluation.
  np.testing.assert_array_equal(evaluated.codes, codes)
  with pytest.raises(ValueError, match='residual with dropout: train=True'):
    train(quantizer, params, state, z)


def test_dropout_counts_as_a_mask_of_its_level(rng):
  """The statistics of the last level are those of the examples that have it."""
  quantizer = quantizers.residual(make('vqvae+ema'), 2, dropout=True)
  params, state, z = inputs(quantizer, rng)
  quantized, moved = train(quantizer, params, state, z, key=jax.random.key(0))
  has_it = quantized.codes[..., 1] >= 0
  assert 0 < has_it.sum() < has_it.size
  _, left = by_levels(state['codebook'][:1], z)
  _, alone = train(
      make('vqvae+ema'), params, at(state, 1), left.astype(np.float32)[has_it]
  )
  chex.assert_trees_all_close(at(moved, 1), alone, rtol=1e-4, atol=1e-5)


def test_dropout_is_the_same_on_any_number_of_devices(rng):
  """On a sharded batch; in `shard_map` each device samples its own."""
  quantizer = quantizers.residual(make(), 4, dropout=True)
  params, state, z = inputs(quantizer, rng, (16, 2))
  mesh = distributed.data_mesh()

  @functools.partial(jax.jit, static_argnames='axis_name')
  def codes_of(z, axis_name=None):
    quantized, _ = quantizer.apply(
        params, state, z, key=jax.random.key(0), train=True, axis_name=axis_name
    )
    return quantized.codes

  sharded = jax.device_put(z, distributed.batched(mesh))
  np.testing.assert_array_equal(codes_of(sharded), codes_of(z))
  data = jax.sharding.PartitionSpec('data')
  local = jax.shard_map(
      functools.partial(codes_of, axis_name='data'),
      mesh=mesh, in_specs=data, out_specs=data,
  )  # fmt: skip
  kept = np.sum(call(local, z)[:, 0] >= 0, axis=-1)
  assert len(np.unique(kept)) > 1


def test_fewer_levels_are_the_first(rng):
  quantizer = quantizers.residual(make(), 3)
  params, state, z = inputs(quantizer, rng)

  def run(params, z):
    codes = quantizer.apply(params, state, z)[0].codes
    return [
        quantizer.embed(params, state, x)
        for x in (codes[..., :2], codes.at[..., 2].set(-1))
    ]

  two, dropped = call(run, params, z)
  _, left = by_levels(params['codebook'][:2], z)
  np.testing.assert_allclose(two, z - left, atol=1e-5)
  np.testing.assert_allclose(two, dropped, atol=1e-6)


def test_a_shared_codebook_is_one(rng):
  inner = make()
  quantizer = quantizers.residual(inner, 3, shared=True)
  params, state, z = inputs(quantizer, rng)
  chex.assert_trees_all_equal_shapes(params, init(inner)[0])
  quantized = evaluate(quantizer, params, state, z)
  codes, _ = by_levels([params['codebook']] * 3, z)
  np.testing.assert_array_equal(quantized.codes, codes)


def test_a_shared_moving_average_moves_level_by_level(rng):
  inner = make('vqvae+ema', decay=0.5)
  quantizer = quantizers.residual(inner, 2, shared=True)
  params, state, z = inputs(quantizer, rng)
  _, moved = train(quantizer, params, state, z)
  first, once = train(inner, params, state, z)
  _, twice = train(inner, params, once, z - first.z)
  chex.assert_trees_all_close(moved, twice, rtol=1e-5)


def step_and_finish(quantizer, params, state, z, seed):
  """Returns codes, and the result of `finish`."""

  def run(params, state, z, seed):
    quantized, state = quantizer.apply(
        params, state, z, key=jax.random.key(seed), train=True
    )
    return quantized.codes, quantizer.finish(params, state)

  return call(run, params, state, z, seed)


def test_a_code_that_is_dead_at_every_level_is_replaced(rng):
  """In a shared codebook a code is alive if one level uses it."""
  quantizer = quantizers.residual(
      make('vqvae+replace', replace_after=4), 2, shared=True
  )
  params, state, z = inputs(quantizer, rng)
  params['codebook'] = np.array(params['codebook'])
  params['codebook'][7] = 99.0
  for step in range(2):
    np.testing.assert_array_equal(params['codebook'][7], 99.0)
    codes, (params, state, fresh) = step_and_finish(
        quantizer, params, state, z, step
    )
  assert np.all(fresh['codebook'][7])
  assert np.all(np.abs(params['codebook'][7]) < 10)
  assert not np.any(fresh['codebook'][np.unique(codes)])


def test_levels_have_dead_codes_of_their_own(rng):
  quantizer = quantizers.residual(make('vqvae+replace', replace_after=1), 2)
  params, state, z = inputs(quantizer, rng, (7,))
  codes, (_, _, fresh) = step_and_finish(quantizer, params, state, z, 0)
  for level in range(2):
    dead = ~np.isin(np.arange(C), codes[:, level])
    np.testing.assert_array_equal(
        np.all(fresh['codebook'][level], axis=-1), dead
    )


def test_scale_makes_levels_finer(rng):
  """Each level of fsq at a quarter: the error falls with every one."""
  quantizer = quantizers.residual(
      quantizers.fsq(levels=(5, 5)), 3, scale=0.25
  )
  z = rng.uniform(-0.7, 0.7, size=(500, 2)).astype(np.float32)

  def run(z):
    codes = quantizer.apply({}, {}, z)[0].codes
    return [quantizer.embed({}, {}, codes[..., :k]) for k in (1, 2, 3)]

  errors = [np.mean((z - embedded) ** 2) for embedded in call(run, z)]
  assert errors[0] > 2 * errors[1] > 4 * errors[2]


def kmeans(quantizer, params, state, h, mask=None, seed=1):
  """Returns params and state of the k-means initialisation."""

  def run(params, state, h, mask):
    return quantizers.kmeans_start(
        jax.random.key(seed), quantizer, params, state, h, mask=mask
    )

  return call(run, params, state, h, mask)


def test_kmeans_initialises_each_level_from_its_residuals(rng):
  quantizer = quantizers.residual(make(), 3)
  params, state, z = inputs(quantizer, rng, (400,))
  params, _ = kmeans(quantizer, params, state, z)
  errors = []
  for depth in (1, 2, 3):
    codes, left = by_levels(params['codebook'][:depth], z)
    errors.append(np.square(left).mean())
    # Centres: residuals have no mean in any cell.
    means = [left[codes[:, -1] == c].mean(0) for c in np.unique(codes[:, -1])]
    assert np.abs(np.concatenate(means)).mean() < 0.1
  assert errors[0] > 1.3 * errors[1] > 1.3**2 * errors[2]


def test_more_levels_of_gmvq_reconstruct_better(rng):
  """Trained on latents alone, without noise, with precisions of each level."""
  import optax

  inner = quantizers.gmvq(
      C, L, gamma=0.1, beta=1.0, gaussian_noise=False, weight_scale=20.0
  )
  quantizer = quantizers.residual(inner, 2)
  params, state, h = inputs(quantizer, rng, (256,))
  assert quantizer.heads == (L, L, L)
  params, state = kmeans(quantizer, params, state, h, seed=0)
  optimizer = optax.adam(1e-2)

  def fit(params, h):
    def step(carry, seed):
      params, opt_state = carry

      def loss(params):
        quantized, _ = quantizer.apply(
            params, state, h, key=jax.random.key(seed), temperature=0.3,
            train=True,
        )  # fmt: skip
        error = jnp.mean(jnp.square(quantized.z - h[:, :L]))
        return quantizer.objective(error, quantized, data_shape=(len(h), L))

      updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
      return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(
        step, (params, optimizer.init(params)), jnp.arange(60)
    )
    codes = quantizer.apply(params, state, h)[0].codes
    return [quantizer.embed(params, state, codes[:, :k]) for k in (1, 2)]

  errors = [
      np.mean(np.square(h[:, :L] - embedded))
      for embedded in call(fit, params, h)
  ]
  assert errors[1] < 0.75 * errors[0]


def test_levels_sample_apart(rng):
  """Codes that are sampled evenly are not the same at every level."""
  quantizer = quantizers.residual(make('gumbel'), 2)
  params, state, h = inputs(quantizer, rng)
  params['kernel'] = np.zeros_like(params['kernel'])
  quantized, _ = train(
      quantizer, params, state, h, key=jax.random.key(0), temperature=1.0
  )
  same = quantized.codes[..., 0] == quantized.codes[..., 1]
  assert np.mean(same) < 0.5


@pytest.mark.parametrize('fields, message', [
    ({'depth': 0}, 'depth=0: must be an integer of at least 1'),
    ({'depth': 2.0}, 'depth=2.0: must be an integer'),
    ({'depth': 3, 'min_depth': 0}, 'min_depth=0: must be an integer of at'),
    ({'depth': 3, 'min_depth': 4}, 'min_depth=4: must be at most depth=3'),
    ({'depth': 3, 'scale': 0.0}, 'scale=0.0: must be greater than 0'),
])
def test_values_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    quantizers.residual(make(), **fields)


@pytest.mark.parametrize('shared', [True, False])
def test_codes_of_too_many_levels_are_refused(shared):
  quantizer = quantizers.residual(make(), 2, shared=shared)
  with pytest.raises(ValueError, match='codes of 3 levels: there are 2'):
    call(quantizer.embed, *init(quantizer), np.zeros((5, 3), np.int32))


def test_one_position_may_lose_levels():
  quantizer = quantizers.residual(make(), 2, dropout=True)
  h = np.ones(L, np.float32)
  quantized, _ = jax.eval_shape(
      functools.partial(quantizer.apply, train=True),
      *init(quantizer),
      h,
      key=jax.random.key(0),
  )
  chex.assert_shape(quantized.codes, (2,))


# Grouped.


@pytest.mark.parametrize('name', ['vqvae', 'vqvae+ema', 'sqvae'])
def test_groups_are_quantized_apart(rng, name):
  inner = make(name)
  quantizer = quantizers.grouped(inner, 3)
  params, state, h = inputs(quantizer, rng)
  training = 'sq' not in name

  def run(quantizer, params, state, h):
    return call(
        quantizer.apply, params, state, h, temperature=1.0, train=training
    )

  quantized, moved = run(quantizer, params, state, h)
  losses = []
  for group in range(3):
    here = slice(L * group, L * (group + 1))
    alone, alone_moved = run(
        inner, at(params, group), at(state, group), h[..., here]
    )
    np.testing.assert_array_equal(quantized.codes[..., group], alone.codes)
    np.testing.assert_allclose(quantized.z[..., here], alone.z, atol=1e-6)
    np.testing.assert_allclose(quantized.q_c[group], alone.q_c, atol=1e-6)
    chex.assert_trees_all_close(at(moved, group), alone_moved, atol=1e-6)
    losses.append(alone.loss)
  np.testing.assert_allclose(quantized.loss, np.mean(losses), rtol=1e-5)


def test_every_head_is_split(rng):
  """GM-VQ's group g: its share of the latents, and of the precisions."""
  inner = quantizers.gmvq(C, L, gamma=0.1, beta=1.0)
  quantizer = quantizers.grouped(inner, 2)
  assert quantizer.heads == (2 * L, 2 * L)
  params, state, h = inputs(quantizer, rng)
  quantized = evaluate(quantizer, params, state, h)
  z_hat, raw = np.split(h, 2, axis=-1)
  for group in range(2):
    here = slice(L * group, L * (group + 1))
    own = np.concatenate([z_hat[..., here], raw[..., here]], axis=-1)
    alone = evaluate(inner, at(params, group), state, own)
    np.testing.assert_array_equal(quantized.codes[..., group], alone.codes)


def test_a_group_counts_as_a_position(rng):
  """GM-VQ's objective is the same, of groups or of as many positions."""
  inner = quantizers.gmvq(C, L, gamma=0.1, beta=1.0)
  quantizer = quantizers.grouped(inner, 2, shared=True)
  params, state, h = inputs(quantizer, rng)
  grouped = evaluate(quantizer, params, state, h)
  z_hat, raw = (x.reshape(6, 10, L) for x in np.split(h, 2, axis=-1))
  alone = evaluate(
      inner, params, state, np.concatenate([z_hat, raw], axis=-1)
  )
  np.testing.assert_array_equal(grouped.codes.reshape(6, 10), alone.codes)

  def objectives(error, grouped, alone):
    return (
        quantizer.objective(error, grouped, data_shape=(6, 40)),
        inner.objective(error, alone, data_shape=(6, 40)),
    )

  error = np.float32(1 / 40)
  of_groups, of_positions = call(objectives, error, grouped, alone)
  np.testing.assert_allclose(of_groups, of_positions, rtol=1e-6)


def test_groups_of_levels_and_levels_of_groups(rng):
  inner = make()
  levels = quantizers.grouped(quantizers.residual(inner, 2), 3)
  groups = quantizers.residual(quantizers.grouped(inner, 3), 2)
  assert levels.code_shape == (3, 2) and groups.code_shape == (2, 3)
  params, state, h = inputs(levels, rng)
  one = evaluate(levels, params, state, h)
  swapped = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), params)
  other = evaluate(groups, swapped, state, h)
  np.testing.assert_array_equal(one.codes, np.swapaxes(other.codes, -1, -2))
  np.testing.assert_allclose(one.z, other.z, atol=1e-6)


def test_kmeans_initialises_each_group(rng):
  quantizer = quantizers.grouped(make(), 2)
  params, state, z = inputs(quantizer, rng, (300,))
  z[:, L:] += 50
  params, _ = kmeans(quantizer, params, state, z)
  assert np.all(np.abs(params['codebook'][0]) < 10)
  assert np.all(np.abs(params['codebook'][1] - 50) < 10)


@pytest.mark.parametrize('kind, shared', [
    ('residual', True), ('residual', False), ('grouped', True),
    ('grouped', False), ('frozen', False), ('projected', False),
    pytest.param('frozen', True, marks=pytest.mark.slow),
    pytest.param('projected', True, marks=pytest.mark.slow),
])  # fmt: skip
def test_kmeans_initialisation_ignores_masked_positions(rng, kind, shared):
  """And not the others: they are quantized better than before."""
  inner = make()
  quantizer = {
      'residual': lambda: quantizers.residual(inner, 2, shared=shared),
      'grouped': lambda: quantizers.grouped(inner, 2, shared=shared),
      'frozen': lambda: quantizers.with_frozen_codebook(
          quantizers.grouped(inner, 2, shared=shared)
      ),
      'projected': lambda: quantizers.projected(
          quantizers.residual(inner, 2, shared=shared), 5
      ),
  }[kind]()
  before = init(quantizer)
  h = rng.normal(size=(40, sum(quantizer.heads))).astype(np.float32)
  mask = np.arange(40) < 30

  @jax.jit
  def run(before, h):
    started = quantizers.kmeans_start(
        jax.random.key(1), quantizer, *before, h, mask=mask
    )
    errors = [
        quantizer.apply(*x, h, mask=mask)[0].metrics['quantization_error']
        for x in (before, started)
    ]
    return started, errors

  h[30:] = np.nan
  started, (error, error_started) = jax.device_get(run(before, h))
  chex.assert_tree_all_finite(started)
  h[30:] = 1e3
  other, _ = jax.device_get(run(before, h))
  chex.assert_trees_all_equal(started, other)
  # A shared codebook of levels is initialised for the first one.
  assert error_started < 0.85 * error


def test_no_codeword_is_at_a_masked_position(rng):
  quantizer = make()
  params, state, h = inputs(quantizer, rng, (40,))
  params, _ = kmeans(quantizer, params, state, h + 10, mask=np.arange(40) < 30)
  assert np.all(params['codebook'] > 5)


def test_too_few_positions_are_refused(rng):
  quantizer = make()
  params, state, z = inputs(quantizer, rng, (40,))
  with pytest.raises(ValueError, match='kmeans_start: 4 positions for 12 code'):
    quantizers.kmeans_start(
        jax.random.key(0), quantizer, params, state, z, mask=np.arange(40) < 4
    )


# Projected.


def test_projection_is_two_affine_maps(rng):
  inner = make()
  quantizer = quantizers.projected(inner, 7)
  params, state, h = inputs(quantizer, rng)
  assert quantizer.heads == (7,)
  for name in ('project_in', 'project_out'):
    bias = params[name]['bias']
    params[name]['bias'] = rng.normal(size=bias.shape).astype(np.float32)
  quantized = evaluate(quantizer, params, state, h)

  def project(params, x):
    return x @ params['kernel'] + params['bias']

  alone = evaluate(
      inner, params['inner'], state, project(params['project_in'], h)
  )
  np.testing.assert_array_equal(quantized.codes, alone.codes)
  np.testing.assert_allclose(
      quantized.z, project(params['project_out'], alone.z), atol=1e-5
  )

  def task(params, h):
    quantized, _ = quantizer.apply(params, state, h, train=True)
    return jnp.sum(jnp.square(quantized.z - h))

  gradient = call(jax.grad(task), params, h)
  assert np.all(gradient['project_in']['kernel'] != 0)
  assert np.all(gradient['project_out']['kernel'] != 0)


def test_dead_codes_come_back_behind_a_projection(rng):
  quantizer = quantizers.projected(make('vqvae+replace', replace_after=1), 7)
  params, state, h = inputs(quantizer, rng, (3,))
  codes, (written, _, fresh) = step_and_finish(quantizer, params, state, h, 0)
  dead = ~np.isin(np.arange(C), codes)
  moved = written['inner']['codebook'] != params['inner']['codebook']
  np.testing.assert_array_equal(np.all(moved, axis=-1), dead)
  chex.assert_trees_all_equal_structs(fresh, params)


# Of all.


def test_top_codes_are_the_most_probable(rng):
  quantizer = quantizers.gmvq(C, L, gamma=0.1, beta=1.0)
  params, state, h = inputs(quantizer, rng)

  def run(params, h):
    logits = quantizer.logits(params, state, h)
    return (
        quantizers.top_codes(quantizer, params, state, h, C),
        jax.nn.log_softmax(logits),
    )

  (codes, log_probs), expected = call(run, params, h)
  chex.assert_shape([codes, log_probs], (6, 5, C))
  np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(
      np.take_along_axis(expected, codes, -1), log_probs, rtol=1e-5
  )
  assert np.all(log_probs[..., :-1] >= log_probs[..., 1:])


def test_top_codes_of_vqvae_are_the_nearest(rng):
  quantizer = make()
  params, state, z = inputs(quantizer, rng)

  def top(params, z, k):
    return quantizers.top_codes(
        quantizer, params, state, z, k, temperature=0.5
    )

  codes, log_probs = call(functools.partial(top, k=3), params, z)
  squared = np.square(
      z.astype(np.float64)[..., None, :] - params['codebook']
  ).sum(-1)
  np.testing.assert_array_equal(codes, np.argsort(squared)[..., :3])
  exp = np.exp(-squared / 0.5)
  probs = np.sort(exp / exp.sum(-1, keepdims=True))[..., ::-1]
  np.testing.assert_allclose(np.exp(log_probs), probs[..., :3], rtol=1e-4)
  with pytest.raises(ValueError, match='k=13: must be from 1 to the 12 codes'):
    top(params, z, 13)
