"""The train step: one trace, any number of devices, and what it promises."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import gmvq_jax
from gmvq_jax import autoencoder
from gmvq_jax import networks
from gmvq_jax import programs
from gmvq_jax import train_step


@pytest.fixture
def name(tmp_path, photographs):
  return tiny.save_images(tmp_path, photographs)


def start(experiment):
  return experiment.init_state(), experiment.splits.train


def test_one_trace(name, monkeypatch):
  programs._programs.cache_clear()  # Other tests have called it otherwise.
  experiment = tiny.make(name)
  state, images = start(experiment)
  step = experiment.make_train_step()
  traces, build = [], programs.build
  monkeypatch.setattr(
      programs, 'build', lambda *args: traces.append(args) or build(*args)
  )
  for i in range(4):
    state, _ = step(state, images[16 * i : 16 * i + 16])
  assert len(traces) == 1
  assert int(state.step) == 4


def test_each_step_has_noise_and_a_temperature_of_its_own(name):
  """The same parameters on the same batch, at two steps."""
  experiment = tiny.make(name)
  state, images = start(experiment)
  step = experiment.make_train_step()

  def metrics_at(number):
    there = jax.tree.map(jnp.copy, state)._replace(step=jnp.int32(number))
    return step(there, images[:16])[1]

  one, again, late = metrics_at(0), metrics_at(0), metrics_at(6)
  chex.assert_trees_all_equal(one, again)
  assert one['mse'] != late['mse']
  np.testing.assert_allclose(one['temperature'], 2.0, rtol=1e-6)
  np.testing.assert_allclose(late['temperature'], 0.2**0.5, rtol=1e-6)


def test_every_parameter_is_trained(name):
  experiment = tiny.make(name)
  state, images = start(experiment)
  before = jax.device_get(state.variables.params)
  step = experiment.make_train_step()
  # In the first, blocks that start as the identity pass no gradient inside.
  for _ in range(3):
    state, _ = step(state, images[:16])
  for (path, old), new in zip(
      jax.tree.leaves_with_path(before),
      jax.tree.leaves(state.variables.params),
      strict=True,
  ):
    assert not np.array_equal(old, new), jax.tree_util.keystr(path)


def test_codebook_starts_at_the_means_of_latents(name):
  experiment = tiny.make(name)
  state, images = start(experiment)
  model = experiment.model
  # The same images, through the same networks, are nearer to the codebook than
  # to any random one of that scale.
  h, _ = model.encode(
      state.variables, autoencoder.to_unit(images[:64]), train=True
  )
  z_hat = h[..., :4].reshape(-1, 4)
  codebook = state.variables.params['quantizer']['codebook']

  def error(codebook):
    nearest = codebook[gmvq_jax.nearest_codes(z_hat, codebook)]
    return jnp.mean((z_hat - nearest) ** 2)

  random = jax.random.normal(jax.random.key(0), codebook.shape)
  random = z_hat.mean(0) + z_hat.std(0) * random
  assert error(codebook) < 0.8 * error(random)


def test_fresh_entries_lose_their_moments():
  """A quantizer that rewrites row 3 after each step, and says so."""
  quantizer = gmvq_jax.gmvq(16, 4, gamma=0.1, beta=1.0)

  def finish(params, state):
    fresh = (jnp.arange(16) == 3)[:, None]
    rows = jnp.where(fresh, 7.0, params['codebook'])
    return {'codebook': rows}, state, {'codebook': fresh}

  quantizer = quantizer._replace(finish=finish)
  model = autoencoder.Autoencoder(
      networks.Encoder(quantizer.heads, width=8, num_blocks=0),
      quantizer,
      networks.Decoder(width=8, num_blocks=0),
  )
  optimizer = optax.adamw(1e-3)
  images = jnp.asarray(np.random.default_rng(0).integers(
      0, 255, (32, 16, 16, 3)), jnp.uint8)
  state = train_step.init_state(
      jax.random.key(0),
      model,
      optimizer,
      images,
      kmeans_iterations=2,
  )
  step = train_step.make_train_step(model, optimizer, lambda _: 1.0)
  state, _ = step(state, images[:16])
  codebook = state.variables.params['quantizer']['codebook']
  np.testing.assert_array_equal(codebook[3], 7.0)
  adam = state.opt_state[0]
  for moment in (adam.mu, adam.nu):
    of_codebook = moment['quantizer']['codebook']
    np.testing.assert_array_equal(of_codebook[3], 0)
    assert np.all(np.abs(of_codebook[:3]).max(axis=1) > 0)
    assert np.abs(jax.tree.leaves(moment['encoder'])[0]).max() > 0


def test_the_average_of_parameters_is_its_closed_form(name):
  """Weights of 1 - d_t times the later d's; the first are small, to forget."""
  experiment = tiny.make(name, ema_decay=0.3)
  state, images = start(experiment)

  def leaf(state):
    return np.asarray(state.variables.params['quantizer']['codebook'])

  def average(state):
    return np.asarray(state.ema_params['quantizer']['codebook'])

  np.testing.assert_array_equal(average(state), leaf(state))
  expected = leaf(state)
  step = experiment.make_train_step()
  for i in range(6):
    state, _ = step(state, images[:16])
    decay = min(0.3, (1 + i) / (10 + i))
    expected = decay * expected + (1 - decay) * leaf(state)
    np.testing.assert_allclose(average(state), expected, rtol=1e-5, atol=1e-7)
  assert not np.allclose(average(state), leaf(state), rtol=1e-3)
  used = state.eval_variables.params['quantizer']['codebook']
  np.testing.assert_array_equal(average(state), used)


