"""A configuration with its data and its programs: all that a run needs."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from gmvq_jax import data
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.training import build
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import config_checks
from gmvq_jax.training import evaluate
from gmvq_jax.training import train_step


class Experiment:
  """A configuration with its data and its programs.

  Attributes:
    config: the configuration, validated.
    splits: the data.
    num_steps: of the whole run.
    mesh: the devices.
    model: networks and quantizer.
    learning_rate: its schedule.
    optimizer: AdamW under that schedule.
  """

  def __init__(
      self, config: ConfigDict, loaded: tuple[data.Splits, bool] | None = None
  ):
    """Loads the data and builds the rest.

    Args:
      config: the configuration.
      loaded: what `data.load` has returned for the same `config.data`.

    Raises:
      errors.UserError: for whatever does not fit.
    """
    config_checks.validate(config)
    self.config = config
    self.splits, self._on_device = loaded or data.load(**config.data)
    shape = self.splits.train.shape[1:]
    config_checks.validate_data(
        config, shape, len(self.splits.train), jax.device_count()
    )
    self.num_steps = config_lib.num_steps(config, len(self.splits.train))
    self.mesh = distributed.data_mesh()
    self._numbers = build.numbers_of(config)
    self.model, self.optimizer, self.learning_rate = build.build(
        config, self._numbers, shape[-1], self.num_steps
    )
    self._programs = build.of(config, shape, self.num_steps)

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
    key = jax.random.key(self.config.seed)
    return self._programs.init(
        self._numbers, key, images, self.config.ema_decay > 0
    )

  def abstract_state(
      self, fields: dict[str, Any] | None = None
  ) -> train_step.TrainState:
    """Returns the shapes and shardings of a state, for restoring one.

    Args:
      fields: of the configuration it is of, where they differ from this one.
    """
    config = self.config.copy_and_resolve_references()
    config.update(fields or {})
    state = build.abstract_state(config, self.splits.train.shape[-1])
    sharding = distributed.replicated(self.mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
    )

  def make_train_step(self):
    """Returns the compiled step; see `train_step.make_train_step`."""
    return functools.partial(self._programs.train_step, self._numbers)

  def calibrate(self, state: train_step.TrainState) -> train_step.TrainState:
    """Returns the state with the batch statistics to evaluate it with."""
    # The current statistics stay where there are no images to calibrate with.
    variables = state.eval_variables._replace(
        batch_stats=state.variables.batch_stats
    )
    stats = evaluate.calibrated_batch_stats(
        self._of_batches(self._programs.calibrate),
        variables,
        self._some_training_images(self.config.calibration_images, seed=0),
        batch_size=self.config.eval_batch_size,
    )
    # A copy, because a step of training donates the state it came from.
    return state._replace(eval_batch_stats=jax.tree.map(jnp.copy, stats))

  def evaluate(
      self, state: train_step.TrainState, split: str
  ) -> evaluate.Evaluation:
    """Evaluates a split; see `evaluate.evaluate`.

    Raises:
      errors.DivergedError: when its error is not finite.
    """
    result = evaluate.evaluate(
        self._of_batches(self._programs.eval_step),
        state.eval_variables,
        getattr(self.splits, split),
        batch_size=self.config.eval_batch_size,
    )
    mse = result.metrics['mse']
    if not math.isfinite(mse):
      raise errors.DivergedError(
          f'step {state.step}: mse of the {split} split is {mse}; it must be'
          ' finite'
      )
    return result

  def reconstruct(
      self, state: train_step.TrainState, images: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns images float `[n, H, W, channels]` and their codes `[n, h, w]`.

    Args:
      state: of this experiment.
      images: uint8, like the result.
    """
    decoded, quantized = self._programs.reconstruct(
        self._numbers,
        state.eval_variables,
        distributed.replicate(images, self.mesh),
    )
    return jax.device_get((decoded, quantized.codes))

  @functools.cached_property
  def origin(self) -> dict[str, Any]:
    """What a checkpoint comes from: its images' shape, and two digests."""
    return {
        'image_shape': list(self.splits.train.shape[1:]),
        'config': config_lib.digest(self.config),
        'data': data.fingerprint(*self.splits),
    }

  def check_origin(self, origin: dict[str, Any]) -> None:
    """Checks that a checkpoint comes from this configuration and data.

    Args:
      origin: of the experiment that saved it.

    Raises:
      errors.UserError: if it does not.
    """
    if origin['config'] != self.origin['config']:
      raise errors.UserError(
          'config.json: is not the configuration that the checkpoints beside it'
          ' come from; put that back, or give another work directory'
      )
    if origin['data'] != self.origin['data']:
      raise errors.UserError(
          f'config.data.name={self.config.data.name}: these are not the images'
          f' that the run began with ({origin["data"]} then,'
          f' {self.origin["data"]} now); give those, or another work directory'
      )

  def _of_batches(self, program):
    """Returns a program whose batches are divided over the devices."""

    def run(variables, *batch):
      batch = distributed.divide(batch, self.mesh)
      return program(self._numbers, variables, *batch)

    return run

  def _some_training_images(self, count, *, seed):
    """Returns images at random, read when they are asked for."""
    images = self.splits.train
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = np.sort(order[:count])
    return data.Lazy(lambda indices: images[chosen[indices]], len(chosen))
