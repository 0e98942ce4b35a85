"""Each baseline against its equation in NumPy, and its other promises."""

import functools

import chex
from compiled import call
from compiled import init
import compositions
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from gmvq_jax import quantizers
from gmvq_jax.runtime import distributed

C, L = 12, 3
SHAPE = (5, 4)  # Images, positions.


def inputs(quantizer, rng, leading=SHAPE):
  params, state = init(quantizer)
  h = rng.normal(size=(*leading, sum(quantizer.heads)))
  return params, state, h.astype(np.float32)


def training(quantizer, params, state, h, seed=0, temperature=0.7, **kwargs):
  """Returns the result of a training step, and the new state."""
  return quantizer.apply(
      params,
      state,
      h,
      key=jax.random.key(seed),
      temperature=temperature,
      train=True,
      **kwargs,
  )


def train(quantizer, params, state, h, seed=0, temperature=0.7, **kwargs):
  """As `training`, by one program."""
  return call(
      quantizer.apply,
      params,
      state,
      h,
      key=jax.random.key(seed),
      temperature=temperature,
      train=True,
      **kwargs,
  )


def evaluate(quantizer, params, state, h):
  return call(quantizer.apply, params, state, h)


def objective(quantizer, error, quantized, *, data_shape):
  return call(
      functools.partial(quantizer.objective, data_shape=data_shape),
      np.float32(error),
      quantized,
  )


def write(quantizer, params, state, rows, where):
  return call(quantizer.write, params, state, np.float32(rows), where)


def nearest(z, rows):
  """The codes of float64 `[..., L]` by every distance."""
  z, rows = np.asarray(z, np.float64), np.asarray(rows, np.float64)
  return np.argmin(np.square(z[..., None, :] - rows).sum(-1), axis=-1)


def unit(vectors):
  vectors = np.asarray(vectors, np.float64)
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# VQ-VAE.


def test_vqvae_is_its_equation(rng):
  quantizer = quantizers.vqvae(C, L, alpha=3.0, beta=0.8)
  params, state, z = inputs(quantizer, rng)
  rows = np.asarray(params['codebook'], np.float64)
  codes = nearest(z, rows)
  error = np.square(np.asarray(z, np.float64) - rows[codes])
  quantized, _ = train(quantizer, params, state, z)
  np.testing.assert_array_equal(quantized.codes, codes)
  np.testing.assert_allclose(quantized.z, rows[codes], rtol=1e-6)
  np.testing.assert_allclose(quantized.loss, 3 * error.mean(), rtol=1e-5)
  counts = np.bincount(codes.ravel(), minlength=C) / codes.size
  np.testing.assert_allclose(quantized.q_c, counts, rtol=1e-6)
  np.testing.assert_allclose(
      quantized.metrics['quantization_error'], error.mean(), rtol=1e-5
  )
  loss = objective(quantizer, 0.5, quantized, data_shape=(5, 2, 4))
  np.testing.assert_allclose(loss, 0.5 + quantized.loss, rtol=1e-6)


def test_vqvae_gradients_are_straight_through(rng):
  """The decoder's reaches z as it is; that of the loss is divided by beta."""
  alpha, beta = 3.0, 0.8
  quantizer = quantizers.vqvae(C, L, alpha=alpha, beta=beta)
  params, state, z = inputs(quantizer, rng)
  weights = rng.normal(size=z.shape).astype(np.float32)

  def task(params, z):
    return jnp.sum(weights * training(quantizer, params, state, z)[0].z)

  def loss(params, z):
    return training(quantizer, params, state, z)[0].loss

  def gradients(params, z):
    return [jax.grad(f, argnums=(0, 1))(params, z) for f in (task, loss)]

  of_task, of_loss = call(gradients, params, z)
  of_params, of_z = of_task
  np.testing.assert_array_equal(of_z, weights)
  np.testing.assert_array_equal(of_params['codebook'], 0)
  of_params, of_z = of_loss
  rows = np.asarray(params['codebook'], np.float64)
  codes = nearest(z, rows)
  pull = 2 * (np.asarray(z, np.float64) - rows[codes]) / z.size
  np.testing.assert_allclose(of_z, alpha * (1 - beta) * pull, atol=1e-6)
  expected = np.zeros((C, L))
  np.add.at(expected, codes.ravel(), -alpha * beta * pull.reshape(-1, L))
  np.testing.assert_allclose(of_params['codebook'], expected, atol=1e-6)


