"""Where the time of a train step goes, beside what its arithmetic alone takes.

    python benchmarks/step_profile.py --config=configs/cifar10.py \\
        [--config.batch_size=256] [--output=FILE.json]

Shares are of what JAX's profiler counts, by kind of operation, on a CPU. The
floor is XLA's count of floating-point operations of the step (its quantizer
taken plainly, because those in loops are counted once), at the rate of a large
matrix product measured here.
"""

import collections
import glob
import gzip
import json
import re
import tempfile
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import timing

from gmvq_jax.training import experiment

_CONFIG = config_flags.DEFINE_config_file('config')
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')


def compiled(config):
  """Returns a compiled step, its state and images."""
  run = experiment.Experiment(config)
  state, images = run.init_state(), next(run.batches())
  step = jax.jit(run.make_train_step(), donate_argnums=0)
  return step.lower(state, images).compile(), state, images


def times(step, state, images):
  """Returns the microseconds of each operation in a step, and its seconds."""
  for _ in range(3):
    start = time.perf_counter()
    state, _ = step(state, images)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
  with tempfile.TemporaryDirectory() as path:
    with jax.profiler.trace(path):
      state, _ = step(state, images)
      jax.block_until_ready(state)
    (trace,) = glob.glob(f'{path}/**/*.trace.json.gz', recursive=True)
    with gzip.open(trace) as file:
      events = json.load(file)['traceEvents']
  taken = collections.Counter()
  for event in events:
    operation = event.get('args', {}).get('hlo_op')
    if event.get('ph') == 'X' and operation:
      taken[operation] += event['dur']
  return taken, seconds


def kinds(text, batch_size):
  """Returns the kind of each operation of a compiled program."""
  pattern = r'%([\w.-]+) = \w+\[([\d,]*)\].*?op_name="([^"]*)"'
  found = {}
  for name, dims, path in re.findall(pattern, text):
    if 'while/body' in path:
      found[name] = 'quantizer'
    elif 'conv_general_dilated' not in path:
      found[name] = 'norms, activations, optimiser, metrics'
    elif 'transpose(' not in path:
      found[name] = 'convolutions, forward'
    elif dims.split(',')[0] == str(batch_size):
      found[name] = 'convolutions, gradient of inputs'
    else:
      found[name] = 'convolutions, gradient of weights'
  return found


def ceiling():
  """Returns the operations per second of a large matrix product."""
  square = jnp.ones((3072, 3072))
  product = jax.jit(lambda x: x @ x)
  run = {'product': lambda: jax.block_until_ready(product(square))}
  return 2 * 3072**3 / min(timing.seconds(run, 5)['product'])


def main(_):
  """Measures and prints."""
  config = _CONFIG.value
  step, state, images = compiled(config)
  taken, seconds = times(step, state, images)
  kind_of = kinds(step.as_text(), config.batch_size)
  by_kind = collections.Counter()
  for operation, duration in taken.items():
    # Copies into other layouts, which XLA adds, have no path of their own.
    by_kind[kind_of.get(operation, 'copies')] += duration / 1e6
  # Loops contain what is counted already.
  by_kind['copies'] -= sum(
      v / 1e6 for k, v in taken.items() if re.match(r'while|call', k)
  )
  total = sum(by_kind.values())
  if 'assignment' in config.quantizer:
    config.quantizer.assignment = 'plain'
  counted = compiled(config)[0].cost_analysis()['flops']
  operations = ceiling()
  timing.report(
      {
          'hardware': timing.hardware(),
          'batch_size': config.batch_size,
          'seconds': seconds,
          'share': {k: v / total for k, v in by_kind.most_common()},
          'gigaflop': counted / 1e9,
          'gigaflop_per_second_of_a_product': operations / 1e9,
          'seconds_of_arithmetic': counted / operations,
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
