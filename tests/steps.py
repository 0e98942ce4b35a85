"""Steps of training from one start, on whatever devices there are.

`python tests/steps.py OUTPUT.npz one|many` is one of several processes that
take them together; `test_devices.py` compares.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from gmvq_jax import config as config_lib
from gmvq_jax import distributed
from gmvq_jax import programs
from gmvq_jax import schedules
from gmvq_jax import train_step

# Names of configurations, and fields of their quantizers.
METHODS = {
    'gmvq': {},
    'gmvq tiled': {'assignment': 'tiled'},
    'gmvq aggregated': {'latent': 'aggregated'},
    'vqvae': {},
    'vqvae+l2': {},
    'vqvae+ema': {},
    'vqvae+replace': {'replace_after': 1},
    'vqvae+affine': {},
    'vqvae+opt': {},
    'vqvae+frozen': {},
    'sqvae': {},
    'gumbel': {},
    'fsq': {},
    'lfq': {},
    'diveq': {},
    'simvq+rotation': {},
}
_BATCH, _STEPS = 16, 20
# Compiling is most of the work.
_QUICKLY = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
}


def one(method, mesh):
  """Returns metrics and state after one step, float32.

  Of gradient descent at rate 1: parameters move by their gradients, which AdamW
  would divide by themselves, and so by rounding where they are 0.
  """
  with jax.enable_x64(False):
    return _take(method, mesh, jnp.float32, [1], optax.sgd(1.0))[0]


def many(method, mesh):
  """Returns metrics and state after one and after twenty steps, float64."""
  with jax.enable_x64(True):
    return _take(method, mesh, jnp.float64, [1, _STEPS])


def flat(tree):
  """Returns a tree as `{name: array}`."""
  return {
      jax.tree_util.keystr(path): np.asarray(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _take(method, mesh, dtype, after, optimizer=None):
  model, adamw = _build(method, dtype)
  optimizer = optimizer or adamw
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (_STEPS, _BATCH, 8, 8, 3), np.uint8)

  def init(key):
    state = train_step.init_state(
        key, model, optimizer, images[0], kmeans=False
    )
    return jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, state
    )

  # From one device, as programs for several may differ in their rounding.
  state = jax.device_get(jax.jit(init)(jax.random.key(0)))
  state = distributed.replicate(state, mesh)
  batches = [distributed.divide(batch, mesh) for batch in images]
  step = (
      train_step.make_train_step(
          model, optimizer, schedules.temperature(1.0, 0.5, _STEPS)
      )
      .lower(state, batches[0])
      .compile(compiler_options=_QUICKLY)
  )
  results = []
  for number, batch in enumerate(batches[: max(after)], 1):
    state, metrics = step(state, batch)
    if number in after:
      results.append(jax.device_get((metrics, state)))
  return results


def _build(method, dtype):
  """Returns a small model of a method, and its optimiser."""
  config = tiny.config('', network__num_downsamplings=1, network__width=4)
  config.network.dtype = dtype.dtype.name
  # Once for all methods, as they compile longer with it.
  config.network.batch_norm = method == 'gmvq'
  config.quantizer = config_lib.quantizer_config(method.split()[0])
  sizes = {'num_codes': 16, 'dim': 4}
  for field, value in (sizes | METHODS[method]).items():
    if field in config.quantizer:
      config.quantizer[field] = value
  numbers = programs.numbers_of(config)
  model, optimizer, _ = programs.build(config, numbers, 3, _STEPS)
  return model, optimizer


def main(path, take):
  """Writes what comes of all methods on all devices."""
  mesh = distributed.data_mesh()
  results = {
      f'{method}: {name}': value
      for method in METHODS
      for name, value in flat(take(method, mesh)).items()
  }
  if distributed.is_first():
    np.savez(path, **results)


if __name__ == '__main__':
  distributed.initialize()
  main(sys.argv[1], {'one': one, 'many': many}[sys.argv[2]])