@pytest.mark.parametrize('name', ['vqvae', 'gmvq', 'sqvae'])
@pytest.mark.parametrize('error, data_shape, message', [
    (np.ones(5), (5, 8), r'error of shape \(5,\): must be \[\], the mean'),
    (0.5, (4, 8), r'\(4, 8\) with codes of shape \(5, 4\): both must begin'),
    (0.5, (), r'data_shape=\(\) with codes'),
])
def test_an_objective_takes_the_mean_error_of_its_batch(
    name, error, data_shape, message
):
  quantizer = compositions.make(name, num_codes=C, dim=L, gamma=1.0, beta=1.0)
  params, state = jax.eval_shape(quantizer.init, jax.random.key(0))
  h = np.ones((*SHAPE, sum(quantizer.heads)), np.float32)
  quantized, _ = jax.eval_shape(quantizer.apply, params, state, h)
  with pytest.raises(ValueError, match=message):
    quantizer.objective(error, quantized, data_shape=data_shape)


# EMA.


def test_ema_is_its_closed_form(rng):
  """After T steps: sums of decayed latents over decayed counts, smoothed."""
  decay, epsilon, steps = 0.9, 1e-3, 6
  quantizer = quantizers.vqvae_ema(
      C, L, decay=decay, epsilon=epsilon, commitment=0.3
  )
  params, state, _ = inputs(quantizer, rng)
  counts = np.ones(C) * decay**steps
  sums = np.asarray(state['codebook'], np.float64) * decay**steps
  for t in range(steps):
    z = rng.normal(size=(*SHAPE, L)).astype(np.float32)
    codes = nearest(z, state['codebook'])
    weight = (1 - decay) * decay ** (steps - 1 - t)
    np.add.at(counts, codes.ravel(), weight)
    np.add.at(sums, codes.ravel(), weight * z.reshape(-1, L))
    before = np.asarray(state['codebook'], np.float64)
    quantized, state = train(quantizer, params, state, z)
    np.testing.assert_allclose(
        quantized.loss, 0.3 * np.square(z - before[codes]).mean(), rtol=1e-5
    )
  total = counts.sum()
  smoothed = (counts + epsilon) / (total + C * epsilon) * total
  np.testing.assert_allclose(
      state['codebook'], sums / smoothed[:, None], rtol=1e-4
  )


def test_ema_settles_on_the_means_of_its_latents(rng):
  quantizer = quantizers.vqvae_ema(2, 1, decay=0.5)
  params, state, _ = inputs(quantizer, rng)
  _, state = write(
      quantizer, params, state, [[0.0], [5.0]], np.ones(2, bool)
  )
  z = np.float32([[1.0], [2.0], [6.0], [8.0]])
  for _ in range(40):
    _, state = train(quantizer, params, state, z)
  np.testing.assert_allclose(state['codebook'], [[1.5], [7.0]], rtol=1e-3)


def test_ema_leaves_evaluation_alone(rng):
  quantizer = quantizers.vqvae_ema(C, L)
  params, state, z = inputs(quantizer, rng)
  _, after = evaluate(quantizer, params, state, z)
  chex.assert_trees_all_equal(state, after)


def test_ema_counts_what_is_not_masked_on_all_devices(rng):
  """As on one device without the masked positions."""
  quantizer = quantizers.vqvae_ema(C, L, decay=0.5)
  params, state, z = inputs(quantizer, rng, (8, 4))
  mask = rng.uniform(size=(8, 4)) < 0.6
  data = jax.sharding.PartitionSpec('data')

  def moved(z, mask):
    return training(
        quantizer, params, state, z, mask=mask, axis_name='data'
    )[1]

  on_devices = jax.shard_map(
      moved,
      mesh=distributed.data_mesh(),
      in_specs=data,
      out_specs=jax.sharding.PartitionSpec(),
  )
  _, alone = train(quantizer, params, state, z[mask])
  chex.assert_trees_all_close(call(on_devices, z, mask), alone, rtol=1e-5)


# On the sphere.


