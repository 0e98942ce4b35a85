"""Images as arrays, kept whole on the device, and the order they are seen in.

Images are uint8 `[N, H, W, channels]` until they are on the device. A data set
that fits in memory is decoded once, cached, and never touches Python again:
what changes from step to step is a permutation of indices.
"""

import functools
import hashlib
import logging
import os
import pathlib
import tempfile
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax import errors

_LOGGER = logging.getLogger(__name__)
_DECODE_BATCH = 1024
_MAX_BYTES = 16 * 2**30


class Splits(NamedTuple):
  """The three parts of a data set, uint8 `[N, H, W, channels]`.

  What is chosen is chosen on `validation`; `test` is for the end.
  """

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray


def load(
    name: str,
    *,
    data_dir: str = '',
    train: str = 'train[:90%]',
    validation: str = 'train[90%:]',
    test: str = 'test',
) -> Splits:
  """Loads a data set.

  Args:
    name: a TensorFlow Datasets name whose examples have an `image`, or
      `array:PATH` with a `.npy` of uint8 images, divided 80/10/10 by a fixed
      permutation, or a `.npz` of arrays `train`, `validation` and `test`.
    data_dir: of TensorFlow Datasets. Empty: `$TFDS_DATA_DIR`, else its default.
    train: the split to train on, in the syntax of TensorFlow Datasets. Like the
      other two, it is not used for `array:PATH`.
    validation: the split to choose on.
    test: the split to report.

  Raises:
    errors.UserError: for what cannot be found, read or used.
  """
  if name.startswith('array:'):
    splits = _load_array(pathlib.Path(name.removeprefix('array:')).expanduser())
  else:
    splits = _load_tfds(name, data_dir, Splits(train, validation, test))
  shapes = {images.shape[1:] for images in splits}
  if len(shapes) > 1:
    raise errors.UserError(
        f'data.name={name!r}: its splits hold images of different shapes:'
        f' {sorted(shapes)}; they must be alike'
    )
  for split, images in zip(Splits._fields, splits, strict=True):
    if not len(images):
      raise errors.UserError(
          f'data.name={name!r}: its {split} split is empty; it must hold at'
          ' least one image'
      )
  return splits


@functools.partial(jax.jit, static_argnames='num_images')
def two_epochs(
    key: chex.PRNGKey, epoch: chex.Numeric, num_images: int
) -> jax.Array:
  """Returns the order of images in an epoch and the next, `[2 num_images]`.

  Training reads the epochs as one endless sequence, so that each shows every
  image exactly once, whatever the batch size; a batch may begin in one epoch
  and end in the next. An order is a function of key and epoch alone, so where
  a run stands in its data is its step, and nothing else needs saving.

  Args:
    key: random key of the whole run.
    epoch: its number.
    num_images: n.
  """

  def order(epoch):
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_images)

  return jnp.concatenate([order(epoch), order(epoch + 1)])


