"""How a program meets its user: flags, and one line for each mistake."""

from collections.abc import Callable
import difflib
import logging
import os
import re
import runpy
import sys
import time
import traceback

from absl import app
from absl import flags
from absl import logging as absl_logging
import jax
from ml_collections import ConfigDict

from gmvq_jax.training import config as config_lib
from gmvq_jax.runtime import errors
from gmvq_jax.training import named_configs

_MEMORY = (
    'there is not enough memory; smaller batches, networks or codebooks take'
    ' less'
)
_ALONE = (
    'another process of the run is no longer there; started again, all continue'
    ' from the last checkpoint'
)
# What XLA says when it is out of memory, and when it has lost a process.
_NO_MEMORY = ('RESOURCE_EXHAUSTED', 'Out of memory')
_FAREWELL_SECONDS = 5
_NO_PROCESS = ('Gloo', 'NCCL', 'oordination', 'UNAVAILABLE', 'DEADLINE')


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a program; a user's mistake is one line and exit code 2."""
  _quiet()
  try:
    app.run(main, flags_parser=parse)
  except (Exception, KeyboardInterrupt) as error:
    line, code = _last_words(error)
    if line is None and not _is_one_of_several():
      raise
    if line is None:
      traceback.print_exc()
    else:
      sys.stderr.write(f'error: {errors.UserError(line)}\n')
    _leave(code)


def gmvq() -> None:
  """The console command: `python -m gmvq_jax.main`, as it is."""
  # Only in the module that is run does absl's --help see flags.
  runpy.run_module('gmvq_jax.main', run_name='__main__', alter_sys=True)


def _last_words(error):
  """Returns a line for the user, None for a mistake of ours, and a code."""
  text = str(error)
  if isinstance(error, errors.UserError):
    return text, 2
  if isinstance(error, OSError):  # A full disk, for one.
    return text, 1
  if isinstance(error, KeyboardInterrupt):
    return 'interrupted; the same command continues', 130
  if isinstance(error, MemoryError):
    return f'{_MEMORY} ({text[:200]})', 1
  if isinstance(error, RuntimeError):
    if any(word in text for word in _NO_MEMORY):
      return f'{_MEMORY} ({text[:200]})', 1
    if 'Unable to initialize backend' in text:
      return f'JAX_PLATFORMS: {text}', 2
    if _is_one_of_several() and any(word in text for word in _NO_PROCESS):
      return f'{_ALONE} ({text[:200]})', 1
  return None, 1


def _leave(code):
  """Ends the program.

  One of several does not wait for the others, as JAX would: they will miss it.
  """
  if not _is_one_of_several():
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    # Whoever has the same to say should, before what connects them is gone.
    time.sleep(_FAREWELL_SECONDS)
  os._exit(code)


def _is_one_of_several():
  return jax.distributed.is_initialized() and jax.process_count() > 1


def parse(argv: list[str]) -> list[str]:
  """Parses flags; whatever is wrong with them is a `UserError`."""
  # What follows -- is not a flag.
  end = argv.index('--') if '--' in argv else len(argv)
  argv, rest = argv[:end], argv[end:]
  # One dash is as good as two.
  argv = [re.sub('^-(?=config|noconfig)', '--', arg) for arg in argv]
  for i, arg in enumerate(argv):
    if arg == '--config' and i + 1 < len(argv):
      argv[i + 1] = _find_config(argv[i + 1], argv)
    elif arg.startswith('--config='):
      found = _find_config(arg.removeprefix('--config='), argv)
      argv[i] = f'--config={found}'
  try:
    return flags.FLAGS(argv + rest)
  except Exception as error:
    message = ' '.join(str(error).split())
    raise errors.UserError(message) from error


def _find_config(argument, argv):
  """Returns PATH or PATH:METHOD of what may be a name.

  Says what is wrong with a file, its method or a field, before absl does.
  """
  name, colon, method = argument.partition(':')
  path = named_configs.find(name)
  try:
    get_config = runpy.run_path(path)['get_config']
    config = get_config(*([method] if colon else []))
    if not isinstance(config, ConfigDict):
      raise TypeError(f'it returned a {type(config).__name__}, no ConfigDict')
  except errors.UserError:
    raise
  except Exception as error:
    raise errors.UserError(
        f'--config={path}: get_config cannot be called ({error!r})'
    ) from error
  fields = config_lib.flatten(config)
  for arg in argv:
    field = re.match(r'--(?:no)?config\.([^=]*)', arg)
    if field and field[1] not in fields:
      close = difflib.get_close_matches(field[1], fields, n=3) or fields
      raise errors.UserError(
          f'--config.{field[1]}: there is no such field; there is'
          f' {", ".join(sorted(close))}'
      )
  return path + colon + method


def _quiet():
  """Leaves to standard error what is for the user, a line each."""
  # Libraries log what they also raise, with a trace.
  absl_logging.set_verbosity(absl_logging.FATAL)
  ours = logging.getLogger('gmvq_jax')
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(message)s'))
  ours.addHandler(handler)
  ours.setLevel(logging.INFO)
  ours.propagate = False

  # Where a read of Orbax's fails, its others find their loop closed.
  def report(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      sys.__unraisablehook__(unraisable)

  sys.unraisablehook = report