def test_l2_searches_by_cosine(rng):
  quantizer = quantizers.make('vqvae+l2', num_codes=C, dim=L)
  params, state, z = inputs(quantizer, rng)
  z = 7 * z
  rows = unit(params['codebook'])
  codes = np.argmax(unit(z) @ rows.T, axis=-1)
  quantized, _ = train(quantizer, params, state, z)
  np.testing.assert_array_equal(quantized.codes, codes)
  np.testing.assert_allclose(quantized.z, rows[codes], rtol=1e-5, atol=1e-6)
  error = np.square(unit(z) - rows[codes]).mean()
  np.testing.assert_allclose(quantized.loss, 5 * error, rtol=1e-4)


def test_l2_keeps_the_norms_that_are_written():
  """A longer codeword turns less at each step of the optimiser."""
  quantizer = quantizers.make('vqvae+l2', num_codes=C, dim=L)
  params, state = init(quantizer)
  rows = 5 * np.random.default_rng(0).normal(size=(C, L)).astype(np.float32)
  where = np.arange(C) < 2
  written, _ = call(quantizer.write, params, state, rows, where)
  expected = np.where(where[:, None], rows, params['codebook'])
  np.testing.assert_array_equal(written['codebook'], expected)
  everywhere = np.ones(C, bool)
  read = call(quantizer.read, written, state)
  again, _ = call(quantizer.write, written, state, read, everywhere)
  chex.assert_trees_all_equal(again, written)


def test_l2_survives_a_latent_without_a_direction():
  quantizer = quantizers.make('vqvae+l2', num_codes=C, dim=L)
  params, state = init(quantizer)

  def loss(z):
    return training(quantizer, params, state, z)[0].loss

  gradient = call(jax.grad(loss), np.zeros((2, L), np.float32))
  assert np.all(np.isfinite(gradient))


# Replacement.


def test_a_dead_code_comes_back_to_life(rng):
  """After three steps without it, at a latent, and with its counter at 0."""
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(C, L), replace_after=3, replace_noise=0.0
  )
  params, state, z = inputs(quantizer, rng, (40,))
  far = np.arange(C) == 7
  params, state = write(quantizer, params, state, np.full((C, L), 99), far)
  for step in range(3):
    assert np.all(call(quantizer.read, params, state)[7] == 99)
    quantized, state = train(quantizer, params, state, z, seed=step)
    assert 7 not in quantized.codes
  row = call(quantizer.read, params, state)[7]
  assert np.any(np.all(np.isclose(z, row), axis=-1))
  assert state['unused'][7] == 0
  assert state['replaced'][7] == 1
  quantized, _ = train(quantizer, params, state, z)
  assert 7 in quantized.codes


def test_finish_moves_replaced_codes_to_the_parameters(rng):
  """Nothing is seen of it from outside, but in what it returns."""
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(C, L), replace_after=2
  )
  params, state, z = inputs(quantizer, rng, (3,))

  def run(params, state, z):
    replaced = jnp.zeros(C, jnp.int32)
    for seed in range(4):
      before = state['replaced']
      _, state = training(quantizer, params, state, z, seed)
      replaced += state['replaced'] - before
    after = quantizer.finish(params, state)
    again = quantizer.finish(*after[:2])
    rows = [quantizer.read(*x) for x in ((params, state), after[:2])]
    results = [
        training(quantizer, *x, z)[0] for x in ((params, state), after[:2])
    ]
    return replaced, state, rows, after, again, results

  replaced, before, rows, after, again, results = call(run, params, state, z)
  params_after, state_after, fresh = after
  # After the second step, and again after the fourth.
  assert set(replaced) >= {1, 2}
  np.testing.assert_array_equal(before['replaced'], replaced)
  moved = np.any(before['offset']['codebook'] != 0, axis=-1)
  np.testing.assert_array_equal(moved, replaced > 0)
  np.testing.assert_array_equal(rows[0], rows[1])
  np.testing.assert_array_equal(params_after['codebook'], rows[0])
  np.testing.assert_array_equal(
      np.broadcast_to(fresh['codebook'], (C, L)),
      np.broadcast_to(replaced[:, None], (C, L)),
  )
  assert fresh['codebook'].dtype == np.int32
  np.testing.assert_array_equal(state_after['replaced'], 0)
  np.testing.assert_array_equal(state_after['offset']['codebook'], 0)
  np.testing.assert_array_equal(state_after['unused'], before['unused'])
  chex.assert_trees_all_equal(again[:2], after[:2])
  np.testing.assert_array_equal(again[2]['codebook'], 0)
  chex.assert_trees_all_equal(*results)


