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
from gmvq_jax import distributed
from gmvq_jax import networks
from gmvq_jax import train_step


@pytest.fixture
def name(tmp_path, photographs):
  return tiny.save_images(tmp_path, photographs)


def start(experiment):
  return experiment.init_state(), experiment.splits.train


def test_one_trace(name):
  experiment = tiny.make(name)
  state, images = start(experiment)
  step = experiment.make_train_step()
  for i in range(4):
    state, _ = step(state, images[16 * i : 16 * i + 16])
  assert step._cache_size() == 1
  assert int(state.step) == 4


@pytest.mark.parametrize('count', [2, 4, 8])
def test_any_number_of_devices_takes_the_same_step(name, count):
  """From identical state: q(c), batch norm and gradient are global."""
  experiment = tiny.make(name)
  state, images = start(experiment)
  results = []
  for devices in (1, count):
    mesh = jax.make_mesh(
        (devices,),
        (distributed.AXIS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    # SGD: Adam divides by the gradient, and so by rounding where it is 0.
    optimizer = optax.sgd(1e-2)
    here = distributed.replicate(
        state._replace(
            opt_state=optimizer.init(state.variables.params)
        ),
        mesh,
    )
    step = train_step.make_train_step(
        experiment.model, optimizer, lambda _: 0.7
    )
    results.append(
        jax.device_get(
            step(
                jax.tree.map(jnp.copy, here),
                jax.device_put(images[:16], distributed.batched(mesh)),
            )
        )
    )
  (one, one_metrics), (many, many_metrics) = results
  chex.assert_trees_all_close(one_metrics, many_metrics, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(
      one.variables, many.variables, rtol=1e-4, atol=1e-5
  )


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
