"""Images that are read on demand, and how they are identified."""

from collections.abc import Callable
from collections.abc import Sequence
import concurrent.futures
import functools
import logging
import os
import pathlib
from typing import Any

import numpy as np

from gmvq_jax.data import preprocess
from gmvq_jax.runtime import cache
from gmvq_jax.runtime import digests
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import progress

_LOGGER = logging.getLogger(__name__)
_READ_AT_ONCE = 1024
_IDENTIFYING = 64


class Lazy:
  """What the rest of the package uses of an array of images, read on demand.

  `len`, `shape`, `nbytes`, and indexing by a slice or by an array of integers.
  """

  def __init__(
      self,
      read: Callable[[np.ndarray], np.ndarray],
      count: int,
      *,
      identity: str = '',
  ):
    """Wraps a reader.

    Args:
      read: takes indices `[n]` and returns images uint8 `[n, H, W, channels]`.
        Called by several threads.
      count: how many images there are.
      identity: changes whenever the images do; the key of the cache. Empty:
        they are read faster than a cache would be.
    """
    self._read = read
    self._count = count
    self.identity = identity

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
    images = self._read(np.arange(self._count)[indices])
    if images.shape[1:] != self.shape[1:]:
      raise errors.UserError(
          f'data: images are of different shapes, such as {self.shape[1:]} and'
          f' {images.shape[1:]}; give --config.data.size=SIDE to crop and'
          ' resize them to squares'
      )
    return images

  @functools.cached_property
  def shape(self) -> tuple[int, ...]:
    """`(N, H, W, channels)`; the last three are 0 where there is no image."""
    if not self._count:
      return (0, 0, 0, 0)
    return (self._count, *self._read(np.arange(1)).shape[1:])

  @property
  def nbytes(self) -> int:
    """What an array of the images takes."""
    return int(np.prod(self.shape, dtype=np.int64))


Images = np.ndarray | Lazy


def fingerprint(*parts: Images) -> str:
  """Returns how many images there are, and a digest of some of each part."""
  some = [
      images[np.linspace(0, len(images) - 1, _IDENTIFYING).astype(int)]
      for images in parts
  ]
  counts = '+'.join(str(len(images)) for images in parts)
  return f'{counts} images {digests.sha256(*some)[:12]}'


def read_all(images: Images, name: str) -> np.ndarray:
  """Returns images as an array, by way of the cache.

  Args:
    images: an array is returned as it is.
    name: for the user, and in the name of the file.
  """
  if isinstance(images, np.ndarray):
    return images
  if not images.identity:
    return images[:]
  path = cache.path_of(name, images.identity, '.npy')
  try:
    return np.load(path, allow_pickle=False)
  except FileNotFoundError:
    pass
  except Exception:
    _LOGGER.warning('Cached images %s are damaged; reading them anew.', path)
  array = np.empty(images.shape, np.uint8)
  starts = range(0, len(images), _READ_AT_ONCE)
  for start in progress.track(starts, f'Reading {len(images)} images'):
    part = slice(start, start + _READ_AT_ONCE)
    array[part] = images[part]
  cache.store(path, lambda file: np.save(file, array))
  return array


def shaped(images: Images, shape: preprocess.Shape, name: str) -> Images:
  """Returns an array cropped and resized, as its images are asked for.

  Args:
    images: uint8 `[N, H, W, channels]`.
    shape: what they are made to be.
    name: for the user.
  """
  side = shape.size
  if not shape.crop and (not side or images.shape[1:3] == (side, side)):
    return images

  def read(indices: np.ndarray) -> np.ndarray:
    try:
      return np.stack(
          [preprocess.from_array(image, shape) for image in images[indices]]
      )
    except preprocess.UnusableError as error:
      raise errors.UserError(
          f'{name}: its images are {error}; give a smaller crop'
      ) from error

  identity = getattr(images, 'identity', '')
  return Lazy(read, len(images), identity=identity)


def in_threads(function: Callable[[Any], Any], items: Sequence) -> list:
  """Returns `[function(item) for item in items]`, with a thread for each core.

  They are shared by all callers, and `function` must not call this.

  Args:
    function: releases Python's lock most of the time, as decoding images does.
    items: each thread takes a run of them, as a task for each would cost more
      than a small image.
  """
  size = -(-len(items) // _cores()) or 1
  parts = [items[i : i + size] for i in range(0, len(items), size)]
  done = _pool().map(lambda part: [function(item) for item in part], parts)
  return [result for part in done for result in part]


def _cores():
  # Those that this process may use, which in a container are fewer.
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@functools.cache
def _pool():
  return concurrent.futures.ThreadPoolExecutor(_cores(), 'images')


def identity_of_files(paths: list[pathlib.Path]) -> str:
  """Returns what changes when a file is added, removed or written."""
  stats = [(str(path), *_size_and_time(path)) for path in paths]
  return digests.sha256(repr(stats))


def _size_and_time(path):
  try:
    stat = path.stat()
  except OSError:  # Such as a link to nothing.
    return ()
  return stat.st_size, stat.st_mtime_ns
