"""What a configuration makes of models, and the functions compiled from it.

Runs that differ in numbers alone (the learning rate, and the weights that a
quantizer takes) share their programs: those numbers are arguments. On two CPU
cores the second run so starts 10 s sooner, and a step takes 1.01 times as long
(`benchmarks/shared_programs.py`, results/shared_programs.json).
"""

from collections.abc import Callable
import functools
import json
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import optax

from gmvq_jax import quantizers
from gmvq_jax.nn import autoencoder
from gmvq_jax.nn import losses
from gmvq_jax.nn import networks
from gmvq_jax.runtime import distributed
from gmvq_jax.training import evaluate
from gmvq_jax.training import schedules
from gmvq_jax.training import train_step as train_step_lib

Numbers = dict[str, Any]


class Parts(NamedTuple):
  """What a configuration makes, for given numbers.

  Attributes:
    model: networks and quantizer.
    optimizer: AdamW; the weight decay is the same for networks and codebook
      (section 5.1). With clipping, or without bad updates, if so configured.
    learning_rate: its schedule.
  """

  model: autoencoder.Autoencoder
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule


class Programs(NamedTuple):
  """Jitted functions; the first argument of each is the numbers.

  Attributes:
    init: `(numbers, key, images, ema) -> state`; see `train_step.init_state`.
    train_step: `(numbers, state, images)`; see `train_step.make_train_step`.
    eval_step: `(numbers, variables, images, mask)`; see `evaluate`.
    calibrate: `(numbers, variables, images)`; see `evaluate`.
    reconstruct: `(numbers, variables, images)`, images uint8.
  """

  init: Callable
  train_step: Callable
  eval_step: Callable
  calibrate: Callable
  reconstruct: Callable


def numbers_of(config: ConfigDict) -> Numbers:
  """Returns what is an argument of programs: numbers without consequences."""
  kinds = quantizers.fields(config.quantizer.name)
  return {
      'learning_rate': float(config.learning_rate),
      'quantizer': {
          name: float(value)
          for name, value in config.quantizer.items()
          if name != 'name' and kinds[name].annotation is float
      },
  }


def build_model(
    config: ConfigDict, numbers: Numbers, channels: int
) -> autoencoder.Autoencoder:
  """Builds the networks and the quantizer; see `build`."""
  fields = {**config.quantizer, **numbers['quantizer']}
  quantizer = quantizers.make(**fields)
  network = config.network
  style = networks.Style(
      batch_norm=network.batch_norm,
      dtype=jnp.dtype(network.dtype),
      remat=network.remat,
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


def build(
    config: ConfigDict, numbers: Numbers, channels: int, num_steps: int
) -> Parts:
  """Builds what a configuration describes.

  Args:
    config: its own numbers are not looked at.
    numbers: of `numbers_of`, or tracers of such.
    channels: of the images.
    num_steps: of the whole run.
  """
  share_of_peak = schedules.learning_rate(
      1.0,
      num_steps,
      warmup_fraction=config.warmup_fraction,
      warmup_factor=config.warmup_factor,
  )

  def learning_rate(step):
    return numbers['learning_rate'] * share_of_peak(step)

  optimizer = optax.adamw(
      learning_rate,
      b1=config.adam_b1,
      b2=config.adam_b2,
      weight_decay=config.weight_decay,
  )
  if config.clip_norm:
    clip = optax.clip_by_global_norm(config.clip_norm)
    optimizer = optax.chain(clip, optimizer)
  if config.skip_nonfinite:
    optimizer = optax.apply_if_finite(optimizer, config.skip_nonfinite)
  model = build_model(config, numbers, channels)
  optimizer = quantizers.optimizer(
      optimizer, model.quantizer, path=('quantizer',)
  )
  return Parts(model, optimizer, learning_rate)


def abstract_state(
    config: ConfigDict, channels: int
) -> train_step_lib.TrainState:
  """Returns the shapes and types of a state, as `jax.ShapeDtypeStruct`.

  Args:
    config: of its run.
    channels: of the images. It does not depend on their size, nor on the
      number of steps.
  """
  model, optimizer, _ = build(config, numbers_of(config), channels, 1000)
  side = 2**config.network.num_downsamplings
  return jax.eval_shape(
      lambda key, images: train_step_lib.init_state(
          key, model, optimizer, images, kmeans=False, ema=config.ema_decay > 0
      ),
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, side, side, channels), jnp.uint8),
  )


def of(
    config: ConfigDict,
    image_shape: tuple[int, ...],
    num_steps: int,
    mesh: Mesh | None = None,
) -> Programs:
  """Returns the programs of a configuration, the same for the same.

  Args:
    config: one that `config_checks.validate` passes.
    image_shape: `(H, W, channels)`.
    num_steps: of the whole run.
    mesh: what they are compiled for; by default all devices.
  """
  fields = config.to_dict()
  numbers = numbers_of(config)
  for name in ('seed', 'learning_rate', 'data', 'init_from'):
    del fields[name]
  for name in numbers['quantizer']:
    del fields['quantizer'][name]
  mesh = mesh or distributed.data_mesh()
  described = json.dumps(fields, sort_keys=True)
  return _programs(described, image_shape, num_steps, mesh)


@functools.lru_cache(maxsize=4)
def _programs(fields, image_shape, num_steps, mesh):
  config = ConfigDict(json.loads(fields))
  loss = losses.get(config.reconstruction_loss, image_shape)
  channels = image_shape[-1]

  def parts(numbers):
    return build(config, numbers, channels, num_steps)

  def init(numbers, key, images, ema):
    model, optimizer, _ = parts(numbers)
    return train_step_lib.init_state(
        key,
        model,
        optimizer,
        images,
        kmeans=config.kmeans.images > 0,
        kmeans_iterations=config.kmeans.iterations,
        ema=ema,
    )

  def train_step(numbers, state, images):
    model, optimizer, _ = parts(numbers)
    temperature = schedules.temperature(
        config.temperature.start,
        config.temperature.end,
        num_steps,
        shape=config.temperature.shape,
    )
    step = train_step_lib.make_train_step(
        model,
        optimizer,
        temperature,
        reconstruction_loss=loss,
        ema_decay=config.ema_decay,
        flip=config.random_flip,
    )
    return step(state, images)

  def eval_step(numbers, *args):
    return evaluate.make_eval_step(parts(numbers).model, mesh)(*args)

  def calibrate(numbers, *args):
    return evaluate.make_calibrate(parts(numbers).model, mesh)(*args)

  def reconstruct(numbers, variables, images):
    images = autoencoder.to_unit(images)
    return parts(numbers).model.reconstruct(variables, images)

  batched = distributed.batched(mesh)
  replicated = distributed.replicated(mesh)
  return Programs(
      init=jax.jit(init, static_argnums=3, out_shardings=replicated),
      train_step=jax.jit(train_step, donate_argnums=1),
      eval_step=jax.jit(
          eval_step,
          in_shardings=(None, None, batched, batched),
          out_shardings=replicated,
      ),
      calibrate=jax.jit(
          calibrate,
          in_shardings=(None, None, batched),
          out_shardings=replicated,
      ),
      reconstruct=jax.jit(reconstruct, out_shardings=replicated),
  )
