"""CIFAR10 from its official archive, for who has no prepared copy.

Krizhevsky 2009, "Learning multiple layers of features from tiny images",
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import hashlib
import http.client
import io
import logging
import math
import os
import pathlib
import re
import tarfile
import urllib.request

import numpy as np

from gmvq_jax.runtime import cache
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import progress

_LOGGER = logging.getLogger(__name__)
_ARCHIVE = 'cifar-10-binary.tar.gz'
_URL = f'https://www.cs.toronto.edu/~kriz/{_ARCHIVE}'
_MD5 = 'c32a1d4ab5d03f1284b67883e8d87530'
_TIMEOUT = 60  # Seconds without a byte.
_CHUNK = 2**20
_SIDE = 32
_RECORD = 1 + 3 * _SIDE * _SIDE  # A label, then the planes.
_SLICE = re.compile(r'(train|test)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?')


def wanted(data_dir: str) -> bool:
  """Whether the archive is to be used: TensorFlow Datasets has no copy.

  Args:
    data_dir: the configured one; if there is one, it is to be used, and so is
      a `$TFDS_DATA_DIR` that does not exist, so that it is named as wrong.
  """
  given = os.environ.get('TFDS_DATA_DIR')
  tfds_dir = pathlib.Path(given or '~/tensorflow_datasets').expanduser()
  if data_dir or (given and not tfds_dir.is_dir()):
    return False
  return not (tfds_dir / 'cifar10').is_dir()


def load(
    splits: tuple[str, ...], *, url: str = _URL, md5: str = _MD5
) -> tuple[np.ndarray, ...]:
  """Returns splits of CIFAR10, in the order of the archive.

  The archive is downloaded once, checked, and its images are cached.

  Args:
    splits: `train` or `test` or slices of these, such as `train[:90%]`.
    url: of the archive.
    md5: its checksum, in hexadecimal.

  Raises:
    errors.UserError: for a split that does not exist, and when the archive
      cannot be downloaded or is not the one expected.
  """
  ranges = [_parse(split) for split in splits]
  cached = cache.path_of('cifar10', md5, '.npz')
  try:
    with np.load(cached, allow_pickle=False) as file:
      images = dict(file)
  except FileNotFoundError:
    images = None
  except Exception:
    _LOGGER.warning('Cached images %s are damaged; making them anew.', cached)
    images = None
  if images is None:
    images = _unpack(_archive(url, md5))
    cache.store(cached, lambda file: np.savez(file, **images))
  parts = []
  for name, start, stop in ranges:
    count = len(images[name])
    parts.append(images[name][_bound(start, count) : _bound(stop, count)])
  return tuple(parts)


def _parse(split):
  """Returns the name and the two bounds of `train[10%:20%]`."""
  match = _SLICE.fullmatch(split)
  if match is None:
    raise errors.UserError(
        f"data: 'cifar10' has no split {split!r}; it has test, train, and"
        " slices of these such as 'train[:90%]'"
    )
  return match.groups()


def _bound(text, count):
  """Returns one of the bounds as a number of images."""
  if text is None:
    return None
  bound = int(text.rstrip('%'))
  if text.endswith('%'):
    bound = round(count * bound / 100)
  if abs(bound) > count:
    raise errors.UserError(
        f"data: a split of 'cifar10' has the bound {text!r}, out of its {count}"
        ' images; give one within'
    )
  return bound


def _archive(url, md5):
  """Returns the bytes of the archive: the user's, else downloaded."""
  placed = cache.directory() / _ARCHIVE
  if placed.is_file():
    content = placed.read_bytes()
    if hashlib.md5(content).hexdigest() == md5:
      return content
    _LOGGER.warning('%s is not the archive expected, and not used.', placed)
  content = _download(url)
  found = hashlib.md5(content).hexdigest()
  if found != md5:
    raise _not_here(f'{url} has the md5 {found}, which must be {md5}')
  return content


def _download(url):
  """Returns what is at a URL, whole."""
  try:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
      size = int(response.headers.get('Content-Length', 0))
      text = f'Downloading CIFAR10 ({size / 1e6:.0f} MB)'
      _LOGGER.info('%s from %s.', text, url)
      chunks = [
          response.read(_CHUNK)
          for _ in progress.track(range(math.ceil(size / _CHUNK)), text)
      ]
      if not size:  # A server need not say.
        chunks.append(response.read())
  except (OSError, http.client.HTTPException, ValueError) as error:
    raise _not_here(f'{url}: {error}') from error
  content = b''.join(chunks)
  if len(content) < size:
    raise _not_here(
        f'{url}: the connection broke after {len(content)} of {size} bytes'
    )
  return content


def _unpack(archive):
  """Returns `train` and `test` images of an archive."""
  parts = {'train': [], 'test': []}
  with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
    for member in sorted(tar.getmembers(), key=lambda m: m.name):
      name = pathlib.PurePath(member.name).name
      if not name.endswith('.bin'):
        continue
      split = 'test' if name.startswith('test') else 'train'
      raw = np.frombuffer(tar.extractfile(member).read(), np.uint8)
      planes = raw.reshape(-1, _RECORD)[:, 1:].reshape(-1, 3, _SIDE, _SIDE)
      parts[split].append(planes.transpose(0, 2, 3, 1))
  return {split: np.concatenate(images) for split, images in parts.items()}


def _not_here(reason):
  return errors.UserError(
      f'CIFAR10 is not on this machine and cannot be downloaded ({reason});'
      f' connect to the network and try again, or put {_ARCHIVE}'
      f' into {cache.directory()}, or set TFDS_DATA_DIR to a directory that'
      ' holds cifar10 prepared with file_format=array_record'
  )