def test_codes_in_use_are_not_replaced(rng):
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(C, L), replace_after=1
  )
  params, state, _ = inputs(quantizer, rng)
  before = params['codebook']
  _, state = train(quantizer, params, state, before)
  np.testing.assert_array_equal(call(quantizer.read, params, state), before)
  np.testing.assert_array_equal(state['replaced'], 0)
  params, state, fresh = call(quantizer.finish, params, state)
  np.testing.assert_array_equal(params['codebook'], before)
  assert not np.any(fresh['codebook'])


def test_finish_says_which_moments_of_an_optimiser_to_reset(rng):
  """Those of rows that were rewritten, and no others; see test_optimizer."""
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(C, L), replace_after=1
  )
  params, state, z = inputs(quantizer, rng, (3,))
  optimizer = optax.adam(1e-2)

  def run(params, state, z):
    gradient = jax.tree.map(jnp.ones_like, params)
    _, opt_state = optimizer.update(gradient, optimizer.init(params), params)
    quantized, state = training(quantizer, params, state, z)
    _, _, fresh = quantizer.finish(params, state)
    opt_state = optax.tree.map_params(
        optimizer, lambda m, f: jnp.where(f, 0, m), opt_state, fresh
    )
    return quantized, opt_state

  quantized, opt_state = call(run, params, state, z)
  dead = ~np.isin(np.arange(C), quantized.codes)
  moments = opt_state[0].mu['codebook']
  np.testing.assert_array_equal(moments[dead], 0)
  assert np.all(moments[~dead] > 0)


def test_replacement_resets_what_ema_has_counted(rng):
  quantizer = quantizers.with_replacement(
      quantizers.vqvae_ema(C, L), replace_after=1
  )
  params, state, z = inputs(quantizer, rng, (3,))
  quantized, state = train(quantizer, params, state, z)
  assert 'offset' not in state
  dead = ~np.isin(np.arange(C), quantized.codes)
  np.testing.assert_array_equal(state['replaced'], dead)
  inner = state['inner']
  np.testing.assert_array_equal(inner['counts'][dead], 1)
  np.testing.assert_array_equal(inner['sums'][dead], inner['codebook'][dead])


def test_replacements_are_spread_over_the_latents_that_count(rng):
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(400, L), replace_after=1, replace_noise=0.01
  )
  params, state, z = inputs(quantizer, rng, (20,))
  mask = np.arange(20) < 8
  _, state = train(quantizer, params, state, z, mask=mask)
  dead = state['replaced'] > 0
  assert 400 - 8 <= dead.sum() < 400
  rows = call(quantizer.read, params, state)[dead]
  distance = np.linalg.norm(rows[:, None] - z, axis=-1)
  assert set(np.argmin(distance, axis=1)) == set(range(8))
  relative = distance.min(axis=1) / np.linalg.norm(z, axis=-1)[
      np.argmin(distance, axis=1)
  ]
  assert 0.005 < relative.mean() < 0.015


# Affine.


def test_affine_follows_a_shifted_distribution(rng):
  """In a few steps, and codes that no latent chose move too."""
  shifted = (5 + rng.normal(size=(200, L))).astype(np.float32)
  optimizer = optax.adam(1e-2)
  nearest_row, moved = {}, {}
  for name in ('vqvae', 'vqvae+affine'):
    quantizer = compositions.make(name, num_codes=C, dim=L, affine_scale=5.0)
    params, state = init(quantizer)

    def fit(params, shifted, quantizer=quantizer, state=state):
      before = quantizer.read(params, state)

      def loss(params):
        quantized, _ = quantizer.apply(params, state, shifted, train=True)
        return quantized.loss, quantized.q_c

      def step(carry, _):
        params, opt_state = carry
        slope, q_c = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(params, updates), opt_state), q_c > 0

      (params, _), chosen = jax.lax.scan(
          step, (params, optimizer.init(params)), length=40
      )
      return before, quantizer.read(params, state), chosen.any(axis=0)

    before, rows, chosen = call(fit, params, shifted)
    nearest_row[name] = np.linalg.norm(rows - 5, axis=-1).min()
    assert not chosen.all()
    moved[name] = np.linalg.norm(rows - before, axis=-1)[~chosen].min()
  assert nearest_row['vqvae+affine'] < 0.2 * nearest_row['vqvae']
  assert moved['vqvae'] == 0 < 0.3 < moved['vqvae+affine']


