"""Training steps from one initial state, on any devices.

`python tests/steps.py OUTPUT.npz one|many` is one of several processes that
train together; `test_devices.py` compares their results.
"""

import contextlib
import functools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from gmvq_jax import quantizers
from gmvq_jax.runtime import distributed
from gmvq_jax.training import build
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import schedules
from gmvq_jax.training import train_step

# Names of methods or of `compositions.EXAMPLES`, and fields of the quantizer.
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
    'residual vqvae+ema+replace': {},
    'residual shared ema': {},
}
_BATCH, _STEPS = 16, 20
# Compilation takes most of the time.
_QUICKLY = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
}


def one(method, mesh):
  """Returns metrics and state after one step of SGD, float32.

  The learning rate is 1, so parameters change by their gradients. AdamW would
  divide a gradient that is only rounding by itself.
  """
  with jax.enable_x64(False):
    return _train(method, mesh, jnp.float32, [1], sgd=True)[0]


def many(method, mesh):
  """Returns metrics and state after 1 and 20 steps of AdamW, float64."""
  with jax.enable_x64(True):
    return _train(method, mesh, jnp.float64, [1, _STEPS])


def flat(tree):
  """Returns a tree as `{name: array}`."""
  return {
      jax.tree_util.keystr(path): np.asarray(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _train(method, mesh, dtype, after, *, sgd=False):
  model, optimizer, state = _initial(method, dtype, sgd)
  state = distributed.replicate(state, mesh)
  batches = [distributed.divide(batch, mesh) for batch in _images()]
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


@functools.cache
def _images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (_STEPS, _BATCH, 8, 8, 3), np.uint8)


@functools.cache
def _initial(method, dtype, sgd):
  """Returns the model, the optimizer, and the state before the first step."""
  model, optimizer = _build(method, dtype)
  if sgd:
    optimizer = quantizers.optimizer(
        optax.sgd(1.0), model.quantizer, path=('quantizer',)
    )

  # Of the networks only the shapes are those of a state: to compile their
  # initialisation takes as long as a step.
  shapes = jax.eval_shape(
      lambda key: train_step.init_state(
          key, model, optimizer, _images()[0], kmeans=False
      ),
      jax.random.key(0),
  )
  rng = np.random.default_rng(0)

  def arrays(tree, sample):
    return jax.tree.map(lambda x: np.asarray(sample(x.shape), x.dtype), tree)

  params, state = jax.jit(model.quantizer.init)(jax.random.key(0))
  variables = shapes.variables
  params = arrays(variables.params, lambda n: rng.normal(0, 0.3, n)) | {
      'quantizer': params
  }
  result = arrays(shapes, np.zeros)._replace(
      key=np.arange(2, dtype=np.uint32),
      variables=variables._replace(
          params=params,
          batch_stats=arrays(variables.batch_stats, np.ones),
          quantizer_state=state,
      ),
  )
  result = jax.tree.map(
      lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x,
      jax.device_get(result),
  )
  return model, optimizer, result


def _build(method, dtype):
  """Returns a small model of a method, and its optimizer."""
  import compositions  # Uses JAX, which must not come before `initialize`.

  composed = compositions.EXAMPLES.get(method)
  config = tiny.config('', network__num_downsamplings=1, network__width=4)
  config.network.dtype = dtype.dtype.name
  # For one method only: batch norms take long to compile.
  config.network.batch_norm = method == 'gmvq tiled'
  config.quantizer = config_lib.quantizer_config(
      'vqvae' if composed else method.split()[0]
  )
  sizes = {'num_codes': 16, 'dim': 4}
  for field, value in (sizes | METHODS[method]).items():
    if field in config.quantizer:
      config.quantizer[field] = value
  numbers = build.numbers_of(config)
  with contextlib.ExitStack() as stack:
    if composed:
      make = mock.patch.object(quantizers, 'make', lambda **_: composed)
      stack.enter_context(make)
    model, optimizer, _ = build.build(config, numbers, 3, _STEPS)
  return model, optimizer


def main(path, take):
  """Writes the results of all methods on all devices."""
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
