"""Residual, grouped and projected quantizers against those they are made of."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import distributed
from gmvq_jax import quantizers

C, L = 12, 4


def make(name='vqvae', **fields):
  return quantizers.make(name, num_codes=C, dim=L, **fields)


def inputs(quantizer, rng, leading=(6, 5)):
  params, state = quantizer.init(jax.random.key(0))
  h = rng.normal(size=(*leading, sum(quantizer.heads)))
  return params, state, jnp.asarray(h, jnp.float32)


def at(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


# Residual.


def by_levels(codebooks, z):
  """The codes and what is left, of float64 NumPy."""
  left, codes = np.asarray(z, np.float64), []
  for rows in np.asarray(codebooks, np.float64):
    chosen = np.square(left[..., None, :] - rows).sum(-1).argmin(-1)
    codes.append(chosen)
    left = left - rows[chosen]
  return np.stack(codes, axis=-1), left


def test_residual_is_algorithm_1(rng):
  quantizer = quantizers.residual(make(alpha=2.0), 3)
  params, state, z = inputs(quantizer, rng)
  quantized, _ = quantizer.apply(params, state, z, train=True)
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
      np.asarray(z).reshape(-1, L).var(axis=0).mean(),
      rtol=1e-5,
  )
  for level in range(3):
    shares = np.bincount(codes[..., level].ravel(), minlength=C) / 30
    np.testing.assert_allclose(quantized.q_c[level], shares, atol=1e-6)


def test_the_decoders_gradient_reaches_the_latents_once(rng):
  weights = jnp.asarray(rng.normal(size=(6, 5, L)), jnp.float32)
  for dropout in (False, True):
    quantizer = quantizers.residual(make(), 3, dropout=dropout)
    params, state, z = inputs(quantizer, rng)

    def task(params, z, quantizer=quantizer, state=state):
      quantized, _ = quantizer.apply(
          params, state, z, key=jax.random.key(0), train=True
      )
      return jnp.sum(weights * quantized.z)

    of_params, of_z = jax.grad(task, argnums=(0, 1))(params, z)
    np.testing.assert_allclose(of_z, weights, rtol=1e-5)
    np.testing.assert_array_equal(of_params['codebook'], 0)


def test_each_levels_loss_has_the_gradient_of_its_own(rng):
  """Of the latents: as if the levels before were constants."""
  quantizer = quantizers.residual(make(alpha=1.0, beta=0.3), 2)
  params, state, z = inputs(quantizer, rng)

  def loss(params, z):
    return quantizer.apply(params, state, z, train=True)[0].loss

  of_params, of_z = jax.grad(loss, argnums=(0, 1))(params, z)
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
  quantized, _ = quantizer.apply(
      params, state, z, key=jax.random.key(0), train=True
  )
  kept = np.sum(np.asarray(quantized.codes) >= 0, axis=-1)
  np.testing.assert_array_equal(kept[:, 0], kept[:, 1])
  shares = np.bincount(kept[:, 0], minlength=5) / 400
  np.testing.assert_allclose(shares, [0, 0, 1 / 3, 1 / 3, 1 / 3], atol=0.08)
  codes, _ = by_levels(params['codebook'], z)
  expected = np.where(np.arange(4) < kept[..., None], codes, -1)
  np.testing.assert_array_equal(quantized.codes, expected)
  embedded = quantizer.embed(params, state, quantized.codes)
  np.testing.assert_allclose(quantized.z, embedded, atol=1e-5)
  # All of them at evaluation.
  still, _ = quantizer.apply(params, state, z)
  np.testing.assert_array_equal(still.codes, codes)
  with pytest.raises(ValueError, match='residual with dropout: train=True'):
    quantizer.apply(params, state, z, train=True)


def test_dropout_counts_as_a_mask_of_its_level(rng):
  """The statistics of the last level are those of the examples that have it."""
  quantizer = quantizers.residual(make('vqvae+ema'), 2, dropout=True)
  params, state, z = inputs(quantizer, rng)
  quantized, moved = quantizer.apply(
      params, state, z, key=jax.random.key(0), train=True
  )
  has_it = np.asarray(quantized.codes[..., 1] >= 0)
  assert 0 < has_it.sum() < has_it.size
  first = quantizers.make('vqvae+ema', num_codes=C, dim=L)
  _, left = by_levels(state['codebook'][:1], z)
  _, alone = first.apply(
      params, at(state, 1), jnp.asarray(left, jnp.float32)[has_it], train=True
  )
  chex.assert_trees_all_close(at(moved, 1), alone, rtol=1e-4, atol=1e-5)


def test_dropout_is_the_same_on_any_number_of_devices(rng):
  """Of a batch that is divided; in `shard_map` each device draws its own."""
  quantizer = quantizers.residual(make(), 4, dropout=True)
  params, state, z = inputs(quantizer, rng, (16, 2))
  mesh = distributed.data_mesh()

  def codes_of(z, axis_name=None):
    quantized, _ = quantizer.apply(
        params, state, z, key=jax.random.key(0), train=True, axis_name=axis_name
    )
    return quantized.codes

  expected = codes_of(z)
  divided = jax.device_put(z, distributed.batched(mesh))
  np.testing.assert_array_equal(jax.jit(codes_of)(divided), expected)
  data = jax.sharding.PartitionSpec('data')
  local = jax.shard_map(
      functools.partial(codes_of, axis_name='data'),
      mesh=mesh, in_specs=data, out_specs=data,
  )  # fmt: skip
  kept = jnp.sum(jax.jit(local)(z)[:, 0] >= 0, axis=-1)
  assert len(np.unique(kept)) > 1


def test_fewer_levels_are_the_first(rng):
  quantizer = quantizers.residual(make(), 3)
  params, state, z = inputs(quantizer, rng)
  codes = quantizer.apply(params, state, z)[0].codes
  _, left = by_levels(params['codebook'][:2], z)
  two = quantizer.embed(params, state, codes[..., :2])
  np.testing.assert_allclose(two, z - left, atol=1e-5)
  dropped = quantizer.embed(params, state, codes.at[..., 2].set(-1))
  np.testing.assert_allclose(two, dropped, atol=1e-6)


def test_a_shared_codebook_is_one(rng):
  inner = make()
  quantizer = quantizers.residual(inner, 3, shared=True)
  params, state, z = inputs(quantizer, rng)
  chex.assert_trees_all_equal_shapes(params, inner.init(jax.random.key(0))[0])
  quantized, _ = quantizer.apply(params, state, z)
  codes, _ = by_levels([params['codebook']] * 3, z)
  np.testing.assert_array_equal(quantized.codes, codes)


def test_a_shared_moving_average_moves_level_by_level(rng):
  inner = make('vqvae+ema', decay=0.5)
  quantizer = quantizers.residual(inner, 2, shared=True)
  params, state, z = inputs(quantizer, rng)
  _, moved = quantizer.apply(params, state, z, train=True)
  first, once = inner.apply(params, state, z, train=True)
  _, twice = inner.apply(params, once, z - first.z, train=True)
  chex.assert_trees_all_close(moved, twice, rtol=1e-5)


def test_a_code_that_is_dead_at_every_level_is_replaced(rng):
  """Where the codebook is shared it is enough that one level takes a code."""
  quantizer = quantizers.residual(
      make('vqvae+replace', replace_after=4), 2, shared=True
  )
  params, state, z = inputs(quantizer, rng)
  far = jnp.full((L,), 99.0)
  params = {'codebook': params['codebook'].at[7].set(far)}
  for step in range(2):
    np.testing.assert_array_equal(params['codebook'][7], far)
    quantized, state = quantizer.apply(
        params, state, z, key=jax.random.key(step), train=True
    )
    params, state, fresh = quantizer.finish(params, state)
  assert jnp.all(fresh['codebook'][7])
  assert jnp.all(jnp.abs(params['codebook'][7]) < 10)
  used = np.unique(quantized.codes)
  assert not jnp.any(fresh['codebook'][used])


def test_levels_have_dead_codes_of_their_own(rng):
  quantizer = quantizers.residual(make('vqvae+replace', replace_after=1), 2)
  params, state, z = inputs(quantizer, rng, (7,))
  quantized, state = quantizer.apply(
      params, state, z, key=jax.random.key(0), train=True
  )
  _, _, fresh = quantizer.finish(params, state)
  for level in range(2):
    dead = ~np.isin(np.arange(C), quantized.codes[:, level])
    np.testing.assert_array_equal(
        jnp.all(fresh['codebook'][level], axis=-1), dead
    )


def test_scale_makes_levels_finer(rng):
  """Each level of fsq at a quarter: the error falls with every one."""
  quantizer = quantizers.residual(
      quantizers.fsq(levels=(5, 5)), 3, scale=0.25
  )
  z = jnp.asarray(rng.uniform(-0.7, 0.7, size=(500, 2)), jnp.float32)
  codes = quantizer.apply({}, {}, z)[0].codes
  errors = [
      float(jnp.mean((z - quantizer.embed({}, {}, codes[..., :k])) ** 2))
      for k in (1, 2, 3)
  ]
  assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_kmeans_starts_each_level_from_what_is_left(rng):
  quantizer = quantizers.residual(make(), 3)
  params, state, z = inputs(quantizer, rng, (400,))
  started, state = quantizers.kmeans_start(
      jax.random.key(1), quantizer, params, state, z
  )
  errors = []
  for depth in (1, 2, 3):
    _, left = by_levels(started['codebook'][:depth], z)
    errors.append(np.square(left).mean())
    # Centres: what is left has no mean in any cell.
    codes, _ = by_levels(started['codebook'][:depth], z)
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
  params, state = quantizers.kmeans_start(
      jax.random.key(0), quantizer, params, state, h
  )
  optimizer = optax.adam(1e-2)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, key):
    def loss(params):
      quantized, _ = quantizer.apply(
          params, state, h, key=key, temperature=0.3, train=True
      )
      error = jnp.sum(jnp.square(quantized.z - h[:, :L]), axis=-1)
      return quantizer.objective(error, quantized, data_dim=L, positions=1)

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state

  for index in range(60):
    params, opt_state = step(params, opt_state, jax.random.key(index))
  codes = quantizer.apply(params, state, h)[0].codes
  errors = []
  for k in (1, 2):
    z = quantizer.embed(params, state, codes[:, :k])
    errors.append(float(jnp.mean(jnp.square(h[:, :L] - z))))
  assert errors[1] < 0.75 * errors[0]


def test_levels_draw_apart(rng):
  """Codes that are drawn evenly are not the same at every level."""
  quantizer = quantizers.residual(make('gumbel'), 2)
  params, state, h = inputs(quantizer, rng)
  params['kernel'] = jnp.zeros_like(params['kernel'])
  quantized, _ = quantizer.apply(
      params, state, h, key=jax.random.key(0), temperature=1.0, train=True
  )
  same = quantized.codes[..., 0] == quantized.codes[..., 1]
  assert jnp.mean(same) < 0.5


@pytest.mark.parametrize('fields, message', [
    ({'depth': 0}, 'depth=0: must be an integer of at least 1'),
    ({'depth': 2.0}, 'depth=2.0: must be an integer'),
    ({'depth': 3, 'min_depth': 0}, 'min_depth=0: must be an integer of at'),
    ({'depth': 3, 'min_depth': 4}, 'min_depth=4: must be at most depth=3'),
    ({'depth': 3, 'scale': 0.0}, 'scale=0.0: must be greater than 0'),
])
def test_numbers_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    quantizers.residual(make(), **fields)


def test_codes_of_too_many_levels_are_refused(rng):
  for shared in (True, False):
    quantizer = quantizers.residual(make(), 2, shared=shared)
    params, state, _ = inputs(quantizer, rng)
    with pytest.raises(ValueError, match='codes of 3 levels: there are 2'):
      quantizer.embed(params, state, jnp.zeros((5, 3), jnp.int32))


def test_one_position_may_lose_levels():
  quantizer = quantizers.residual(make(), 2, dropout=True)
  params, state = quantizer.init(jax.random.key(0))
  quantized, _ = quantizer.apply(
      params, state, jnp.ones(L), key=jax.random.key(0), train=True
  )
  chex.assert_shape(quantized.codes, (2,))


# Grouped.


@pytest.mark.parametrize('name', ['vqvae', 'vqvae+ema', 'sqvae'])
def test_groups_are_quantized_apart(rng, name):
  inner = make(name)
  quantizer = quantizers.grouped(inner, 3)
  params, state, h = inputs(quantizer, rng)
  quantized, moved = quantizer.apply(
      params, state, h, temperature=1.0, train='sq' not in name
  )
  losses = []
  for group in range(3):
    channels = h[..., L * group : L * (group + 1)]
    alone, alone_moved = inner.apply(
        at(params, group),
        at(state, group),
        channels,
        temperature=1.0,
        train='sq' not in name,
    )
    np.testing.assert_array_equal(quantized.codes[..., group], alone.codes)
    np.testing.assert_allclose(
        quantized.z[..., L * group : L * (group + 1)], alone.z, atol=1e-6
    )
    np.testing.assert_allclose(quantized.q_c[group], alone.q_c, atol=1e-6)
    chex.assert_trees_all_close(at(moved, group), alone_moved, atol=1e-6)
    losses.append(alone.loss)
  np.testing.assert_allclose(quantized.loss, np.mean(losses), rtol=1e-5)


def test_every_head_is_divided(rng):
  """GM-VQ's group g: its share of the latents, and of the precisions."""
  inner = quantizers.gmvq(C, L, gamma=0.1, beta=1.0)
  quantizer = quantizers.grouped(inner, 2)
  assert quantizer.heads == (2 * L, 2 * L)
  params, state, h = inputs(quantizer, rng)
  quantized, _ = quantizer.apply(params, state, h)
  z_hat, raw = jnp.split(h, 2, axis=-1)
  for group in range(2):
    here = slice(L * group, L * (group + 1))
    own = jnp.concatenate([z_hat[..., here], raw[..., here]], axis=-1)
    alone, _ = inner.apply(at(params, group), state, own)
    np.testing.assert_array_equal(quantized.codes[..., group], alone.codes)


