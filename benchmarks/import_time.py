"""Seconds to import gmvq_jax, beside Flax and Optax alone.

    python benchmarks/import_time.py [--output=FILE.json]

Fresh interpreters take turns; ratios are medians over rounds, and what
the interpreter itself takes to start is not counted.
"""

import subprocess
import sys

from absl import app
from absl import flags
import timing

_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Imports of each kind.')

_KINDS = {
    'gmvq_jax': 'gmvq_jax',
    'flax and optax': 'flax, optax',
    'flax': 'flax',
    'jax': 'jax',
}
_PROGRAM = """
import time
start = time.perf_counter()
import {}
print(time.perf_counter() - start)
"""


def _import(modules):
  command = [sys.executable, '-c', _PROGRAM.format(modules)]
  output = subprocess.run(command, capture_output=True, text=True, check=True)
  return float(output.stdout)


def main(_):
  """Measures and prints."""
  for modules in _KINDS.values():
    _import(modules)  # From here on its files are in memory.
  taken = {name: [] for name in _KINDS}
  for _ in range(_ROUNDS.value):
    for name, modules in _KINDS.items():
      taken[name].append(_import(modules))
  timing.report(
      {
          'hardware': timing.hardware(),
          'python': sys.version.split()[0],
          'rounds': _ROUNDS.value,
          'seconds': timing.medians(taken),
          'over_flax_and_optax': {
              name: timing.ratio(taken, name, 'flax and optax')
              for name in _KINDS
          },
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
