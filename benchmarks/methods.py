"""Time of a train step and of the quantizer alone, GM-VQ beside VQ-VAE.

    python benchmarks/methods.py [--output=FILE.json]

Steps are those of `configs/cifar10.py` with batches of 128. The quantizer alone
is forward and backward at 8,192 positions and 1,024 codes, with GM-VQ's
probabilities kept for the backward pass (`auto`) and computed again in tiles.
Ratios are medians over alternating rounds in this process.
"""

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import timing

from gmvq_jax import quantizers
from gmvq_jax.runtime import memory
from gmvq_jax.training import build
from gmvq_jax.training import config as config_lib

_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')
_ROUNDS = flags.DEFINE_integer('rounds', 9, 'Measurements of each kind.')
_BATCH = (128, 32, 32, 3)
_METHODS = ('vqvae+l2+replace', 'gmvq', 'gmvq+entropy', 'gmvq+annealed')


def step(method):
  """Returns a function that runs a train step of a method."""
  config = config_lib.default_config()
  config.quantizer = config_lib.method_config(method)
  numbers = build.numbers_of(config)
  programs = build.of(config, _BATCH[1:], 1000)
  images = np.random.default_rng(0).integers(0, 256, _BATCH, np.uint8)
  images = jnp.asarray(images)
  states = [programs.init(numbers, jax.random.key(0), images, False)]

  def run():
    states[0], metrics = programs.train_step(numbers, states[0], images)
    jax.block_until_ready(metrics)

  return run


def alone(name, **fields):
  """Returns a function that runs a quantizer forward and backward."""
  quantizer = quantizers.make(name, num_codes=1024, dim=64, **fields)

  @jax.jit
  def gradient(params, state, h, key):
    def loss(params, h):
      quantized, _ = quantizer.apply(
          params, state, h, key=key, temperature=0.5, train=True
      )
      return jnp.sum(jnp.square(quantized.z)) + quantized.loss

    return jax.grad(loss, argnums=(0, 1))(params, h)

  key = jax.random.key(0)
  params, state = quantizer.init(key)
  h = jax.random.normal(jax.random.key(1), (8192, sum(quantizer.heads)))
  return lambda: jax.block_until_ready(gradient(params, state, h, key))


def main(_):
  """Measures and prints."""
  memory.keep_freed()
  gmvq = {'gamma': 0.01, 'beta': 10.0}
  soft = {'hard': False, 'gaussian_noise': False, 'identity': 1.0}
  steps = timing.seconds({m: step(m) for m in _METHODS}, _ROUNDS.value)
  parts = timing.seconds(
      {
          'vqvae': alone('vqvae'),
          'gmvq, tiled': alone('gmvq', **gmvq, assignment='tiled'),
          'gmvq': alone('gmvq', **gmvq),
          'gmvq, annealed': alone('gmvq', **gmvq, **soft),
      },
      _ROUNDS.value,
  )
  result = {
      'hardware': timing.hardware(),
      'jax': jax.__version__,
      'step': {
          'seconds': timing.medians(steps),
          'over_vqvae': {
              m: timing.ratio(steps, m, _METHODS[0]) for m in _METHODS[1:]
          },
      },
      'quantizer': {
          'seconds': timing.medians(parts),
          'over_vqvae': timing.ratio(parts, 'gmvq', 'vqvae'),
          'tiled_over_kept': timing.ratio(parts, 'gmvq, tiled', 'gmvq'),
      },
  }
  timing.report(result, _OUTPUT.value)


if __name__ == '__main__':
  app.run(main)