def test_a_group_counts_as_a_position(rng):
  """GM-VQ's objective is the same, of groups or of as many positions."""
  inner = quantizers.gmvq(C, L, gamma=0.1, beta=1.0)
  quantizer = quantizers.grouped(inner, 2, shared=True)
  params, state, h = inputs(quantizer, rng)
  grouped, _ = quantizer.apply(params, state, h)
  z_hat, raw = (x.reshape(6, 10, L) for x in jnp.split(h, 2, axis=-1))
  alone, _ = inner.apply(
      params, state, jnp.concatenate([z_hat, raw], axis=-1)
  )
  np.testing.assert_array_equal(grouped.codes.reshape(6, 10), alone.codes)
  error = jnp.ones(6)
  np.testing.assert_allclose(
      quantizer.objective(error, grouped, data_dim=40, positions=5),
      inner.objective(error, alone, data_dim=40, positions=10),
      rtol=1e-6,
  )


def test_groups_of_levels_and_levels_of_groups(rng):
  inner = make()
  levels = quantizers.grouped(quantizers.residual(inner, 2), 3)
  groups = quantizers.residual(quantizers.grouped(inner, 3), 2)
  assert levels.code_shape == (3, 2) and groups.code_shape == (2, 3)
  params, state, h = inputs(levels, rng)
  one, _ = levels.apply(params, state, h)
  swapped = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), params)
  other, _ = groups.apply(swapped, state, h)
  np.testing.assert_array_equal(one.codes, jnp.swapaxes(other.codes, -1, -2))
  np.testing.assert_allclose(one.z, other.z, atol=1e-6)


