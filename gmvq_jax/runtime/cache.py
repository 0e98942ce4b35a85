"""The cache of what is slow to compute or to read, in the user's home."""

from collections.abc import Callable
import json
import logging
import os
import pathlib
import tempfile
from typing import Any

from gmvq_jax.runtime import digests

_LOGGER = logging.getLogger(__name__)


def directory() -> pathlib.Path:
  """Returns `$XDG_CACHE_HOME/gmvq_jax`, by default `~/.cache/gmvq_jax`."""
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'gmvq_jax'


def path_of(name: str, identity: str, suffix: str) -> pathlib.Path:
  """Returns where what has this name and identity is cached."""
  digest = digests.sha256(identity)[:16]
  plain = ''.join(c if c.isalnum() else '-' for c in name)[-40:]
  return directory() / f'{plain}-{digest}{suffix}'


def store(path: pathlib.Path, write: Callable[[Any], None]) -> None:
  """Writes whole or not at all; a full or read-only disk costs only time.

  Args:
    path: of `path_of`.
    write: writes to an open binary file.
  """
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
      temporary = file.name
      write(file)
    os.replace(temporary, path)
  except OSError as error:
    _LOGGER.warning('%s is not cached: %s', path.name, error)
  finally:
    if temporary and os.path.exists(temporary):
      os.unlink(temporary)


def remember(name: str, identity: str, compute: Callable[[], Any]) -> Any:
  """Returns a JSON value from the cache, or computes and caches it."""
  path = path_of(name, identity, '.json')
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    value = compute()
    text = json.dumps(value, indent=2).encode()
    store(path, lambda file: file.write(text))
    return value