def test_affine_groups_have_maps_of_their_own(rng):
  quantizer = quantizers.with_affine(
      quantizers.vqvae(C, L), affine_scale=2.0, affine_groups=3
  )
  params, state, _ = inputs(quantizer, rng)
  raw = params['inner']['codebook']
  params['scale'], params['shift'] = np.zeros((2, 3, L), np.float32)
  params['scale'][1], params['shift'][2] = 0.5, 1.5
  rows = call(quantizer.read, params, state)
  np.testing.assert_allclose(rows[:4], raw[:4])
  np.testing.assert_allclose(rows[4:8], 2 * raw[4:8], rtol=1e-6)
  np.testing.assert_allclose(rows[8:], raw[8:] + 3, rtol=1e-6)
  new = rng.normal(size=(C, L))
  written = write(quantizer, params, state, new, np.arange(C) % 2 == 0)
  rows_after = call(quantizer.read, *written)
  np.testing.assert_allclose(rows_after[::2], new[::2], atol=1e-5)
  np.testing.assert_allclose(rows_after[1::2], rows[1::2], atol=1e-5)
  with pytest.raises(ValueError, match='affine_groups=5: must divide the 12'):
    quantizers.with_affine(quantizers.vqvae(C, L), affine_groups=5)


def test_affine_is_searched_and_pulled_through_its_map(rng):
  quantizer = quantizers.with_affine(quantizers.vqvae(C, L), affine_scale=2.0)
  params, state, z = inputs(quantizer, rng)
  params['scale'], params['shift'] = (
      0.2 * rng.normal(size=(2, 1, L)).astype(np.float32)
  )
  plain = quantizers.vqvae(C, L)

  def loss(params, z):
    quantized, _ = training(quantizer, params, state, z)
    return quantized.loss, quantized.codes

  def by_hand(params, z):
    rows = (1 + 2 * params['scale']) * params['inner']['codebook']
    rows += 2 * params['shift']
    quantized, _ = training(plain, {'codebook': rows}, {}, z)
    return quantized.loss, quantized.codes

  def gradients(params, z):
    return [jax.value_and_grad(f, has_aux=True)(params, z)
            for f in (loss, by_hand)]

  (got, gradient), (expected, gradient_by_hand) = call(gradients, params, z)
  np.testing.assert_array_equal(got[1], expected[1])
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
  chex.assert_trees_all_close(gradient, gradient_by_hand, atol=1e-5)
  rows = (1 + 2 * params['scale']) * params['inner']['codebook']
  np.testing.assert_allclose(
      call(quantizer.read, params, state), rows + 2 * params['shift'], rtol=1e-5
  )


# Alternate optimisation.


def test_opt_is_sgd_with_momentum(rng):
  """On the mean of (e_k - z)^2, codes kept."""
  quantizer = quantizers.with_alternate_optimization(
      quantizers.vqvae(C, L), opt_learning_rate=3.0, opt_momentum=0.8,
      opt_steps=2,
  )  # fmt: skip
  params, state, _ = inputs(quantizer, rng)
  read = functools.partial(call, quantizer.read)
  rows = read(params, state)
  velocity = np.zeros((C, L))
  for _ in range(3):
    z = rng.normal(size=(*SHAPE, L)).astype(np.float32)
    codes = nearest(z, rows)
    for _ in range(2):
      gradient = np.zeros((C, L))
      error = rows[codes] - z
      np.add.at(gradient, codes.ravel(), 2 * error.reshape(-1, L) / error.size)
      velocity = 0.8 * velocity + gradient
      rows = rows - 3.0 * velocity
    quantized, state = train(quantizer, params, state, z)
    np.testing.assert_allclose(read(params, state), rows, atol=1e-5)
    np.testing.assert_array_equal(quantized.codes, codes)
    np.testing.assert_allclose(quantized.z, rows[codes], atol=1e-5)