def test_kmeans_starts_each_group(rng):
  quantizer = quantizers.grouped(make(), 2)
  params, state, z = inputs(quantizer, rng, (300,))
  z = z.at[:, L:].add(50)
  started, _ = quantizers.kmeans_start(
      jax.random.key(0), quantizer, params, state, z
  )
  assert jnp.all(jnp.abs(started['codebook'][0]) < 10)
  assert jnp.all(jnp.abs(started['codebook'][1] - 50) < 10)


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('kind', ['residual', 'grouped', 'frozen', 'projected'])
def test_what_is_masked_is_not_started_from(rng, kind, shared):
  """And what is not is: a few clusters, found again but for padding."""
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
  params, state, h = inputs(quantizer, rng, (40,))
  mask = jnp.arange(40) < 30

  def start(h, mask=None):
    return quantizers.kmeans_start(
        jax.random.key(1), quantizer, params, state, h, mask=mask
    )

  started = start(h.at[30:].set(jnp.nan), mask)
  chex.assert_tree_all_finite(started)
  other = start(h.at[30:].set(1e3), mask)
  chex.assert_trees_all_equal(started, other)
  before, _ = quantizer.apply(params, state, h, mask=mask)
  after, _ = quantizer.apply(*started, h, mask=mask)
  name = 'quantization_error'
  # A shared codebook of levels starts where the first one wants it.
  assert after.metrics[name] < 0.85 * before.metrics[name]


