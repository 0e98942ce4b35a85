"""The programs of a configuration, lowered for devices that are not here."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gmvq_jax import data
from gmvq_jax.runtime import distributed
from gmvq_jax.tokenizer import tokenizer
from gmvq_jax.training import build

_STEPS = 1000  # Of a run; nothing here depends on it.
_CIFAR10 = (32, 32, 3)


class Program(NamedTuple):
  """A program before it is compiled.

  Attributes:
    images: that all devices take at a time.
    lower: returns it, lowered for the devices.
  """

  images: int
  lower: Callable[[], jax.stages.Lowered]


def image_shape(config: ConfigDict) -> tuple[int, ...]:
  """Returns `(H, W, channels)` of a configuration's images.

  They are read only where the configuration does not say it.
  """
  if config.data.size:
    return config.data.size, config.data.size, config.data.channels
  if config.data.name == 'cifar10':
    return _CIFAR10
  splits, _ = data.load(**config.data)
  return splits.train.shape[1:]


def of(
    config: ConfigDict, shape: tuple[int, ...], mesh: Mesh
) -> dict[str, Program]:
  """Returns the programs of a run and of its tokenizer, by name.

  Args:
    config: one that `config_checks.validate` passes.
    shape: of its images.
    mesh: of `distributed.mesh_of`.
  """
  numbers = build.numbers_of(config)
  programs = build.of(config, shape, _STEPS, mesh)
  model = build.build_model(config, numbers, shape[-1])
  whole, sharded = distributed.replicated(mesh), distributed.batched(mesh)

  def like(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree
    )

  def array(size: int, *rest: int, dtype: Any = jnp.uint8) -> Any:
    return jax.ShapeDtypeStruct((size, *rest), dtype, sharding=sharded)

  state = like(build.abstract_state(config, shape[-1]))
  variables = state.eval_variables
  key = like(jax.eval_shape(lambda: jax.random.key(0)))
  some = like(array(max(config.kmeans.images, 1), *shape))
  per_batch = config.eval_batch_size
  images = array(per_batch, *shape)
  mask = array(per_batch, dtype=jnp.bool_)
  platform = mesh.devices.flat[0].platform
  height, width, _ = shape
  unit = tokenizer.unit_size(height, width, platform) * mesh.size
  factor = 2**config.network.num_downsamplings
  codes = array(
      unit, height // factor, width // factor, *model.quantizer.code_shape,
      dtype=jnp.int32,
  )  # fmt: skip

  def lowering(program: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: program.lower(*arguments)

  def unit_of(function: Any) -> Any:
    return tokenizer.of_each_device(functools.partial(function, model), mesh)

  return {
      'train step': train_step(config, shape, mesh, config.batch_size),
      'evaluation': Program(
          per_batch,
          lowering(programs.eval_step, numbers, variables, images, mask),
      ),
      'calibration': Program(
          per_batch, lowering(programs.calibrate, numbers, variables, images)
      ),
      'start, with k-means': Program(
          some.shape[0],
          lowering(programs.init, numbers, key, some, config.ema_decay > 0),
      ),
      'encode': Program(
          unit,
          lowering(unit_of(tokenizer.codes_of), variables, array(unit, *shape)),
      ),
      'decode': Program(
          unit, lowering(unit_of(tokenizer.images_of), variables, codes)
      ),
  }


def train_step(
    config: ConfigDict, shape: tuple[int, ...], mesh: Mesh, batch_size: int
) -> Program:
  """Returns the train step of batches of another size; see `of`."""
  numbers = build.numbers_of(config)
  program: Any = build.of(config, shape, _STEPS, mesh).train_step
  whole, sharded = distributed.replicated(mesh), distributed.batched(mesh)
  state = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      build.abstract_state(config, shape[-1]),
  )
  images = jax.ShapeDtypeStruct(
      (batch_size, *shape), jnp.uint8, sharding=sharded
  )
  return Program(batch_size, lambda: program.lower(numbers, state, images))
