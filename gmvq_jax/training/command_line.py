"""Flags of a configuration: its file or name, and its fields."""

from collections.abc import Callable
import difflib
import os
import pathlib
import re
import runpy
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from gmvq_jax.runtime import errors
from gmvq_jax.runtime import program
from gmvq_jax.training import config as config_lib


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a program whose flags may include a configuration."""
  program.run(main, parse)


def gmvq() -> None:
  """Runs the console command, which is `python -m gmvq_jax.main`."""
  # absl's --help shows the flags of the module that is run.
  runpy.run_module('gmvq_jax.main', run_name='__main__', alter_sys=True)


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


def find(name: str) -> str:
  """Returns the path of a configuration.

  Args:
    name: a path, or the name of a configuration that comes with the package.

  Raises:
    UserError: if it is neither.
  """
  if os.path.isfile(name):
    return name
  paths = _paths()
  if name not in paths:
    raise errors.UserError(
        f'--config={name}: there is no such file, nor is it one of'
        f' {", ".join(paths)}'
    )
  return str(paths[name])


def load(name: str) -> dict[str, Any]:
  """Returns what a configuration that comes with the package defines.

  Args:
    name: of the configuration, for one that is built on it.
  """
  return runpy.run_path(str(_paths()[name]))


def _find_config(argument, argv):
  """Returns PATH or PATH:METHOD of what may be a name.

  Says what is wrong with a file, its method or a field, before absl does.
  """
  name, colon, method = argument.partition(':')
  path = find(name)
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


def _paths():
  """The paths by name, in the order of names."""
  # A link to configs/ in the repository, the files themselves in a wheel.
  folder = pathlib.Path(__file__).parents[1] / 'configs'
  return {path.stem: path for path in sorted(folder.glob('*.py'))}
