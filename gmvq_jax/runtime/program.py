"""Running a program: one line and an exit code for each mistake."""

from collections.abc import Callable
import logging
import os
import sys
import time
import traceback

from absl import app
from absl import logging as absl_logging
import jax

from gmvq_jax.runtime import errors
from gmvq_jax.runtime import memory

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


def run(
    main: Callable[[list[str]], None],
    parse: Callable[[list[str]], list[str]],
) -> None:
  """Runs a program; a user's mistake is one line and exit code 2.

  Args:
    main: takes what `parse` leaves of the command line.
    parse: parses the flags; see `absl.app.run`.
  """
  _quiet()
  memory.keep_freed()
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
