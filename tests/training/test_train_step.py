"""The train step: one trace, any number of devices, and what it computes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import gmvq_jax
from gmvq_jax.nn import autoencoder
from gmvq_jax.nn import networks
from gmvq_jax.runtime import distributed
from gmvq_jax.training import build as build_lib
from gmvq_jax.training import experiment
from gmvq_jax.training import train_step


class Steps:
  """Training steps of an experiment, always of copies of a state.

  Attributes:
    experiment: what is trained.
    images: a batch.
    start: the state before the first step, on the host.
    states, metrics: after each of a few steps on that batch, on the host.
    builds: how often the model was built for the programs.
  """

  def __init__(self, config, start=None, count=3):
    self.experiment = experiment.Experiment(config)
    self.images = self.experiment.splits.train[:16]
    self.start = jax.device_get(start or self.experiment.init_state())
    self.states, self.metrics = [], []
    builds, build = [], build_lib.build
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(
          build_lib, 'build', lambda *args: builds.append(args) or build(*args)
      )
      state = self.start
      for _ in range(count):
        state, metrics = self.step(state)
        self.states.append(state)
        self.metrics.append(metrics)
    self.builds = len(builds)

  def step(self, state):
    """Returns the next state and the metrics, on the host."""
    state = distributed.replicate(state, self.experiment.mesh)
    step = self.experiment.make_train_step()
    return jax.device_get(step(state, self.images))


@pytest.fixture(scope='module')
def gmvq(trained):
  build_lib._programs.cache_clear()  # Other tests may have traced the step.
  return Steps(tiny.like(trained[0]))


@pytest.fixture(scope='module')
def name(tmp_path_factory, photographs):
  return tiny.save_images(tmp_path_factory.mktemp('data'), photographs)


@pytest.fixture(scope='module')
def small(name):
  return Steps(tiny.small_config(name))


@pytest.fixture(scope='module')
def averaged(name):
  """Has a moving average of the parameters."""
  return Steps(tiny.small_config(name, **tiny.MORE_STATE))


@pytest.fixture(scope='module')
def mirrored_l1(name, small):
  """One step from the same state, with two other fields."""
  config = tiny.small_config(name, random_flip=True, reconstruction_loss='l1')
  return Steps(config, small.start, count=1)


def test_one_trace(gmvq):
  assert gmvq.builds == 1
  assert [int(state.step) for state in gmvq.states] == [1, 2, 3]


def test_each_step_has_noise_and_a_temperature_of_its_own(gmvq):
  """The same parameters on the same batch, at two steps."""
  one, again, late = (
      gmvq.step(gmvq.start._replace(step=np.int32(number)))[1]
      for number in (0, 0, 6)
  )
  chex.assert_trees_all_equal(one, again)
  assert one['mse'] != late['mse']
  np.testing.assert_allclose(one['temperature'], 2.0, rtol=1e-6)
  np.testing.assert_allclose(late['temperature'], 0.2**0.5, rtol=1e-6)


def test_every_parameter_is_trained(gmvq):
  # In the first step, blocks that are initialised as the identity pass no
  # gradient to their inner layers.
  for (path, old), new in zip(
      jax.tree.leaves_with_path(gmvq.start.variables.params),
      jax.tree.leaves(gmvq.states[-1].variables.params),
      strict=True,
  ):
    assert not np.array_equal(old, new), jax.tree_util.keystr(path)


def test_the_codebook_is_initialised_at_the_means_of_latents(gmvq):
  """It is nearer to the latents of images than a random one of that scale."""
  model, variables = gmvq.experiment.model, gmvq.start.variables
  images = gmvq.experiment.splits.train[:64]

  @jax.jit
  def encode(images):
    h, _ = model.encode(variables, autoencoder.to_unit(images), train=True)
    return h

  z_hat = np.asarray(encode(images))[..., :4].reshape(-1, 4)
  codebook = variables.params['quantizer']['codebook']

  def error(codebook):
    distance = np.square(z_hat[:, None] - codebook).sum(-1)
    return distance.min(axis=1).mean()

  random = np.random.default_rng(0).normal(size=codebook.shape)
  random = z_hat.mean(0) + z_hat.std(0) * random
  assert error(codebook) < 0.8 * error(random)


def replacing_row_3(inner):
  """Returns a quantizer that says in training that it has replaced row 3.

  In its state, as `with_replacement` does, but of a row that has a gradient.
  """

  def init(key):
    return inner.init(key)[0], {'replaced': jnp.zeros(16, jnp.int32)}

  def apply(params, state, h, *, train=False, **kwargs):
    quantized, _ = inner.apply(params, {}, h, train=train, **kwargs)
    now = train & (jnp.arange(16) == 3)
    return quantized, {'replaced': state['replaced'] + now}

  def finish(params, state):
    fresh = {'codebook': state['replaced'][:, None]}
    return params, jax.tree.map(jnp.zeros_like, state), fresh

  return inner._replace(init=init, apply=apply, finish=finish)


def test_replaced_codewords_lose_their_moments():
  """And are not moved by a gradient that was that of the codeword before."""
  quantizer = replacing_row_3(gmvq_jax.vqvae(16, 4))

  def network(kind, *args, **kwargs):
    style = networks.Style(batch_norm=False)
    return kind(*args, width=4, num_blocks=0, style=style, **kwargs)

  model = autoencoder.Autoencoder(
      network(networks.Encoder, quantizer.heads, num_downsamplings=1),
      quantizer,
      network(networks.Decoder, num_upsamplings=1),
  )
  optimizer = gmvq_jax.optimizer(
      optax.adamw(1e-3), quantizer, path=('quantizer',)
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (16, 8, 8, 3), np.uint8)

  @jax.jit
  def steps(key):
    state = train_step.init_state(key, model, optimizer, images, kmeans=False)
    step = train_step.make_train_step(model, optimizer, lambda _: 1.0)
    # Every codeword is the nearest to some latent, and so has a gradient.
    h, _ = model.encode(state.variables, autoencoder.to_unit(images))
    rows = h.reshape(-1, 4)[:16]
    state.variables.params['quantizer']['codebook'] = rows
    return rows, step(state, images)[0]

  rows, state = jax.device_get(steps(jax.random.key(0)))
  codebook = state.variables.params['quantizer']['codebook']
  moved = np.any(codebook != rows, axis=1)
  np.testing.assert_array_equal(moved, np.arange(16) != 3)
  adam = state.opt_state.inner[0]
  for moment in (adam.mu, adam.nu):
    of_codebook = moment['quantizer']['codebook']
    np.testing.assert_array_equal(of_codebook[3], 0)
    others = np.delete(np.abs(of_codebook).max(axis=1), 3)
    assert np.all(others > 0)
    assert np.abs(jax.tree.leaves(moment['encoder'])[0]).max() > 0


def test_the_average_of_parameters_is_its_closed_form(averaged):
  """Weights of 1 - d_t times the later d's; the first are small, to forget."""

  def leaf(tree):
    return jax.tree.leaves(tree)[0]

  def check(step, before, after):
    decay = min(0.9, (1 + step) / (10 + step))
    expected = decay * leaf(before.ema_params) + (1 - decay) * leaf(
        after.variables.params
    )
    np.testing.assert_allclose(
        leaf(after.ema_params), expected, rtol=1e-5, atol=1e-7,
        err_msg=f'step {step}',
    )  # fmt: skip

  chex.assert_trees_all_equal(
      averaged.start.ema_params, averaged.start.variables.params
  )
  before = averaged.start
  for step, after in enumerate(averaged.states):
    check(step, before, after)
    before = after
  late = before._replace(step=np.int32(1000))
  check(1000, late, averaged.step(late)[0])
  assert not np.allclose(
      leaf(before.ema_params), leaf(before.variables.params), rtol=1e-3
  )
  chex.assert_trees_all_equal(before.eval_variables.params, before.ema_params)


