"""The command line.

    python -m gmvq_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
    python -m gmvq_jax.main --mode=evaluate --workdir=runs/cifar10
"""

import difflib
import json
import os
import runpy
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from gmvq_jax import config as config_lib
from gmvq_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    help_string='A file of configs/, with :METHOD if it has several. Its fields'
    ' are set with --config.FIELD=VALUE, after it.',
)
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'The directory of the run; made if there is none.'
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'evaluate'],
    'train: start a run, or continue the one in --workdir. evaluate: print the'
    ' test metrics of the best checkpoint in --workdir.',
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
  # Imported late: they take seconds, and a mistake above should not.
  from gmvq_jax import train

  if _MODE.value == 'evaluate':
    summary = train.evaluate_workdir(_WORKDIR.value)
  else:
    summary = train.run(_CONFIG.value, _WORKDIR.value)
  if summary is not None:
    print(json.dumps(summary, indent=2, sort_keys=True))


def parse(argv: list[str]) -> list[str]:
  """Parses flags; whatever is wrong with them is a `UserError`."""
  for arg, value in zip(argv, argv[1:] + [''], strict=True):
    if arg == '--config':
      _check_config(value, argv)
    elif arg.startswith('--config='):
      _check_config(arg.removeprefix('--config='), argv)
  try:
    return flags.FLAGS(argv)
  except Exception as error:
    message = ' '.join(str(error).split())
    raise errors.UserError(message) from error


def _check_config(argument, argv):
  """Says what is wrong with a file, its method or a field, before absl does."""
  path, colon, method = argument.partition(':')
  if not os.path.isfile(path):
    raise errors.UserError(f'--config={path}: there is no such file')
  try:
    get_config = runpy.run_path(path)['get_config']
    fields = config_lib.flatten(get_config(*([method] if colon else [])))
  except errors.UserError:
    raise
  except Exception as error:
    raise errors.UserError(
        f'--config={path}: get_config cannot be called ({error!r})'
    ) from error
  for arg in argv:
    name = arg.partition('=')[0].removeprefix('--config.')
    if arg.startswith('--config.') and name not in fields:
      close = difflib.get_close_matches(name, fields, n=3) or fields
      raise errors.UserError(
          f'--config.{name}: there is no such field; there is'
          f' {", ".join(sorted(close))}'
      )


def run() -> None:
  """Runs the program; a user's mistake is one line and exit code 2."""
  logging.set_verbosity(logging.WARNING)
  try:
    app.run(main, flags_parser=parse)
  except errors.UserError as error:
    sys.stderr.write(f'error: {error}\n')
    sys.exit(2)


if __name__ == '__main__':
  run()