def test_opt_lowers_the_quantisation_error(rng):
  quantizer = quantizers.make(
      'vqvae+opt', num_codes=C, dim=L, opt_learning_rate=1.0
  )
  params, state, z = inputs(quantizer, rng, (200,))
  before, _ = evaluate(quantizer, params, state, z)
  after, _ = train(quantizer, params, state, z)
  name = 'quantization_error'
  assert after.metrics[name] < 0.99 * before.metrics[name]


def test_opt_passes_no_gradient_to_the_codebook_but_through_the_map(rng):
  quantizer = quantizers.make('vqvae+affine+opt', num_codes=C, dim=L)
  params, state, z = inputs(quantizer, rng)

  def task(params, z):
    return jnp.sum(training(quantizer, params, state, z)[0].z ** 2)

  def loss(params, z):
    return training(quantizer, params, state, z)[0].loss

  def gradients(params, z):
    return [jax.grad(f, argnums=(0, 1))(params, z) for f in (task, loss)]

  (of_params, of_z), (loss_of_params, loss_of_z) = call(gradients, params, z)
  for leaf in jax.tree.leaves(of_params):
    np.testing.assert_array_equal(leaf, 0)
  assert np.all(of_z != 0)
  assert np.any(loss_of_params['shift'] != 0)
  np.testing.assert_array_equal(loss_of_z, 0)


def test_opt_keeps_its_momentum_under_other_wrappers(rng):
  """Two steps of l2 over opt differ from one, restarted: momentum is kept."""
  quantizer = quantizers.make(
      'vqvae+affine+opt+replace+l2', num_codes=C, dim=L, opt_learning_rate=1.0
  )
  params, state, z = inputs(quantizer, rng)
  _, state = train(quantizer, params, state, z)
  momentum = state['inner']['momentum']
  assert np.any(momentum != 0)
  params, state, _ = call(quantizer.finish, params, state)
  _, state = train(quantizer, params, state, z)
  assert np.any(state['inner']['momentum'] != momentum)


# SQ-VAE.


@pytest.mark.parametrize('variance', ['scalar', 'image', 'position'])
def test_sqvae_is_its_equation(rng, variance):
  quantizer = quantizers.sqvae(
      C, L, variance=variance, initial_variance=1.5
  )
  params, state, h = inputs(quantizer, rng)
  z = np.asarray(h[..., :L], np.float64)
  rows = np.asarray(params['codebook'], np.float64)
  v = np.full(SHAPE, 1 + 1.5)
  if variance != 'scalar':
    own = np.asarray(h[..., L], np.float64)
    if variance == 'image':
      own = np.broadcast_to(own.mean(axis=1, keepdims=True), SHAPE)
    v = np.exp(own) + 1.5
  squared = np.square(z[..., None, :] - rows).sum(-1)
  logits = -squared / (2 * v[..., None])
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  quantized, _ = evaluate(quantizer, params, state, h)
  codes = np.argmax(logits, axis=-1)
  np.testing.assert_array_equal(quantized.codes, codes)
  kl = (np.exp(log_probs) * log_probs).sum(-1).mean()
  latent = (np.square(z - rows[codes]).sum(-1) / (2 * v)).mean()
  np.testing.assert_allclose(quantized.loss, kl + latent, rtol=1e-4)
  # Of images of 48 values, whose squared errors sum up to 4 each on average.
  loss = objective(quantizer, 4 / 48, quantized, data_shape=(5, 4, 4, 3))
  per_image = 48 / 2 * np.log(4) + 4 * (kl + latent)
  np.testing.assert_allclose(loss, per_image / 48, rtol=1e-4)


def test_sqvae_trains_on_the_mixture(rng):
  """Of a low temperature it is one codeword; of a high one, the mean."""
  quantizer = quantizers.sqvae(C, L)
  params, state, h = inputs(quantizer, rng)
  rows = np.asarray(params['codebook'])
  cold, _ = train(quantizer, params, state, h, temperature=1e-6)
  np.testing.assert_allclose(cold.z, rows[cold.codes], atol=1e-3)
  hot, _ = train(quantizer, params, state, h, temperature=1e5)
  expected = np.broadcast_to(rows.mean(0), hot.z.shape)
  np.testing.assert_allclose(hot.z, expected, atol=1e-3)