def test_an_average_changes_evaluation_and_not_training(name):
  hashes, errors = [], []
  for decay in (0.0, 0.9):
    experiment = tiny.make(name, ema_decay=decay)
    state, images = start(experiment)
    step = experiment.make_train_step()
    for _ in range(5):
      state, _ = step(state, images[:16])
    state = experiment.calibrate(state)
    hashes.append(jax.device_get(state.variables))
    errors.append(experiment.evaluate(state, 'test').metrics['mse'])
  chex.assert_trees_all_equal(*hashes)
  assert errors[0] != errors[1]


def test_half_of_the_images_are_mirrored(rng):
  images = jnp.asarray(rng.uniform(size=(400, 4, 6, 3)))
  flipped = train_step._flip_some(jax.random.key(0), images)
  same = np.all(np.isclose(flipped, images), axis=(1, 2, 3))
  mirrored = np.all(np.isclose(flipped, images[:, :, ::-1]), axis=(1, 2, 3))
  assert np.all(same ^ mirrored)
  assert 150 < mirrored.sum() < 250


def test_mirroring_is_a_field(name):
  """The same state and batch, with mirroring and without."""
  losses = []
  for flip in (False, True):
    experiment = tiny.make(name, random_flip=flip)
    state, images = start(experiment)
    _, metrics = experiment.make_train_step()(state, images[:16])
    losses.append(float(metrics['loss']))
  assert losses[0] != losses[1]


def test_the_reconstruction_loss_is_a_field(name):
  """The loss is it and the quantizer's terms; the MSE is reported anyway."""
  for loss in ('mse', 'l1'):
    experiment = tiny.make(name, reconstruction_loss=loss)
    state, images = start(experiment)
    _, metrics = experiment.make_train_step()(state, images[:16])
    metrics = {k: float(v) for k, v in metrics.items()}
    positions, data_dim = 16, 16 * 16 * 3
    terms = 0.01 * (metrics['latent'] + 10 * metrics['kl'])
    np.testing.assert_allclose(
        metrics['loss'],
        metrics['reconstruction'] + terms * positions / data_dim,
        rtol=1e-5,
    )
    same = np.isclose(metrics['reconstruction'], metrics['mse'])
    assert same == (loss == 'mse')