def test_an_average_changes_evaluation_and_not_training(small, averaged):
  one, other = small.states[-1], averaged.states[-1]
  # Of two programs, which may round differently.
  chex.assert_trees_all_close(one.variables, other.variables, atol=1e-7)
  one, other = (
      small.experiment.evaluate(
          distributed.replicate(state, small.experiment.mesh), 'test'
      ).metrics['mse']
      for state in (one, other)
  )
  assert one != other


def test_half_of_the_images_are_mirrored(rng):
  images = rng.uniform(size=(400, 4, 6, 3)).astype(np.float32)
  flipped = jax.jit(train_step._flip_some)(jax.random.key(0), images)
  flipped = np.asarray(flipped)
  same = np.all(flipped == images, axis=(1, 2, 3))
  mirrored = np.all(flipped == images[:, :, ::-1], axis=(1, 2, 3))
  assert np.all(same ^ mirrored)
  assert 150 < mirrored.sum() < 250


def test_mirroring_is_a_field(small, mirrored_l1):
  """The same state and batch have another error; the loss changes none."""
  with_it, without = mirrored_l1.metrics[0], small.metrics[0]
  assert abs(with_it['mse'] / without['mse'] - 1) > 1e-4
  np.testing.assert_allclose(
      with_it['brightness_variance'],
      without['brightness_variance'],
      rtol=1e-4,
  )


def test_the_reconstruction_loss_is_a_field(small, mirrored_l1):
  """The MSE is reported anyway."""
  mse, l1 = small.metrics[0], mirrored_l1.metrics[0]
  np.testing.assert_allclose(mse['reconstruction'], mse['mse'], rtol=1e-5)
  assert l1['mse'] < 0.8 * l1['reconstruction'] < l1['reconstruction']
  # The quantizer's term, a multiple of its error, is added to either.
  factors = [
      (m['loss'] - m['reconstruction']) / m['quantization_error']
      for m in (mse, l1)
  ]
  np.testing.assert_allclose(*factors, rtol=1e-3)


def test_the_loss_is_the_reconstruction_and_the_quantizers_terms(gmvq):
  metrics = gmvq.metrics[0]
  positions, data_dim = 16, 16 * 16 * 3
  terms = 0.01 * (metrics['latent'] + 10 * metrics['kl'])
  np.testing.assert_allclose(
      metrics['loss'],
      metrics['reconstruction'] + terms * positions / data_dim,
      rtol=1e-5,
  )
