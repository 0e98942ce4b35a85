"""What a configuration makes: the model, the optimiser, the data, the steps."""

import functools
import hashlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from gmvq_jax import autoencoder
from gmvq_jax import config as config_lib
from gmvq_jax import data
from gmvq_jax import distributed
from gmvq_jax import evaluate
from gmvq_jax import losses
from gmvq_jax import networks
from gmvq_jax import quantizers
from gmvq_jax import schedules
from gmvq_jax import train_step

_IDENTIFYING = 64


def make_model(config: ConfigDict, channels: int) -> autoencoder.Autoencoder:
  """Builds the model of a configuration, for images of so many channels."""
  quantizer = quantizers.make(**config.quantizer)
  network = config.network
  style = networks.Style(
      batch_norm=network.batch_norm, dtype=jnp.dtype(network.dtype)
  )
  encoder = networks.Encoder(
      heads=quantizer.heads,
      width=network.width,
      num_blocks=network.encoder_blocks,
      num_downsamplings=network.num_downsamplings,
      style=style,
  )
  decoder = networks.Decoder(
      channels=channels,
      width=network.width,
      num_blocks=network.decoder_blocks,
      num_upsamplings=network.num_downsamplings,
      style=style,
  )
  return autoencoder.Autoencoder(encoder, quantizer, decoder)


class Experiment:
  """What a configuration makes: model, optimiser, data, compiled steps.

  Attributes:
    config: the configuration, validated.
    splits: the data.
    num_steps: of the whole run.
    mesh: the devices.
    model: networks and quantizer.
    learning_rate: its schedule.
    optimizer: AdamW under that schedule.
  """

  def __init__(self, config: ConfigDict):
    """Loads the data and builds the rest.

    Raises:
      errors.UserError: for whatever does not fit.
    """
    config_lib.validate(config)
    self.config = config
    self.splits, self._on_device = data.load(**config.data)
    image_shape = self.splits.train.shape[1:]
    config_lib.validate_data(
        config, image_shape, len(self.splits.train), jax.device_count()
    )
    self._loss = losses.get(config.reconstruction_loss, image_shape)
    self.num_steps = config_lib.num_steps(config, len(self.splits.train))
    self.mesh = distributed.data_mesh()
    self.model = make_model(config, channels=image_shape[-1])
    self.learning_rate = schedules.learning_rate(
        config.learning_rate,
        self.num_steps,
        warmup_fraction=config.warmup_fraction,
        warmup_factor=config.warmup_factor,
    )
    # Weight decay is the same for networks and codebook (section 5.1).
    self.optimizer = optax.adamw(
        self.learning_rate,
        b1=config.adam_b1,
        b2=config.adam_b2,
        weight_decay=config.weight_decay,
    )
    self._eval_step = evaluate.make_eval_step(self.model, self.mesh)
    self._calibrate = evaluate.make_calibrate(self.model, self.mesh)
    self._reconstruct = jax.jit(self.model.reconstruct)

  def batches(self):
    """Returns an iterator over training batches; see `data.batches`."""
    return data.batches(
        self.splits.train,
        self.config.batch_size,
        self.mesh,
        seed=self.config.seed,
        on_device=self._on_device,
    )

  def init_state(self) -> train_step.TrainState:
    """Returns the state at step 0, on all devices."""
    images = self._some_training_images(
        max(self.config.kmeans.images, 1), seed=self.config.seed
    )[:]
    sharding = distributed.replicated(self.mesh)
    key = jax.random.key(self.config.seed)
    return jax.jit(self._init, out_shardings=sharding)(key, images)

  def abstract_state(self, ema: bool | None = None) -> train_step.TrainState:
    """Returns the shapes and shardings of a state, for restoring one.

    Args:
      ema: whether it has a moving average; by default, as configured.
    """
    count = max(self.config.kmeans.images, 1)
    shape = (count, *self.splits.train.shape[1:])
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    init = functools.partial(self._init, ema=ema)
    sharding = distributed.replicated(self.mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(init, jax.random.key(0), images),
    )

  def _init(self, key, images, ema=None):
    return train_step.init_state(
        key,
        self.model,
        self.optimizer,
        images,
        kmeans=self.config.kmeans.images > 0,
        kmeans_iterations=self.config.kmeans.iterations,
        ema=self.config.ema_decay > 0 if ema is None else ema,
    )

  def make_train_step(self):
    """Returns the compiled step; see `train_step.make_train_step`."""
    temperature = self.config.temperature
    return train_step.make_train_step(
        self.model,
        self.optimizer,
        schedules.temperature(
            temperature.start,
            temperature.end,
            self.num_steps,
            shape=temperature.shape,
        ),
        reconstruction_loss=self._loss,
        ema_decay=self.config.ema_decay,
        flip=self.config.random_flip,
    )

  def calibrate(self, state: train_step.TrainState) -> train_step.TrainState:
    """Returns the state with the batch statistics to evaluate it with."""
    # The current statistics stay where there are no images to calibrate with.
    variables = state.eval_variables._replace(
        batch_stats=state.variables.batch_stats
    )
    stats = evaluate.calibrated_batch_stats(
        self._calibrate,
        variables,
        self._some_training_images(self.config.calibration_images, seed=0),
        batch_size=self.config.eval_batch_size,
    )
    # A copy, because a step of training donates the state it came from.
    return state._replace(eval_batch_stats=jax.tree.map(jnp.copy, stats))

  def evaluate(
      self, state: train_step.TrainState, split: str
  ) -> evaluate.Evaluation:
    """Evaluates a split; see `evaluate.evaluate`."""
    return evaluate.evaluate(
        self._eval_step,
        state.eval_variables,
        getattr(self.splits, split),
        batch_size=self.config.eval_batch_size,
    )

  def reconstruct(
      self, state: train_step.TrainState, images: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns images float `[n, H, W, channels]` and their codes `[n, h, w]`.

    Args:
      state: of this experiment.
      images: uint8, like the result.
    """
    decoded, quantized = self._reconstruct(
        state.eval_variables, autoencoder.to_unit(jnp.asarray(images))
    )
    return jax.device_get((decoded, quantized.codes))

  @functools.cached_property
  def data_identity(self) -> str:
    """Says which images these are: how many, and a digest of a few."""
    digest = hashlib.sha256()
    for images in self.splits:
      few = np.linspace(0, len(images) - 1, _IDENTIFYING).astype(int)
      digest.update(np.ascontiguousarray(images[few]))
    counts = '+'.join(str(len(images)) for images in self.splits)
    return f'{counts} images {digest.hexdigest()[:12]}'

  def _some_training_images(self, count, *, seed):
    """Returns images at random, read when they are asked for."""
    images = self.splits.train
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = np.sort(order[:count])
    return data.Lazy(lambda indices: images[chosen[indices]], len(chosen))
