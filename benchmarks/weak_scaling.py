"""What a device holds and sends as devices are added, by their compilers.

    python benchmarks/weak_scaling.py --output=results/weak_scaling.json

The train step of GM-VQ on CIFAR10 (256 images a device) and on CelebA at 128 x
128 (64 a device), with 1,024 and with 65,536 codes, compiled for TPUs and GPUs
that need not be here (`pip install 'gmvq_jax[plan]'`). Nothing runs. The same
command goes on with what is missing from the output.
"""

import json
import os
import pathlib

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

from absl import app  # noqa: E402  (JAX reads the environment)
from absl import flags  # noqa: E402
import jax  # noqa: E402

from gmvq_jax.planning import compilation  # noqa: E402
from gmvq_jax.planning import programs  # noqa: E402
from gmvq_jax.planning import topologies  # noqa: E402
from gmvq_jax.runtime import distributed  # noqa: E402
from gmvq_jax.runtime import files  # noqa: E402
from gmvq_jax.training import command_line  # noqa: E402

_TOPOLOGIES = flags.DEFINE_list(
    'topologies',
    [
        'v5e:1x1', 'v5e:2x2', 'v5e:4x4', 'v5e:8x8', 'v5e:16x16', 'h100:1x1',
        'h100:1x8', 'h100:8x8',
    ],
    'See --mode=plan.',
)  # fmt: skip
_CODES = flags.DEFINE_list('codes', ['1024', '65536'], 'Numbers of codes.')
_OUTPUT = flags.DEFINE_string('output', '', 'Where the result is written.')
# Configurations, and how many images a device takes.
_PER_DEVICE = {'cifar10': 256, 'celeba': 64}
_CONFIGURATIONS = flags.DEFINE_list(
    'configurations', list(_PER_DEVICE), 'Which of them.'
)


def measure(name, per_device, num_codes, topology):
  """Returns what the compiler says of a train step of GM-VQ + entropy."""
  config = command_line.load(name)['get_config']('gmvq+entropy')
  target = topologies.find(topology)
  config.quantizer.num_codes = num_codes
  shape = programs.image_shape(config)
  mesh = distributed.mesh_of(target.devices)
  step = programs.train_step(config, shape, mesh, per_device * mesh.size)
  known = compilation.compile_for(target, step)
  return {
      'configuration': name,
      'codes': num_codes,
      'topology': topology,
      'devices': mesh.size,
      'needed': known.needed,
      'sizes': known.sizes,
      'sent': sum(x.bytes for x in known.sent),
      'collectives': sum(x.times for x in known.sent),
      'estimated_seconds': known.estimated_seconds,
      'compile_seconds': round(known.compile_seconds, 1),
  }


def main(_):
  """Compiles what is missing, and prints a line for each."""
  jax.config.update('jax_platforms', 'cpu')
  path = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None
  known = json.loads(path.read_text()) if path and path.exists() else {}
  rows = known.get('rows', [])
  done = {(r['configuration'], r['codes'], r['topology']) for r in rows}
  for topology in _TOPOLOGIES.value:
    for name in _CONFIGURATIONS.value:
      for codes in map(int, _CODES.value):
        if (name, codes, topology) in done:
          continue
        rows.append(measure(name, _PER_DEVICE[name], codes, topology))
        print(json.dumps(rows[-1]), flush=True)
        if path:
          files.write_json(
              path, known | {'jax': jax.__version__, 'rows': rows}
          )


if __name__ == '__main__':
  app.run(main)
