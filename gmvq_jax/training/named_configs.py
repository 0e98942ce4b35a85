"""Configurations by name: `cifar10` for configs/cifar10.py."""

import os
import pathlib
import runpy
from typing import Any

from gmvq_jax.runtime import errors

_HERE = pathlib.Path(__file__).parent


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


def _paths():
  """The paths by name, in the order of names."""
  # In a wheel they lie in the package, in the repository beside it.
  folders = _HERE / 'configs', _HERE.parent / 'configs'
  folder = next((f for f in folders if f.is_dir()), folders[0])
  return {path.stem: path for path in sorted(folder.glob('*.py'))}
