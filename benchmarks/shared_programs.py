"""What it saves and costs that numbers are arguments of programs.

    python benchmarks/shared_programs.py [--output=FILE.json]

Runs that differ in the learning rate or in weights of the quantizer share their
programs (`training.build`). Measured: the seconds that compiling takes the
first run, and a step with the numbers as arguments against one with them as
constants, at `configs/cifar10.py` with batches of 128. Ratios are medians over
alternating rounds in this process.
"""

import functools
import time

from absl import app
from absl import flags
import jax
import numpy as np
import timing

from gmvq_jax.training import build
from gmvq_jax.training import config as config_lib

_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each kind.')
_BATCH = (128, 32, 32, 3)


def main(_):
  """Measures and prints."""
  config = config_lib.default_config()
  config.quantizer = config_lib.quantizer_config('gmvq')
  numbers = build.numbers_of(config)
  programs = build.of(config, _BATCH[1:], 1000)
  images = np.random.default_rng(0).integers(0, 256, _BATCH, np.uint8)
  key = jax.random.key(0)

  init, init_seconds = compiled(programs.init, numbers, key, images, False)
  state = init(numbers, key, images)
  shared, step_seconds = compiled(programs.train_step, numbers, state, images)
  constant, _ = compiled(
      jax.jit(functools.partial(programs.train_step.__wrapped__, numbers)),
      state,
      images,
  )
  # The state that one was given is gone.
  states = [jax.tree.map(jax.numpy.copy, state)]

  def run_shared():
    states[0], metrics = shared(numbers, states[0], images)
    jax.block_until_ready(metrics)

  kinds = {
      'arguments': run_shared,
      'constants': lambda: jax.block_until_ready(constant(state, images)),
  }
  taken = timing.seconds(kinds, _ROUNDS.value)
  result = {
      'hardware': timing.hardware(),
      'jax': jax.__version__,
      'compile_seconds': {'init': init_seconds, 'train_step': step_seconds},
      'step_seconds': timing.medians(taken),
      'arguments_over_constants': timing.ratio(taken, 'arguments', 'constants'),
  }
  timing.report(result, _OUTPUT.value)


def compiled(function, *args):
  """Returns a compiled function, and the seconds that took."""
  start = time.perf_counter()
  program = function.lower(*args).compile()
  return program, time.perf_counter() - start


if __name__ == '__main__':
  app.run(main)
