"""The layout of a work directory, and how its small files are written.

    config.json      the configuration, complete
    metrics.jsonl    a JSON object per logged step and per evaluation
    summary.json     the final test metrics
    report.html      see report.py
    examples.npz     test images, their reconstructions, counts of the codes
    checkpoints/     see checkpoint.py; those that cannot be read are moved to
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

from gmvq_jax import errors


def create(path: str) -> pathlib.Path:
  """Makes the directory if need be.

  Raises:
    errors.UserError: when there is no path, or it cannot be written to.
  """
  if not path:
    raise errors.UserError('--workdir is missing; give a directory for the run')
  workdir = pathlib.Path(path).expanduser().resolve()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise errors.UserError(
        f'--workdir={path}: cannot be written to ({error.strerror}); give a'
        ' directory that can'
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
          f'--workdir={workdir}: another run is using it; wait for it to end or'
          ' give another directory'
      ) from error
    yield


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file, whole or not at all."""
  temporary = path.with_name(path.name + '.tmp')
  try:
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file; None if there is none.

  Raises:
    errors.UserError: when it is damaged.
  """
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{path}: cannot be read ({error})') from error


def read_config(workdir: str) -> dict[str, Any]:
  """Returns the configuration of the run in `workdir`.

  Raises:
    errors.UserError: when there is none.
  """
  config = read_json(pathlib.Path(workdir).expanduser() / 'config.json')
  if not isinstance(config, dict):
    raise errors.UserError(
        f'{workdir}: holds no config.json; give the work directory of a run'
    )
  return config