def test_too_few_positions_are_refused(rng):
  quantizer = make()
  params, state, z = inputs(quantizer, rng, (40,))
  with pytest.raises(ValueError, match='kmeans_start: 4 positions for 12 code'):
    quantizers.kmeans_start(
        jax.random.key(0), quantizer, params, state, z, mask=jnp.arange(40) < 4
    )


# Projected.


def test_projection_is_two_affine_maps(rng):
  inner = make()
  quantizer = quantizers.projected(inner, 7)
  params, state, h = inputs(quantizer, rng)
  assert quantizer.heads == (7,)
  for name in ('project_in', 'project_out'):
    bias = params[name]['bias']
    params[name]['bias'] = jnp.asarray(rng.normal(size=bias.shape), jnp.float32)
  quantized, _ = quantizer.apply(params, state, h)

  def project(params, x):
    return np.asarray(x) @ np.asarray(params['kernel']) + params['bias']

  alone, _ = inner.apply(
      params['inner'], state, project(params['project_in'], h)
  )
  np.testing.assert_array_equal(quantized.codes, alone.codes)
  np.testing.assert_allclose(
      quantized.z, project(params['project_out'], alone.z), atol=1e-5
  )

  def task(params):
    quantized, _ = quantizer.apply(params, state, h, train=True)
    return jnp.sum(jnp.square(quantized.z - h))

  gradient = jax.grad(task)(params)
  assert jnp.all(gradient['project_in']['kernel'] != 0)
  assert jnp.all(gradient['project_out']['kernel'] != 0)