def test_sqvaes_variance_shrinks_where_the_decoder_needs_to_know(rng):
  """By the whole objective: a posterior less sharp reconstructs worse."""
  quantizer = quantizers.sqvae(C, L)
  params, state, _ = inputs(quantizer, rng)
  optimizer = optax.adam(0.1)

  def fit(params):
    rows = 3 * params['codebook']

    def step(carry, seed):
      log_variance, opt_state = carry

      def loss(log_variance):
        scaled = {'codebook': rows, 'log_variance': log_variance}
        quantized, _ = training(
            quantizer, scaled, state, rows, seed, temperature=0.5
        )
        error = jnp.sum(jnp.square(quantized.z - rows), axis=-1)
        loss = quantizer.objective(
            jnp.mean(error) / 48, quantized, data_shape=(len(rows), 48)
        )
        return loss, quantized.metrics['variance']

      slope, variance = jax.grad(loss, has_aux=True)(log_variance)
      updates, opt_state = optimizer.update(slope, opt_state)
      return (log_variance + updates, opt_state), variance

    start = params['log_variance']
    return jax.lax.scan(
        step, (start, optimizer.init(start)), jnp.arange(60)
    )[1]

  variances = call(fit, params)
  np.testing.assert_allclose(variances[0], 21, rtol=1e-6)
  assert variances[-1] < 0.25 * variances[0]


# Gumbel-VQVAE.


def test_gumbel_is_its_equation(rng):
  quantizer = quantizers.gumbel(C, L, kl_weight=0.01)
  params, state, h = inputs(quantizer, rng)
  kernel = np.asarray(params['kernel'], np.float64)
  params['bias'] = rng.normal(size=C).astype(np.float32)
  logits = np.asarray(h, np.float64) @ kernel + np.asarray(params['bias'])
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  quantized, _ = evaluate(quantizer, params, state, h)
  np.testing.assert_array_equal(quantized.codes, np.argmax(logits, -1))
  kl = np.mean([reference.kl_to_uniform(p) for p in probs.reshape(-1, C)])
  np.testing.assert_allclose(quantized.loss, 0.01 * kl, rtol=1e-4)
  np.testing.assert_allclose(
      quantized.q_c, probs.reshape(-1, C).mean(0), rtol=1e-4
  )


def test_gumbel_samples_codes_as_often_as_they_are_probable(rng):
  quantizer = quantizers.gumbel(C, L)
  params, state, h = inputs(quantizer, rng, (1,))
  many = np.broadcast_to(h, (20_000, L))
  quantized, _ = train(quantizer, params, state, many)
  shares = np.bincount(quantized.codes, minlength=C) / 20_000
  np.testing.assert_allclose(shares, quantized.q_c, atol=0.015)


# Finite scalars.


