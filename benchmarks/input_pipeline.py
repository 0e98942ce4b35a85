"""Speed of the input pipeline beside that of the train step it feeds.

    TFDS_DATA_DIR=... python benchmarks/input_pipeline.py \\
        --config=configs/cifar10.py [--output=FILE.json]

Prints, as one JSON object, from one run on one machine, in alternation:

- images per second that the pipeline gives when nothing trains, for training
  images decoded from their files as they are needed and kept in memory;
- what training takes, with real data (metrics read a step late, as in
  `gmvq_jax.training.loop` but for its files) and of the same step on one fixed
  batch;
- the ratios: how many times over each pipeline feeds the step, and how much of
  its speed the step keeps with real data;

then the time to compile, the memory of the compiled step, and the peak of the
process. The paper's setting at `--config.batch_size=128` takes about two
minutes on two cores. What is kept in memory must fit there; else give
`--keep=stream`.
"""

import resource
import time

from absl import app
from absl import flags
import jax
from ml_collections import config_flags
import timing

from gmvq_jax import data
from gmvq_jax.runtime import distributed
from gmvq_jax.training import experiment

_CONFIG = config_flags.DEFINE_config_file('config')
_STEPS = flags.DEFINE_integer('steps', 10, 'Steps in each measurement.')
_BATCHES = flags.DEFINE_integer('batches', 50, 'Batches in each measurement.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each kind.')
_KEEP = flags.DEFINE_multi_enum(
    'keep',
    ['stream', 'memory'],
    ['stream', 'memory', 'device'],
    'Where the images of a pipeline that is measured alone lie.',
)
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')


def _pipeline(config, keep):
  """Returns what takes batches from a pipeline that starts anew each time."""
  splits, on_device = data.load(**(config.data.to_dict() | {'keep': keep}))
  mesh = distributed.data_mesh()

  def run():
    batches = data.batches(
        splits.train,
        config.batch_size,
        mesh,
        seed=config.seed,
        on_device=on_device,
    )
    for _ in range(_BATCHES.value):
      jax.block_until_ready(next(batches))
    batches.close()

  return run


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

  def real():
    """Steps as the trainer takes them."""
    nonlocal state
    pending = None
    for _ in range(_STEPS.value):
      state, metrics = step(state, next(batches))
      if pending is not None:
        jax.device_get(pending)
      pending = metrics
    jax.block_until_ready(state)

  def fixed():
    """The same step on the same batch, and nothing else."""
    nonlocal state
    for _ in range(_STEPS.value):
      state, _ = step(state, images)
    jax.block_until_ready(state)

  pipelines = {keep: _pipeline(config, keep) for keep in _KEEP.value}
  taken = timing.seconds(
      {'real': real, 'fixed': fixed} | pipelines, _ROUNDS.value
  )
  count = {'real': _STEPS.value, 'fixed': _STEPS.value}
  per_image = {
      kind: [
          s / count.get(kind, _BATCHES.value) / config.batch_size
          for s in values
      ]
      for kind, values in taken.items()
  }
  rates = {
      kind: 1 / seconds for kind, seconds in timing.medians(per_image).items()
  }
  result = {
      'hardware': timing.hardware(),
      'data': config.data.name,
      'trained_from': config.data.keep,
      'batch_size': config.batch_size,
      'steps_per_second': rates['real'] / config.batch_size,
      'images_per_second': {
          'training': rates['real'],
          'step_on_a_fixed_batch': rates['fixed'],
          'pipeline': {keep: rates[keep] for keep in pipelines},
      },
      'pipeline_over_step': {
          keep: timing.ratio(per_image, 'fixed', keep) for keep in pipelines
      },
      'real_over_fixed': timing.ratio(per_image, 'fixed', 'real'),
      'compile_seconds': compile_seconds,
      'step_temporary_mib': memory.temp_size_in_bytes / 2**20,
      'process_peak_mib': (
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
      ),
  }
  device = jax.devices()[0].memory_stats()
  if device:
    result['device_peak_mib'] = device['peak_bytes_in_use'] / 2**20
  timing.report(result, _OUTPUT.value)


if __name__ == '__main__':
  app.run(main)