def test_dead_codes_come_back_behind_a_projection(rng):
  quantizer = quantizers.projected(make('vqvae+replace', replace_after=1), 7)
  params, state, h = inputs(quantizer, rng, (3,))
  quantized, state = quantizer.apply(
      params, state, h, key=jax.random.key(0), train=True
  )
  written, _, fresh = quantizer.finish(params, state)
  dead = ~np.isin(np.arange(C), quantized.codes)
  moved = written['inner']['codebook'] != params['inner']['codebook']
  np.testing.assert_array_equal(jnp.all(moved, axis=-1), dead)
  chex.assert_trees_all_equal_structs(fresh, params)


# Of all.


def test_top_codes_are_the_most_probable(rng):
  quantizer = quantizers.gmvq(C, L, gamma=0.1, beta=1.0)
  params, state, h = inputs(quantizer, rng)
  codes, log_probs = quantizers.top_codes(quantizer, params, state, h, C)
  chex.assert_shape([codes, log_probs], (6, 5, C))
  np.testing.assert_allclose(jnp.exp(log_probs).sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(
      jnp.take_along_axis(
          jax.nn.log_softmax(quantizer.logits(params, state, h)), codes, -1
      ),
      log_probs,
      rtol=1e-5,
  )
  assert jnp.all(log_probs[..., :-1] >= log_probs[..., 1:])


def test_top_codes_of_vqvae_are_the_nearest(rng):
  quantizer = make()
  params, state, z = inputs(quantizer, rng)
  codes, log_probs = quantizers.top_codes(
      quantizer, params, state, z, 3, temperature=0.5
  )
  squared = np.square(
      np.asarray(z, np.float64)[..., None, :] - np.asarray(params['codebook'])
  ).sum(-1)
  np.testing.assert_array_equal(codes, np.argsort(squared)[..., :3])
  exp = np.exp(-squared / 0.5)
  probs = np.sort(exp / exp.sum(-1, keepdims=True))[..., ::-1]
  np.testing.assert_allclose(jnp.exp(log_probs), probs[..., :3], rtol=1e-4)
  with pytest.raises(ValueError, match='k=13: must be from 1 to the 12 codes'):
    quantizers.top_codes(quantizer, params, state, z, 13)