@pytest.mark.parametrize('levels', [(5, 3), (8, 6, 5), (2, 4), (7,)])
def test_fsqs_codes_enumerate_the_grid(levels):
  """Every point once, from end to end, and found again from its own point."""
  quantizer = quantizers.fsq(levels=levels)
  count = int(np.prod(levels))
  assert quantizer.num_codes == count
  points = call(quantizer.embed, {}, {}, np.arange(count))
  assert len(np.unique(points, axis=0)) == count
  for channel, level in enumerate(levels):
    values = np.unique(points[:, channel])
    assert len(values) == level
    steps = np.arange(level) - level // 2
    np.testing.assert_allclose(values, steps / (level // 2))
  np.testing.assert_array_equal(points[1] - points[0] != 0,
                                np.arange(len(levels)) == 0)
  # Latents from everywhere reach all of them.
  grid = np.stack(
      np.meshgrid(*[np.linspace(-6, 6, 61)] * len(levels)), -1
  ).reshape(-1, len(levels))
  quantized, _ = evaluate(quantizer, {}, {}, grid.astype(np.float32))
  assert len(np.unique(quantized.codes)) == count


def test_fsq_rounds_the_bounded_latents(rng):
  quantizer = quantizers.fsq(levels=(5, 4))
  h = rng.normal(size=(50, 2)).astype(np.float32)
  half = np.asarray([4, 3]) * (1 + 1e-3) / 2
  shift = np.arctanh(np.asarray([0, 0.5]) / half)
  bounded = np.tanh(np.asarray(h, np.float64) + shift) * half - [0, 0.5]

  def total(h):
    z = training(quantizer, {}, {}, h)[0].z
    return jnp.sum(z), z

  gradient, z = call(jax.grad(total, has_aux=True), h)
  np.testing.assert_allclose(z, np.round(bounded) / 2, atol=1e-6)
  slope = (1 - np.tanh(h + shift) ** 2) * half / 2
  np.testing.assert_allclose(gradient, slope, rtol=1e-4)


def test_fsq_takes_the_levels_nearest_to_the_codes():
  assert quantizers.fsq(1024).num_codes == 1000
  assert quantizers.fsq(256).num_codes == 240
  with pytest.raises(ValueError, match='each must be at least 2'):
    quantizers.fsq(levels=(5, 1))


# Frozen.


def test_a_frozen_codebook_has_nothing_to_train(rng):
  quantizer = quantizers.make('frozen', num_codes=C, dim=L)
  params, state, z = inputs(quantizer, rng)
  assert jax.tree.leaves(params) == []
  rows = rng.normal(size=(C, L)).astype(np.float32)
  params, state = write(quantizer, params, state, rows, np.ones(C, bool))

  def loss(z):
    quantized, after = training(quantizer, params, state, z)
    return quantized.loss, quantizer.read(params, after)

  gradient, after = call(jax.grad(loss, has_aux=True), z)
  np.testing.assert_array_equal(after, rows)
  assert np.any(gradient != 0)


# What does not go together.


@pytest.mark.parametrize('name, message', [
    ('fsq+l2', 'l2: goes with quantizers that compare'),
    ('gumbel+replace', 'replace: goes with quantizers that compare'),
    ('fsq+affine', 'affine: goes with quantizers that compare'),
    ('gmvq+opt', 'opt: goes with vqvae alone'),
    ('sqvae+opt', 'opt: goes with vqvae alone'),
    ('vqvae+ema+affine', 'affine: does not go with ema'),
    ('vqvae+ema+opt', 'opt: goes with vqvae alone'),
    ('simvq+l2', 'l2: does not go with simvq'),
    ('simvq+affine', 'affine: does not go with simvq'),
    ('vqvae+typo', "part='typo' is unknown; it must be one of opt, affine"),
    ('gmvq+ema', "part='ema' is unknown"),
    ('fsp+l2', 'l2: goes with quantizers that compare'),
    ('fsp+rotation', 'rotation: goes with quantizers that pass'),
])
def test_what_does_not_go_together_is_refused(name, message):
  fields = dict(num_codes=C, dim=L, gamma=0.1, beta=1.0)
  with pytest.raises(ValueError, match=message) as caught:
    compositions.make(name, **fields)
  assert '\n' not in str(caught.value)


def test_codebooks_are_wrapped_from_the_inside_out():
  inner = quantizers.vqvae(C, L)
  with pytest.raises(ValueError, match='replace: goes inside of frozen'):
    quantizers.with_replacement(quantizers.with_frozen_codebook(inner))
  with pytest.raises(ValueError, match='replace: goes inside of residual'):
    quantizers.with_replacement(quantizers.residual(inner, 2))


def test_replacements_are_of_devices_that_have_latents(rng):
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(40, L), replace_after=1
  )
  params, state, z = inputs(quantizer, rng, (8, 4))
  mask = np.arange(8)[:, None] % 3 + np.zeros((8, 4), int) == 0
  data, everywhere = (jax.sharding.PartitionSpec(x) for x in ('data', None))

  def rows_of(z, mask):
    _, moved = training(
        quantizer, params, state, z, mask=mask, axis_name='data'
    )
    return quantizer.read(params, moved), moved['replaced'] > 0

  local = jax.shard_map(
      rows_of,
      mesh=distributed.data_mesh(),
      in_specs=data,
      out_specs=everywhere,
  )
  rows, dead = call(local, z, mask)
  assert dead.sum() > 20
  distance = np.linalg.norm(rows[dead][:, None] - z[mask], axis=-1)
  assert distance.min(axis=1).max() < 0.1
  assert len(set(distance.argmin(axis=1))) > 6


def test_the_order_in_a_name_is_nothing(rng):
  names = ('vqvae+affine+opt+replace+l2', 'vqvae+l2+replace+opt+affine')
  make = functools.partial(quantizers.make, num_codes=C, dim=L)
  results = []
  for quantizer in map(make, names):
    params, state, z = inputs(quantizer, np.random.default_rng(0))
    results.append(train(quantizer, params, state, z))
  chex.assert_trees_all_equal(*results)
