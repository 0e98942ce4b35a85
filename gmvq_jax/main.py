"""The command line.

    python -m gmvq_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
    python -m gmvq_jax.main --mode=evaluate --workdir=runs/cifar10
    python -m gmvq_jax.main --mode=report --workdir=runs/cifar10
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from gmvq_jax import command_line
from gmvq_jax import distributed
from gmvq_jax import errors
from gmvq_jax import results
from gmvq_jax import train

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    help_string='A file of configs/, with :METHOD if it has several. Its fields'
    ' are set with --config.FIELD=VALUE, after it.',
)
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'The directory of the run; made if there is none.'
)
_DISTRIBUTED = flags.DEFINE_boolean(
    'distributed',
    False,
    'This is one process of several that make one run; launchers set it.',
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'evaluate', 'report'],
    'train: start a run, or continue the one in --workdir. evaluate: print the'
    ' test metrics of the best checkpoint in --workdir. report: write its'
    ' report.html anew.',
)


def main(argv: list[str]) -> None:
  """Dispatches to the mode."""
  if len(argv) > 1:
    raise errors.UserError(f'{argv[1]!r}: unexpected; flags begin with --')
  if _MODE.value == 'train' and _CONFIG.value is None:
    raise errors.UserError(
        '--config is missing; give a file, such as --config=configs/cifar10.py'
    )
  if not _WORKDIR.value:
    raise errors.UserError('--workdir is missing; give a directory for the run')
  if _DISTRIBUTED.value:
    distributed.initialize()
  workdir, report = _WORKDIR.value, None
  if _MODE.value == 'evaluate':
    _print(results.evaluate_workdir(workdir))
  elif _MODE.value == 'report':
    report = results.report_workdir(workdir)
  else:
    summary = train.run(_CONFIG.value, workdir)
    if summary is not None:
      _print(summary)
      report = pathlib.Path(workdir).expanduser().resolve() / 'report.html'
  if report and report.exists() and distributed.is_first():
    print(f'Report: {report}')


def _print(summary):
  if distributed.is_first():
    print(json.dumps(summary, indent=2, sort_keys=True))


if __name__ == '__main__':
  command_line.run(main)
