"""Speed of training on real data, beside that of its train step alone.

    TFDS_DATA_DIR=... python benchmarks/input_pipeline.py \\
        --config=configs/cifar10.py

Prints, as one JSON object, from one run on one machine: steps and images per
second with real data (batches of the Grain pipeline, metrics read a step late,
as in `gmvq_jax.train` but for its files) and of the same step on one
fixed batch; their ratio, in alternation; the time to compile; the memory of
the compiled step, and the peak of the process. The paper's setting at
`--config.batch_size=128` takes about two minutes on two cores.
"""

import json
import resource
import statistics
import time

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from gmvq_jax import experiment

_CONFIG = config_flags.DEFINE_config_file('config')
_STEPS = flags.DEFINE_integer('steps', 10, 'Steps in each measurement.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each kind.')


def main(_):
  """Measures and prints."""
  config = _CONFIG.value
  exp = experiment.Experiment(config)
  state, batches = exp.init_state(), exp.batches()
  images = next(batches)
  start = time.perf_counter()
  step = jax.jit(exp.make_train_step(), donate_argnums=0)
  step = step.lower(state, images).compile()
  compile_seconds = time.perf_counter() - start
  memory = step.memory_analysis()

  def real(state):
    """Steps as the trainer takes them."""
    pending = None
    for _ in range(_STEPS.value):
      state, metrics = step(state, next(batches))
      if pending is not None:
        jax.device_get(pending)
      pending = metrics
    jax.block_until_ready(state)
    return state

  def fixed(state):
    """The same step on the same batch, and nothing else."""
    for _ in range(_STEPS.value):
      state, _ = step(state, images)
    jax.block_until_ready(state)
    return state

  state = fixed(real(state))
  seconds = {'real': [], 'fixed': []}
  for _ in range(_ROUNDS.value):
    for name, kind in (('real', real), ('fixed', fixed)):
      start = time.perf_counter()
      state = kind(state)
      seconds[name].append((time.perf_counter() - start) / _STEPS.value)
  ratios = [
      fixed / real
      for fixed, real in zip(seconds['fixed'], seconds['real'], strict=True)
  ]
  per_step = {name: statistics.median(s) for name, s in seconds.items()}
  result = {
      'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'batch_size': config.batch_size,
      'steps_per_second': 1 / per_step['real'],
      'images_per_second': config.batch_size / per_step['real'],
      'steps_per_second_fixed_batch': 1 / per_step['fixed'],
      'real_over_fixed': statistics.median(ratios),
      'compile_seconds': compile_seconds,
      'step_temporary_mib': memory.temp_size_in_bytes / 2**20,
      'process_peak_mib': (
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
      ),
  }
  device = jax.devices()[0].memory_stats()
  if device:
    result['device_peak_mib'] = device['peak_bytes_in_use'] / 2**20
  print(json.dumps({k: _rounded(v) for k, v in result.items()}, indent=2))


def _rounded(value):
  return round(value, 3) if isinstance(value, float) else value


if __name__ == '__main__':
  app.run(main)
