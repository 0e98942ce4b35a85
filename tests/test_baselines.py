"""Each baseline against NumPy, and what it promises besides."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from gmvq_jax import distributed
from gmvq_jax import quantizers

C, L = 12, 3
SHAPE = (5, 4)  # Images, positions.


def inputs(quantizer, rng, leading=SHAPE):
  params, state = quantizer.init(jax.random.key(0))
  h = rng.normal(size=(*leading, sum(quantizer.heads)))
  return params, state, jnp.asarray(h, jnp.float32)


def train(quantizer, params, state, h, key=0, temperature=0.7, **kwargs):
  return quantizer.apply(
      params,
      state,
      h,
      key=jax.random.key(key),
      temperature=temperature,
      train=True,
      **kwargs,
  )


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
  loss = quantizer.objective(
      jnp.asarray([6.0, 2.0]), quantized, data_dim=8, positions=4
  )
  np.testing.assert_allclose(loss, 0.5 + quantized.loss, rtol=1e-6)


def test_vqvae_gradients_are_straight_through(rng):
  """The decoder's reaches z as it is; the loss's is divided by beta."""
  alpha, beta = 3.0, 0.8
  quantizer = quantizers.vqvae(C, L, alpha=alpha, beta=beta)
  params, state, z = inputs(quantizer, rng)
  weights = jnp.asarray(rng.normal(size=z.shape), jnp.float32)

  def task(params, z):
    return jnp.sum(weights * train(quantizer, params, state, z)[0].z)

  of_params, of_z = jax.grad(task, argnums=(0, 1))(params, z)
  np.testing.assert_array_equal(of_z, weights)
  np.testing.assert_array_equal(of_params['codebook'], 0)

  def loss(params, z):
    return train(quantizer, params, state, z)[0].loss

  of_params, of_z = jax.grad(loss, argnums=(0, 1))(params, z)
  rows = np.asarray(params['codebook'], np.float64)
  codes = nearest(z, rows)
  pull = 2 * (np.asarray(z, np.float64) - rows[codes]) / z.size
  np.testing.assert_allclose(of_z, alpha * (1 - beta) * pull, atol=1e-6)
  expected = np.zeros((C, L))
  np.add.at(expected, codes.ravel(), -alpha * beta * pull.reshape(-1, L))
  np.testing.assert_allclose(of_params['codebook'], expected, atol=1e-6)


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
    quantized, state = train(quantizer, params, state, jnp.asarray(z))
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
  state = quantizer.write(
      params, state, jnp.asarray([[0.0], [5.0]]), jnp.ones(2, bool)
  )[1]
  z = jnp.asarray([[1.0], [2.0], [6.0], [8.0]])
  for _ in range(40):
    _, state = train(quantizer, params, state, z)
  np.testing.assert_allclose(state['codebook'], [[1.5], [7.0]], rtol=1e-3)


def test_ema_leaves_evaluation_alone(rng):
  quantizer = quantizers.vqvae_ema(C, L)
  params, state, z = inputs(quantizer, rng)
  _, after = quantizer.apply(params, state, z)
  chex.assert_trees_all_equal(state, after)


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


def test_l2_survives_a_latent_without_a_direction():
  quantizer = quantizers.make('vqvae+l2', num_codes=C, dim=L)
  params, state = quantizer.init(jax.random.key(0))

  def loss(z):
    return train(quantizer, params, state, z)[0].loss

  gradient = jax.grad(loss)(jnp.zeros((2, L)))
  chex.assert_tree_all_finite(gradient)


# Replacement.


def test_a_dead_code_comes_back_to_life(rng):
  """After three steps without it, at a latent, and with its counter at 0."""
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(C, L), replace_after=3, replace_noise=0.0
  )
  params, state, z = inputs(quantizer, rng, (40,))
  far = jnp.arange(C) == 7
  params, state = quantizer.write(params, state, jnp.full((C, L), 99.0), far)
  for step in range(3):
    assert jnp.all(params['codebook'][7] == 99)
    quantized, state = train(quantizer, params, state, z, key=step)
    assert 7 not in quantized.codes
    params, state, fresh = quantizer.finish(params, state)
  row = params['codebook'][7]
  assert np.any(np.all(np.isclose(z, row), axis=-1))
  assert jnp.all(fresh['codebook'][7])
  assert state['unused'][7] == 0
  quantized, state = train(quantizer, params, state, z)
  assert 7 in quantized.codes


def test_codes_in_use_are_not_replaced(rng):
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(C, L), replace_after=1
  )
  params, state, _ = inputs(quantizer, rng)
  before = params['codebook']
  _, state = train(quantizer, params, state, before)
  params, state, fresh = quantizer.finish(params, state)
  np.testing.assert_array_equal(params['codebook'], before)
  assert not jnp.any(fresh['codebook'])


def test_replacement_forgets_the_optimisers_moments(rng):
  """As the trainer does: rows that were rewritten, and no others."""
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(C, L), replace_after=1
  )
  params, state, z = inputs(quantizer, rng, (3,))
  optimizer = optax.adam(1e-2)
  opt_state = optimizer.init(params)
  gradient = jax.tree.map(jnp.ones_like, params)
  _, opt_state = optimizer.update(gradient, opt_state, params)
  quantized, state = train(quantizer, params, state, z)
  _, _, fresh = quantizer.finish(params, state)
  opt_state = optax.tree.map_params(
      optimizer, lambda m, f: jnp.where(f, 0, m), opt_state, fresh
  )
  dead = ~np.isin(np.arange(C), quantized.codes)
  moments = np.asarray(opt_state[0].mu['codebook'])
  np.testing.assert_array_equal(moments[dead], 0)
  assert np.all(moments[~dead] > 0)


def test_replacement_resets_what_ema_has_counted(rng):
  quantizer = quantizers.with_replacement(
      quantizers.vqvae_ema(C, L), replace_after=1
  )
  params, state, z = inputs(quantizer, rng, (3,))
  quantized, state = train(quantizer, params, state, z)
  params, state, _ = quantizer.finish(params, state)
  dead = ~np.isin(np.arange(C), quantized.codes)
  inner = state['inner']
  np.testing.assert_array_equal(inner['counts'][dead], 1)
  np.testing.assert_array_equal(inner['sums'][dead], inner['codebook'][dead])


def test_replacements_are_spread_over_the_latents_that_count(rng):
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(400, L), replace_after=1, replace_noise=0.01
  )
  params, state, z = inputs(quantizer, rng, (20,))
  mask = jnp.arange(20) < 8
  _, state = train(quantizer, params, state, z, mask=mask)
  distance = np.linalg.norm(
      np.asarray(state['rows'])[:, None] - np.asarray(z), axis=-1
  )
  assert set(np.argmin(distance, axis=1)) == set(range(8))
  relative = distance.min(axis=1) / np.linalg.norm(z, axis=-1)[
      np.argmin(distance, axis=1)
  ]
  assert 0.005 < relative.mean() < 0.015


# Affine.


def test_affine_follows_a_shifted_distribution(rng):
  """In a few steps, and codes that no latent chose come along."""
  shifted = jnp.asarray(5 + rng.normal(size=(200, L)), jnp.float32)
  nearest_row, moved = {}, {}
  for name in ('vqvae', 'vqvae+affine'):
    quantizer = quantizers.make(name, num_codes=C, dim=L, affine_scale=5.0)
    params, state = quantizer.init(jax.random.key(0))
    before = quantizer.read(params, state)
    optimizer = optax.adam(1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def gradient(params, quantizer=quantizer, state=state):
      def loss(params):
        quantized, _ = quantizer.apply(params, state, shifted, train=True)
        return quantized.loss, quantized.q_c

      return jax.grad(loss, has_aux=True)(params)

    chosen = np.zeros(C, bool)
    for _ in range(40):
      slope, q_c = gradient(params)
      chosen |= np.asarray(q_c) > 0
      updates, opt_state = optimizer.update(slope, opt_state)
      params = optax.apply_updates(params, updates)
    rows = quantizer.read(params, state)
    nearest_row[name] = float(jnp.linalg.norm(rows - 5, axis=-1).min())
    assert not chosen.all()
    steps = jnp.linalg.norm(rows - before, axis=-1)
    moved[name] = float(steps[~chosen].min())
  assert nearest_row['vqvae+affine'] < 0.2 * nearest_row['vqvae']
  assert moved['vqvae'] == 0 < 0.3 < moved['vqvae+affine']


def test_affine_groups_have_maps_of_their_own(rng):
  quantizer = quantizers.with_affine(
      quantizers.vqvae(C, L), affine_scale=2.0, affine_groups=3
  )
  params, state, _ = inputs(quantizer, rng)
  raw = np.asarray(params['inner']['codebook'])
  params['scale'] = params['scale'].at[1].set(0.5)
  params['shift'] = params['shift'].at[2].set(1.5)
  rows = np.asarray(quantizer.read(params, state))
  np.testing.assert_allclose(rows[:4], raw[:4])
  np.testing.assert_allclose(rows[4:8], 2 * raw[4:8], rtol=1e-6)
  np.testing.assert_allclose(rows[8:], raw[8:] + 3, rtol=1e-6)
  with pytest.raises(ValueError, match='affine_groups=5: must divide the 12'):
    quantizers.with_affine(quantizers.vqvae(C, L), affine_groups=5)


def test_affine_is_searched_and_pulled_through_its_map(rng):
  quantizer = quantizers.with_affine(quantizers.vqvae(C, L), affine_scale=2.0)
  params, state, z = inputs(quantizer, rng)
  params['scale'] = jnp.asarray(0.2 * rng.normal(size=(1, L)), jnp.float32)
  params['shift'] = jnp.asarray(0.2 * rng.normal(size=(1, L)), jnp.float32)
  plain = quantizers.vqvae(C, L)
  rows = quantizer.read(params, state)
  quantized, _ = train(quantizer, params, state, z)
  expected, _ = train(plain, {'codebook': rows}, {}, z)
  np.testing.assert_array_equal(quantized.codes, expected.codes)
  np.testing.assert_allclose(quantized.loss, expected.loss, rtol=1e-5)

  def loss(params):
    return train(quantizer, params, state, z)[0].loss

  def by_hand(params):
    rows = (1 + 2 * params['scale']) * params['inner']['codebook']
    rows += 2 * params['shift']
    return train(plain, {'codebook': rows}, {}, z)[0].loss

  chex.assert_trees_all_close(
      jax.grad(loss)(params), jax.grad(by_hand)(params), atol=1e-5
  )


# Alternate optimisation.


def test_opt_is_sgd_with_momentum(rng):
  """Against `optax.sgd` on the mean of (e_k - z)^2, codes kept."""
  quantizer = quantizers.with_alternate_optimization(
      quantizers.vqvae(C, L), opt_learning_rate=3.0, opt_momentum=0.8,
      opt_steps=2,
  )  # fmt: skip
  params, state, _ = inputs(quantizer, rng)
  rows = quantizer.read(params, state)
  optimizer = optax.sgd(3.0, momentum=0.8)
  opt_state = optimizer.init(rows)
  for _ in range(3):
    z = jnp.asarray(rng.normal(size=(*SHAPE, L)), jnp.float32)
    codes = nearest(z, rows)

    def error(rows, z=z, codes=codes):
      return jnp.mean(jnp.square(rows[codes] - z))

    for _ in range(2):
      updates, opt_state = optimizer.update(jax.grad(error)(rows), opt_state)
      rows = optax.apply_updates(rows, updates)
    quantized, state = train(quantizer, params, state, z)
    np.testing.assert_allclose(quantizer.read(params, state), rows, atol=1e-5)
    np.testing.assert_array_equal(quantized.codes, codes)
    np.testing.assert_allclose(quantized.z, rows[codes], atol=1e-5)


def test_opt_lowers_the_quantisation_error(rng):
  quantizer = quantizers.make(
      'vqvae+opt', num_codes=C, dim=L, opt_learning_rate=1.0
  )
  params, state, z = inputs(quantizer, rng, (200,))
  before, _ = quantizer.apply(params, state, z)
  after, _ = train(quantizer, params, state, z)
  name = 'quantization_error'
  assert after.metrics[name] < 0.99 * before.metrics[name]


def test_opt_passes_no_gradient_to_the_codebook_but_through_the_map(rng):
  quantizer = quantizers.make('vqvae+affine+opt', num_codes=C, dim=L)
  params, state, z = inputs(quantizer, rng)

  def task(params, z):
    return jnp.sum(train(quantizer, params, state, z)[0].z ** 2)

  of_params, of_z = jax.grad(task, argnums=(0, 1))(params, z)
  for leaf in jax.tree.leaves(of_params):
    np.testing.assert_array_equal(leaf, 0)
  assert jnp.all(of_z != 0)

  def loss(params, z):
    return train(quantizer, params, state, z)[0].loss

  of_params, of_z = jax.grad(loss, argnums=(0, 1))(params, z)
  assert jnp.any(of_params['shift'] != 0)
  np.testing.assert_array_equal(of_z, 0)


def test_opt_keeps_its_momentum_under_other_wrappers(rng):
  """Two steps of l2 over opt differ from one, restarted: momentum is kept."""
  quantizer = quantizers.make(
      'vqvae+affine+opt+replace+l2', num_codes=C, dim=L, opt_learning_rate=1.0
  )
  params, state, z = inputs(quantizer, rng)
  _, state = train(quantizer, params, state, z)
  momentum = state['inner']['momentum']
  assert jnp.any(momentum != 0)
  params, state, _ = quantizer.finish(params, state)
  _, state = train(quantizer, params, state, z)
  assert jnp.any(state['inner']['momentum'] != momentum)


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
  quantized, _ = quantizer.apply(params, state, h)
  codes = np.argmax(logits, axis=-1)
  np.testing.assert_array_equal(quantized.codes, codes)
  kl = (np.exp(log_probs) * log_probs).sum(-1).mean()
  latent = (np.square(z - rows[codes]).sum(-1) / (2 * v)).mean()
  np.testing.assert_allclose(quantized.loss, kl + latent, rtol=1e-4)
  error = np.asarray([3.0, 5.0])
  loss = quantizer.objective(
      jnp.asarray(error), quantized, data_dim=48, positions=4
  )
  per_image = 48 / 2 * np.log(error.mean()) + 4 * (kl + latent)
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
  rows = 3 * params['codebook']
  optimizer = optax.adam(0.1)
  opt_state = optimizer.init(params['log_variance'])

  @jax.jit
  def gradient(log_variance, key):
    def loss(log_variance):
      there = {'codebook': rows, 'log_variance': log_variance}
      quantized, _ = quantizer.apply(
          there, state, rows, key=key, temperature=0.5, train=True
      )
      error = jnp.sum(jnp.square(quantized.z - rows), axis=-1)
      loss = quantizer.objective(error, quantized, data_dim=48, positions=1)
      return loss, quantized.metrics['variance']

    return jax.grad(loss, has_aux=True)(log_variance)

  log_variance, variances = params['log_variance'], []
  for step in range(60):
    slope, variance = gradient(log_variance, jax.random.key(step))
    updates, opt_state = optimizer.update(slope, opt_state)
    log_variance += updates
    variances.append(float(variance))
  np.testing.assert_allclose(variances[0], 21, rtol=1e-6)
  assert variances[-1] < 0.25 * variances[0]


# Gumbel-VQVAE.


def test_gumbel_is_its_equation(rng):
  quantizer = quantizers.gumbel(C, L, kl_weight=0.01)
  params, state, h = inputs(quantizer, rng)
  kernel = np.asarray(params['kernel'], np.float64)
  params['bias'] = jnp.asarray(rng.normal(size=C), jnp.float32)
  logits = np.asarray(h, np.float64) @ kernel + np.asarray(params['bias'])
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  quantized, _ = quantizer.apply(params, state, h)
  np.testing.assert_array_equal(quantized.codes, np.argmax(logits, -1))
  kl = np.mean([reference.kl_to_uniform(p) for p in probs.reshape(-1, C)])
  np.testing.assert_allclose(quantized.loss, 0.01 * kl, rtol=1e-4)
  np.testing.assert_allclose(
      quantized.q_c, probs.reshape(-1, C).mean(0), rtol=1e-4
  )


def test_gumbel_draws_codes_as_often_as_they_are_probable(rng):
  quantizer = quantizers.gumbel(C, L)
  params, state, h = inputs(quantizer, rng, (1,))
  many = jnp.broadcast_to(h, (20_000, L))
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
  points = np.asarray(quantizer.embed({}, {}, jnp.arange(count)))
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
  quantized, _ = quantizer.apply({}, {}, jnp.asarray(grid, jnp.float32))
  assert len(np.unique(quantized.codes)) == count


def test_fsq_rounds_the_bounded_latents(rng):
  quantizer = quantizers.fsq(levels=(5, 4))
  h = jnp.asarray(rng.normal(size=(50, 2)), jnp.float32)
  half = np.asarray([4, 3]) * (1 + 1e-3) / 2
  shift = np.arctanh(np.asarray([0, 0.5]) / half)
  bounded = np.tanh(np.asarray(h, np.float64) + shift) * half - [0, 0.5]
  quantized, _ = train(quantizer, {}, {}, h)
  np.testing.assert_allclose(quantized.z, np.round(bounded) / 2, atol=1e-6)
  gradient = jax.grad(
      lambda h: jnp.sum(train(quantizer, {}, {}, h)[0].z)
  )(h)
  slope = (1 - np.tanh(np.asarray(h) + shift) ** 2) * half / 2
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
  rows = jnp.asarray(rng.normal(size=(C, L)), jnp.float32)
  params, state = quantizer.write(params, state, rows, jnp.ones(C, bool))
  _, after = train(quantizer, params, state, z)
  np.testing.assert_array_equal(quantizer.read(params, after), rows)
  gradient = jax.grad(lambda z: train(quantizer, params, state, z)[0].loss)(z)
  assert jnp.any(gradient != 0)


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
])
def test_what_does_not_go_together_is_refused(name, message):
  fields = dict(num_codes=C, dim=L, gamma=0.1, beta=1.0)
  with pytest.raises(ValueError, match=message) as caught:
    quantizers.make(name, **fields)
  assert '\n' not in str(caught.value)


def test_codebooks_are_wrapped_from_the_inside_out():
  inner = quantizers.vqvae(C, L)
  with pytest.raises(ValueError, match='replace: the codebook is frozen'):
    quantizers.with_replacement(quantizers.with_frozen_codebook(inner))
  with pytest.raises(ValueError, match='replace: goes inside of residual'):
    quantizers.with_replacement(quantizers.residual(inner, 2))


def test_replacements_are_of_devices_that_have_latents(rng):
  quantizer = quantizers.with_replacement(
      quantizers.vqvae(C, L), replace_after=1
  )
  params, state, z = inputs(quantizer, rng, (8, 4))
  mask = jnp.arange(8)[:, None] % 3 + jnp.zeros((8, 4), int) == 0
  data, everywhere = (jax.sharding.PartitionSpec(x) for x in ('data', None))

  def rows_of(z, mask):
    _, moved = train(quantizer, params, state, z, mask=mask, axis_name='data')
    return moved['rows']

  rows = jax.jit(
      jax.shard_map(
          rows_of,
          mesh=distributed.data_mesh(),
          in_specs=data,
          out_specs=everywhere,
      )
  )(z, mask)
  distance = np.linalg.norm(
      np.asarray(rows)[:, None] - np.asarray(z)[np.asarray(mask)], axis=-1
  )
  assert distance.min(axis=1).max() < 0.1
  assert len(set(distance.argmin(axis=1))) > 3


def test_the_order_in_a_name_is_nothing(rng):
  names = ('vqvae+affine+opt+replace+l2', 'vqvae+l2+replace+opt+affine')
  make = functools.partial(quantizers.make, num_codes=C, dim=L)
  results = []
  for quantizer in map(make, names):
    params, state, z = inputs(quantizer, np.random.default_rng(0))
    results.append(train(quantizer, params, state, z))
  chex.assert_trees_all_equal(*results)
