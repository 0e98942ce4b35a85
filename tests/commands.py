"""Programs of the package: run in this process, or in processes of their own.

A process takes three seconds to start, so most tests use `run_here`.
"""

import contextlib
import importlib.util
import io
import logging
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
from unittest import mock
import warnings

from absl import app
from absl import flags
from absl import logging as absl_logging
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parent.parent
MAIN = ('-m', 'gmvq_jax.main')
app.define_help_flags()  # Before the first program, so that they stay.


def command(*arguments, module='gmvq_jax.main'):
  return [sys.executable, '-m', module, *map(str, arguments)]


def call(*arguments, module='gmvq_jax.main', **env):
  """Runs `python -m MODULE` on one device, in a process of its own."""
  return subprocess.run(
      command(*arguments, module=module),
      cwd=ROOT,
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'} | env,
      capture_output=True,
      text=True,
      timeout=300,
  )


def start(*arguments):
  """Starts what `call` runs."""
  return subprocess.Popen(
      command(*arguments),
      cwd=ROOT,
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  )


def run_here(*arguments, module='gmvq_jax.main'):
  """Runs what `python -m MODULE` runs in this process, on its eight devices.

  Returns the same as `call`; an exception that would be a traceback is raised.
  `module` may be a path, as in `python PATH`.
  """
  path = module
  if not module.endswith('.py'):
    path = importlib.util.find_spec(module).origin
  argv, out, err = [path, *map(str, arguments)], io.StringIO(), io.StringIO()
  with (
      _flags_of_a_new_process(),
      _logging_kept(),
      mock.patch.object(sys, 'argv', argv),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
      warnings.catch_warnings(),
  ):
    warnings.filterwarnings('ignore', 'the load_module')  # ml_collections'.
    code = 0
    try:
      runpy.run_path(path, run_name='__main__')
    except SystemExit as error:
      code = error.code or 0
  return subprocess.CompletedProcess(
      argv, code, out.getvalue(), err.getvalue()
  )


@contextlib.contextmanager
def signal_after(calls, owner, name, number=signal.SIGKILL):
  """Sends a signal to this process after so many calls of a function."""
  function, made = getattr(owner, name), []

  def count(*args, **kwargs):
    result = function(*args, **kwargs)
    made.append(None)
    if len(made) == calls:
      os.kill(os.getpid(), number)
    return result

  # A shell that starts the tests in the background has Ctrl-C ignored.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with mock.patch.object(owner, name, count):
      yield
  finally:
    signal.signal(signal.SIGINT, before)


def kill_after(calls, owner, name, *arguments):
  """Runs `gmvq_jax.main` in a process that kills itself; see `signal_after`.

  `owner` is a module, or MODULE:CLASS.
  """
  program = f"""
import commands, pkgutil, runpy
with commands.signal_after({calls}, pkgutil.resolve_name('{owner}'), '{name}'):
  runpy.run_module('gmvq_jax.main', run_name='__main__', alter_sys=True)
"""
  result = subprocess.run(
      [sys.executable, '-c', program, *arguments],
      cwd=ROOT,
      env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parent)},
      capture_output=True,
      text=True,
      timeout=300,
  )
  assert result.returncode == -signal.SIGKILL, result.stderr
  assert result.stderr == ''


@contextlib.contextmanager
def _flags_of_a_new_process():
  """Removes the flags of the package while a program defines its own."""
  values = vars(flags.FLAGS)
  saved = {name: _copy(value) for name, value in values.items()}
  with flagsaver.flagsaver():
    for module, defined in saved['__flags_by_module'].items():
      if module.startswith('gmvq_jax'):
        flags.FLAGS.remove_flag_values([flag.name for flag in defined])
    try:
      yield
    finally:
      values.clear()
      values.update(saved)


def _copy(value):
  """Copies the tables of absl's flags: of flags, or of lists of flags."""
  if isinstance(value, dict):
    return {key: _copy(inner) for key, inner in value.items()}
  return value[:] if isinstance(value, list) else value


@contextlib.contextmanager
def _logging_kept():
  """Undoes what `command_line.run` does to logging."""
  loggers = [logging.getLogger(), logging.getLogger('gmvq_jax')]
  saved = [
      (logger.handlers[:], logger.level, logger.propagate) for logger in loggers
  ]
  verbosity = absl_logging.get_verbosity()
  hook = sys.unraisablehook
  try:
    yield
  finally:
    sys.unraisablehook = hook
    absl_logging.set_verbosity(verbosity)
    for logger, (handlers, level, propagate) in zip(
        loggers, saved, strict=True
    ):
      logger.handlers[:], logger.propagate = handlers, propagate
      logger.setLevel(level)


def assert_one_line(result, message, code=2):
  """A mistake is one line that says what was wrong, and exit code 2."""
  assert result.returncode == code, result
  lines = [line for line in result.stderr.splitlines() if line.strip()]
  assert len(lines) == 1, result.stderr
  assert lines[0].startswith('error: ')
  assert message in lines[0]


def start_processes(arguments, processes, devices, program=MAIN):
  """Starts the processes of one run, as launch/local.sh does."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  started = []
  for index in range(processes):
    environment = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)}
    command = [sys.executable, *map(str, program), *arguments]
    if processes > 1:
      if program is MAIN:
        command.append('--distributed')
      environment |= {
          'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
          'JAX_NUM_PROCESSES': str(processes),
          'JAX_PROCESS_ID': str(index),
      }
    started.append(
        subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
  return started


def communicate(started):
  """Waits for processes; returns the output and errors of each."""
  try:
    return [process.communicate(timeout=500) for process in started]
  finally:
    for process in started:
      process.kill()


def finish_processes(started):
  """Waits for processes; returns what each wrote, after checking its code."""
  outputs = communicate(started)
  for process, (_, errors) in zip(started, outputs, strict=True):
    assert process.returncode == 0, errors
  return [output for output, _ in outputs]
