"""What a train step holds and sends, read off its program and by formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.runtime import distributed
from gmvq_jax.training import build
from gmvq_jax.training import schedules
from gmvq_jax.training import train_step


def predicted(config, image_size, num_devices):
  """Returns the formulas of docs/scaling.md: bytes of a GM-VQ step by tiles.

  Args:
    config: of a run, of the default network.
    image_size: H = W.
    num_devices: that share a batch.
  """
  model, *_ = build.build(config, build.numbers_of(config), 3, 1000)
  variables = jax.eval_shape(
      lambda key: model.init(key, (image_size, image_size, 3)),
      jax.random.key(0),
  )
  params, stats = (
      sum(x.size for x in jax.tree.leaves(tree))
      for tree in (variables.params, variables.batch_stats)
  )
  codes, dim = config.quantizer.num_codes, config.quantizer.dim
  copies = 4 if config.ema_decay else 3
  pixels = config.batch_size * image_size**2 / num_devices
  return {
      'state': 4 * (copies * params + 2 * stats) + 24,
      'sent': 4 * (params + 2 * codes + 3 * stats // 2 + dim + 10),
      'temporaries': 1140 * pixels + 4 * params + 14 * codes * dim,
  }


def compile_step(config, image_size, num_devices):
  """Returns a compiled train step, and a function that makes its arguments.

  Args:
    config: of a run.
    image_size: H = W, of three channels.
    num_devices: that share a batch of `config.batch_size`.
  """
  mesh = distributed.data_mesh(num_devices)
  whole, divided = distributed.replicated(mesh), distributed.batched(mesh)
  model, optimizer, _ = build.build(
      config, build.numbers_of(config), 3, 1000
  )
  shape = (config.batch_size, image_size, image_size, 3)
  init = functools.partial(
      train_step.init_state,
      model=model,
      optimizer=optimizer,
      images=jax.ShapeDtypeStruct(shape, jnp.uint8),
      kmeans=False,
      ema=config.ema_decay > 0,
  )
  step = train_step.make_train_step(
      model,
      optimizer,
      schedules.temperature(1.0, 0.5, 1000),
      ema_decay=config.ema_decay,
  )

  def like(tree, sharding):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
    )

  state = jax.eval_shape(init, jax.random.key(0))
  images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=divided)
  compiled = step.lower(like(state, whole), images).compile()

  def arguments():
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    state = jax.jit(init, out_shardings=whole)(jax.random.key(0))
    return state, jax.device_put(images, divided)

  return compiled, arguments
