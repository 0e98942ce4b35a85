"""What dividing a train step over devices costs, and what it sends.

    python benchmarks/partitioning.py --config=configs/cifar10.py
        [--image_size=32] [--output=FILE.json]

The same batch of noise on one device and on eight, all of this machine's CPU: a
ratio of times near 1 says that dividing adds little work. `sent` are the
collectives of the compiled step.
"""

import os

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')

from absl import app  # noqa: E402  (JAX reads the environment)
from absl import flags  # noqa: E402
import jax  # noqa: E402
from ml_collections import config_flags  # noqa: E402
import scaling  # noqa: E402
import timing  # noqa: E402

from gmvq_jax.planning import hlo  # noqa: E402


def _runner(compiled, arguments):
  state, images = arguments()

  def run():
    nonlocal state
    state, metrics = compiled(state, images)
    jax.block_until_ready(metrics)

  return run


_CONFIG = config_flags.DEFINE_config_file('config')
_SIZE = flags.DEFINE_integer('image_size', 32, 'H = W of the images.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each kind.')
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')


def main(_):
  """Measures and prints."""
  config, kinds, result = _CONFIG.value, {}, {}
  for count in (1, 8):
    compiled, arguments = scaling.compile_step(config, _SIZE.value, count)
    name = f'{count} devices'
    kinds[name] = _runner(compiled, arguments)
    memory = compiled.memory_analysis()
    result[name] = {
        'sent': [
            x._asdict() for x in hlo.collectives(compiled.as_text())
        ],
        'mib_of_state': memory.argument_size_in_bytes / 2**20,
        'mib_of_temporaries': memory.temp_size_in_bytes / 2**20,
    }
  taken = timing.seconds(kinds, _ROUNDS.value)
  for name, seconds in timing.medians(taken).items():
    result[name]['seconds'] = seconds
  timing.report(
      {
          'hardware': timing.hardware(),
          'batch_size': config.batch_size,
          **result,
          'ratio': timing.ratio(taken, '8 devices', '1 devices'),
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
