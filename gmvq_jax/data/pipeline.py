"""The endless sequence of training batches, and the place in it.

    order of indices  ->  images, by threads that run ahead  ->  devices

Wherever the images lie, the batches are the same.
"""

import functools

import grain
import jax
from jax.sharding import Mesh
import numpy as np

from gmvq_jax.data import images as images_lib
from gmvq_jax.runtime import distributed

_THREADS = 4
_AHEAD = 4  # Batches.


class Order:
  """Batch i of an endless sequence of epochs, as indices `[B]`.

  An epoch is a permutation, so it shows every image exactly once, whatever the
  batch size: a batch may begin in one epoch and end in the next. It is a
  function of the seed and its number alone.
  """

  def __init__(self, num_images: int, batch_size: int, seed: int):
    """Describes the sequence; `batch_size` is at most `num_images`."""
    self._num_images = num_images
    self._batch_size = batch_size
    self._seed = seed
    self._epoch = functools.lru_cache(maxsize=3)(self._permute)

  def __len__(self) -> int:
    return 2**31

  def __getitem__(self, index: int) -> np.ndarray:
    epoch, start = divmod(index * self._batch_size, self._num_images)
    first = self._epoch(epoch)[start : start + self._batch_size]
    missing = self._batch_size - len(first)
    if not missing:
      return first
    return np.concatenate([first, self._epoch(epoch + 1)[:missing]])

  def _permute(self, epoch):
    bits = np.random.Philox(key=[self._seed, epoch])
    return np.random.Generator(bits).permutation(self._num_images)


def batches(
    images: images_lib.Images,
    batch_size: int,
    mesh: Mesh,
    *,
    seed: int,
    on_device: bool,
) -> grain.DatasetIterator:
  """Returns an iterator over global batches, uint8 `[B, H, W, channels]`.

  Each is divided over the mesh; a process reads its own share of it. The
  iterator's `get_state` and `set_state` are its place; `close` it at the end.

  Args:
    images: the training split.
    batch_size: B.
    mesh: of the devices.
    seed: of the order.
    on_device: whether the images are put whole on every device and gathered
      there, instead of in memory or from their files.
  """
  sharding = distributed.batched(mesh)
  share = batch_size // jax.process_count()
  start = jax.process_index() * share

  def put(local):
    """Makes one global array of the processes' shares of it."""
    shape = (batch_size, *local.shape[1:])
    return jax.make_array_from_process_local_data(sharding, local, shape)

  def take(indices):
    return put(images[indices])

  if on_device:
    take = _take_on_device(images, mesh, put)
  order = Order(len(images), batch_size, seed)
  ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
  dataset = grain.MapDataset.source(order).map(
      lambda indices: take(indices[start : start + share])
  )
  return iter(dataset.to_iter_dataset(ahead))


def _take_on_device(images, mesh, put):
  """Puts images whole on every device; returns what gathers there."""
  sharding = distributed.batched(mesh)
  resident = distributed.replicate(images[:], mesh)
  gather = jax.jit(lambda images, i: images[i], out_shardings=sharding)
  return lambda indices: gather(resident, put(indices.astype(np.int32)))
