"""What a configuration makes: the model, the optimiser, the data, the steps."""

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
from gmvq_jax import networks
from gmvq_jax import quantizers
from gmvq_jax import report
from gmvq_jax import schedules
from gmvq_jax import train_step

_PICTURED = 32


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
    self.splits = data.load(**_data_arguments(config))
    image_shape = self.splits.train.shape[1:]
    config_lib.validate_data(
        config, image_shape, len(self.splits.train), jax.device_count()
    )
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

  def init_state(self, images: jax.Array) -> train_step.TrainState:
    """Returns the state at step 0, on all devices."""
    sharding = distributed.replicated(self.mesh)
    key = jax.random.key(self.config.seed)
    return jax.jit(self._init, out_shardings=sharding)(key, images)

  def abstract_state(self) -> train_step.TrainState:
    """Returns the shapes and shardings of a state, for restoring one."""
    images = jax.ShapeDtypeStruct(self.splits.train.shape, jnp.uint8)
    sharding = distributed.replicated(self.mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(self._init, jax.random.key(0), images),
    )

  def _init(self, key, images):
    return train_step.init_state(
        key,
        self.model,
        self.optimizer,
        images,
        kmeans_images=self.config.kmeans.images,
        kmeans_iterations=self.config.kmeans.iterations,
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
        self.mesh,
        self.config.batch_size,
    )

  def calibrate(self, state: train_step.TrainState) -> train_step.TrainState:
    """Returns the state with the batch statistics to evaluate it with."""
    images = self.splits.train
    chosen = np.random.default_rng(0).permutation(len(images))
    stats = evaluate.calibrated_batch_stats(
        self._calibrate,
        state.variables,
        images[chosen[: self.config.calibration_images]],
        batch_size=self.config.eval_batch_size,
    )
    # A copy, because a step of training donates the state it came from.
    return state._replace(eval_batch_stats=jax.tree.map(jnp.copy, stats))

  def evaluate(
      self, state: train_step.TrainState, split: str
  ) -> dict[str, float]:
    """Returns the metrics of a split; see `evaluate.evaluate`."""
    return evaluate.evaluate(
        self._eval_step,
        state.eval_variables,
        getattr(self.splits, split),
        batch_size=self.config.eval_batch_size,
    )

  def picture(self, state: train_step.TrainState, split: str) -> np.ndarray:
    """Returns the first images of a split above their reconstructions."""
    images = getattr(self.splits, split)[:_PICTURED]
    decoded, _ = self._reconstruct(
        state.eval_variables, data.to_unit(jnp.asarray(images))
    )
    return report.comparison(images, jax.device_get(decoded))


def _data_arguments(config):
  fields = config.data
  return dict(
      name=fields.name,
      data_dir=fields.dir,
      train=fields.train,
      validation=fields.validation,
      test=fields.test,
  )
