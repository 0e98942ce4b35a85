"""The layout of a work directory, and how its small files are written.

    config.json      the configuration, complete
    metrics.jsonl    a JSON object per logged step and per evaluation
    summary.json     the final test metrics
    report.html      see reporting/pages.py
    examples.npz     test images, their reconstructions, counts of the codes
    checkpoints/     see training/checkpoint.py; unreadable ones are moved to
                     damaged_checkpoints/
    pictures/        originals above their reconstructions, per evaluation
    tensorboard/     the same metrics and pictures for TensorBoard
"""

import contextlib
import fcntl
import json
import os
import pathlib
import tempfile
from typing import Any

from ml_collections import ConfigDict

from gmvq_jax.runtime import errors

# Files of an exported model; see `tokenizer/export.py`.
CONFIG = 'config.json'
WEIGHTS = 'weights.safetensors'
# Of files that someone may want where there is a folder.
_SUFFIXES = set('.csv .gif .html .jpeg .jpg .json .npy .npz .png .txt'.split())
_SUFFIXES |= {'.array_record', '.safetensors', '.tif', '.tiff', '.webp', '.zip'}


def check_folder(path: str, file: str) -> None:
  """Checks that an output is the name of a folder.

  Args:
    path: given as --output.
    file: what may be given instead.

  Raises:
    errors.UserError: if it is that of a file.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix in _SUFFIXES:
    raise errors.UserError(
        f'--output={path}: cannot be a {suffix}; give a folder or {file}'
    )


def expand(path: str | os.PathLike) -> pathlib.Path:
  """Returns a path without `~`.

  Raises:
    errors.UserError: when there is no such home.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise errors.UserError(f'{path}: there is no such home') from error


def output_file(output: str) -> pathlib.Path:
  """Returns the path of a file to be written, whose folder it makes.

  Raises:
    errors.UserError: when it is there already, or cannot be written.
  """
  path = expand(output).resolve()
  if path.exists():
    raise errors.UserError(
        f'--output={output}: is there already; give another name'
    )
  create(str(path.parent), 'output')
  return path


def create(path: str, flag: str = 'workdir') -> pathlib.Path:
  """Makes the directory if need be.

  Args:
    path: of the directory.
    flag: that gave it, for the user.

  Raises:
    errors.UserError: when there is no path, or it cannot be written to.
  """
  if not path:
    raise errors.UserError(f'--{flag} is missing; give a directory for the run')
  try:
    workdir = pathlib.Path(path).expanduser().resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except (OSError, RuntimeError) as error:  # The latter of `~nobody`.
    reason = getattr(error, 'strerror', error)
    raise errors.UserError(
        f'--{flag}={path}: cannot be written to ({reason}); give a directory'
        ' that can'
    ) from error
  return workdir


@contextlib.contextmanager
def lock(workdir: pathlib.Path):
  """Holds the directory for this process; it is free when the process ends.

  Raises:
    errors.UserError: while another process holds it.
  """
  with open(workdir / '.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise errors.UserError(
          f'{workdir}: another run is using it; wait for it to end or'
          ' give another directory'
      ) from error
    yield


def write_bytes(
    path: pathlib.Path, content: bytes, *, replace: bool = True
) -> None:
  """Writes a file, whole or not at all.

  Args:
    path: of the file.
    content: of it.
    replace: whether a file that is there is replaced.

  Raises:
    errors.UserError: when there is one that is not to be replaced.
  """
  number, temporary = tempfile.mkstemp(
      dir=path.parent, prefix='.', suffix='.tmp'
  )
  try:
    with open(number, 'wb') as file:
      file.write(content)
    os.chmod(temporary, 0o666 & ~_umask())
    if replace:
      os.replace(temporary, path)
    else:
      os.link(temporary, path)
  except FileExistsError as error:
    raise errors.UserError(
        f'{path}: is there already; give another name'
    ) from error
  except OSError as error:
    reason = error.strerror or error
    raise OSError(f'{path}: cannot be written ({reason})') from error
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def _umask():
  """Returns the permissions that new files lack."""
  mask = os.umask(0)
  os.umask(mask)
  return mask


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  text = json.dumps(value, indent=2, sort_keys=True) + '\n'
  write_bytes(path, text.encode())


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
  """Reads a file that holds a JSON object; None if there is none.

  Raises:
    errors.UserError: when it is damaged.
  """
  try:
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
      raise ValueError('no JSON object')
    return value
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise errors.UserError(f'{path}: cannot be read ({error})') from error


def read_config(workdir: str) -> ConfigDict:
  """Returns the configuration of the run in `workdir`.

  Raises:
    errors.UserError: when there is none, or it is damaged.
  """
  path = pathlib.Path(os.path.expanduser(workdir)) / 'config.json'
  config = read_json(path)
  if config is None:
    raise errors.UserError(
        f'{workdir}: holds no config.json; give the work directory of a run'
    )
  try:
    return ConfigDict(config)
  except Exception as error:  # Its names have rules of their own.
    raise errors.UserError(f'{path}: cannot be read ({error})') from error


def is_exported(path: pathlib.Path) -> bool:
  """Whether a folder holds an exported model."""
  return (path / WEIGHTS).exists()


def require_run(workdir: str) -> None:
  """Checks that a work directory is not an exported model instead.

  Raises:
    errors.UserError: if it is.
  """
  if is_exported(expand(workdir)):
    raise errors.UserError(
        f'--workdir={workdir}: is an exported tokenizer; give the work'
        ' directory of a run'
    )