def to_unit(images: jax.Array) -> jax.Array:
  """Converts uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255


def _load_array(path):
  """Reads `array:PATH`."""
  if not path.is_file():
    raise errors.UserError(
        f'data.name=array:{path}: there is no such file; give a .npy or .npz'
        ' file of uint8 images'
    )
  try:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
      return _divide(_check_images(loaded, path))
    arrays = dict(loaded)
  except errors.UserError:
    raise
  except Exception as error:
    raise errors.UserError(
        f'data.name=array:{path}: cannot be read as a .npy or .npz file'
        f' ({error})'
    ) from error
  if set(arrays) != set(Splits._fields):
    raise errors.UserError(
        f'data.name=array:{path}: holds the arrays {sorted(arrays)}; a .npz'
        f' must hold exactly {", ".join(Splits._fields)}'
    )
  return Splits(**{k: _check_images(v, path) for k, v in arrays.items()})


def _divide(images):
  """Divides images 80/10/10 by a permutation that is always the same."""
  order = np.random.default_rng(0).permutation(len(images))
  tenth = max(len(images) // 10, 1)
  train, validation, test = np.split(
      order, [max(len(images) - 2 * tenth, 0), max(len(images) - tenth, 0)]
  )
  return Splits(images[train], images[validation], images[test])


def _check_images(images, where):
  if images.ndim == 3:
    images = images[..., None]
  fits = images.ndim == 4 and images.shape[3] in (1, 3)
  if images.dtype != np.uint8 or not fits:
    raise errors.UserError(
        f'{where}: holds {images.dtype} of shape {images.shape}; images must be'
        ' uint8 of shape [N, H, W, 1 or 3] or [N, H, W]'
    )
  return images


def _load_tfds(name, data_dir, splits):
  """Reads splits of a data set prepared as array_record, by way of a cache."""
  # Slow to import, and not needed for arrays.
  import tensorflow_datasets as tfds

  data_dir = data_dir or os.environ.get('TFDS_DATA_DIR') or None
  if data_dir and not pathlib.Path(data_dir).expanduser().is_dir():
    raise errors.UserError(
        f'data.dir={data_dir!r}: there is no such directory; give the one that'
        f' holds {name}/, by --config.data.dir or TFDS_DATA_DIR'
    )
  try:
    builder = tfds.builder(name, data_dir=data_dir)
    available = builder.info.splits
  except Exception as error:
    reason = str(error).partition('\n')[0]
    raise errors.UserError(
        f'data.name={name!r}: TensorFlow Datasets knows no such data set'
        f' ({reason}); give one of its names, or array:PATH'
    ) from error
  if not available:
    raise errors.UserError(
        f'data.name={name!r}: not found in {builder.data_path.parent.parent};'
        ' set --config.data.dir or TFDS_DATA_DIR to the directory that holds'
        ' it, prepared with file_format=array_record'
    )
  return Splits(*(_load_split(builder, name, split) for split in splits))


def _load_split(builder, name, split):
  try:
    source = builder.as_data_source(split=split)
    count = len(source)
  except ValueError as error:
    raise errors.UserError(
        f'data: {name!r} has no split {split!r}; it has'
        f' {", ".join(sorted(builder.info.splits))}, and slices of these such'
        " as 'train[:90%]'"
    ) from error
  except NotImplementedError as error:
    raise errors.UserError(
        f'data.name={name!r}: prepared as {builder.info.file_format.value}; it'
        ' must be prepared with file_format=array_record'
    ) from error
  digest = _digest(builder.data_path, split)
  cache = _cache_dir() / f'{name.replace("/", "-")}-{digest}.npy'
  try:
    return np.load(cache, allow_pickle=False)
  except FileNotFoundError:
    pass
  except Exception:
    _LOGGER.warning('Cached images %s are damaged; decoding them anew.', cache)
  _LOGGER.info('Decoding %d images of %s %s.', count, name, split)
  try:
    images = _decode(source, name)
  except errors.UserError:
    raise
  except Exception as error:  # TFDS and Pillow raise what they like.
    reason = str(error).partition('\n')[0]
    raise errors.UserError(
        f'data: {name!r} {split!r} in {builder.data_path} cannot be read'
        f' ({reason}); it may be damaged: prepare it anew'
    ) from error
  _write_cache(cache, images)
  return images


def _digest(directory, split):
  """Identifies the records that a split was decoded from."""
  files = sorted(pathlib.Path(directory).iterdir())
  stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
  identity = f'{directory} {split} {stats}'
  return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _decode(source, name):
  images = None
  for start in range(0, len(source), _DECODE_BATCH):
    indices = range(start, min(start + _DECODE_BATCH, len(source)))
    for index, example in zip(
        indices, source.__getitems__(indices), strict=True
    ):
      if 'image' not in example:
        raise errors.UserError(
            f'data.name={name!r}: its examples have no image but'
            f' {", ".join(sorted(example))}; it must be a data set of images'
        )
      image = example['image']
      if images is None:
        images = _allocate(name, len(source), image)
      if image.shape != images.shape[1:]:
        raise errors.UserError(
            f'data.name={name!r}: its images have different shapes, such as'
            f' {images.shape[1:]} and {image.shape}; they must be alike'
        )
      images[index] = image
  if images is None:
    return np.zeros((0, 1, 1, 1), np.uint8)
  return images


def _allocate(name, count, image):
  """Returns room for so many images, if they fit in memory."""
  if count * image.nbytes > _MAX_BYTES:
    raise errors.UserError(
        f'data.name={name!r}: {count} images of {image.shape} take'
        f' {count * image.nbytes / 2**30:.1f} GiB; they are kept in memory and'
        f' must be at most {_MAX_BYTES / 2**30:.0f} GiB: give a slice such as'
        " --config.data.train='train[:10%]'"
    )
  _check_images(image[None], f'data.name={name!r}')
  return np.empty((count, *image.shape), image.dtype)


def _cache_dir():
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'gmvq_jax'


def _write_cache(path, images):
  """Writes whole or not at all; a full or read-only disk costs only time."""
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
      temporary = file.name
      np.save(file, images)
    os.replace(temporary, path)
  except OSError as error:
    _LOGGER.warning('Decoded images are not cached: %s', error)
    if temporary and os.path.exists(temporary):
      os.unlink(temporary)
