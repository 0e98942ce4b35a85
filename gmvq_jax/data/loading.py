"""From the configuration's `data` to images."""

import os
import pathlib
from typing import NamedTuple

from gmvq_jax.data import images as images_lib
from gmvq_jax.data import preprocess
from gmvq_jax.data.sources import arrays
from gmvq_jax.data.sources import cifar10
from gmvq_jax.data.sources import folder
from gmvq_jax.data.sources import photographs
from gmvq_jax.data.sources import tfds
from gmvq_jax.runtime import errors

_DEVICE_BYTES = 2 * 2**30
_CONTAINER_LIMIT = pathlib.Path('/sys/fs/cgroup/memory.max')


class Splits(NamedTuple):
  """The three parts of a data set.

  What is chosen is chosen on `validation`; `test` is for the end.
  """

  train: images_lib.Images
  validation: images_lib.Images
  test: images_lib.Images


def load(
    name: str,
    *,
    dir: str = '',  # The name of the configuration's field.
    train: str = 'train[:90%]',
    validation: str = 'train[90%:]',
    test: str = 'test',
    crop: int = 0,
    size: int = 0,
    channels: int = 3,
    bad_images: str = 'skip',
    keep: str = 'auto',
) -> tuple[Splits, bool]:
  """Loads a data set.

  Args:
    name: what to load.
      - `folder:PATH`, a folder of image files; see `folder.load`.
      - `array:PATH`, a `.npy` or `.npz` file of images; see `arrays.load`.
      - `photographs`, crops of photographs in scikit-image and scikit-learn;
        see `photographs.load`.
      - any other is a name in TensorFlow Datasets; see `tfds.load`. `cifar10`
        is downloaded if it was not prepared there; see `cifar10.load`.
    dir: of TensorFlow Datasets. Empty: `$TFDS_DATA_DIR`, else its default.
    train: the split to train on, in the syntax of TensorFlow Datasets. It and
      the next two are for its data sets only.
    validation: the split to choose on.
    test: the split to report.
    crop: see `preprocess.Shape`. It and `size` are for folders and TensorFlow
      Datasets; `size` also for photographs.
    size: see `preprocess.Shape`.
    channels: 3, or 1 for grey; for folders and photographs.
    bad_images: `skip` or `fail`; of files in a folder that cannot be used.
    keep: where the training images are kept: whole on every `device`, in
      `memory`, or in their files, decoded as they are needed (`stream`). `auto`
      chooses by their size: up to 2 GiB, up to half of the machine's memory,
      and more.

  Returns:
    The splits, and whether the training images are for the devices to keep.

  Raises:
    errors.UserError: for what cannot be found, read or used.
  """
  shape = preprocess.Shape(crop, size, channels)
  kind, colon, rest = name.partition(':')
  if colon and not rest:
    raise errors.UserError(f'data.name={name}: the path is missing; give one')
  path = pathlib.Path(os.path.expanduser(rest))
  parts: tuple[images_lib.Images, ...]
  if colon and kind == 'folder':
    parts = folder.load(path, shape, skip_bad=bad_images == 'skip')
  elif colon and kind == 'array':
    _refuse(name, crop=crop, size=size)
    parts = arrays.load(path)
  elif name == 'photographs':
    _refuse(name, crop=crop)
    parts = of_dataset(name, photographs.SPLITS, shape)
  else:
    if name == 'cifar10' and cifar10.wanted(dir):
      _refuse(name, crop=crop, size=size)
    parts = of_dataset(name, (train, validation, test), shape, data_dir=dir)
  splits = Splits(*parts)
  _check(name, splits, channels)

  num_bytes = sum(images.nbytes for images in splits)
  if keep == 'auto':
    keep = _choose(num_bytes)
  if keep != 'stream':
    splits = Splits(*(images_lib.read_all(images, name) for images in splits))
  return splits, keep == 'device'


def of_dataset(
    name: str,
    splits: tuple[str, ...],
    shape: preprocess.Shape,
    *,
    data_dir: str = '',
) -> tuple[images_lib.Images, ...]:
  """Returns splits of a data set.

  Args:
    name: of one of ours, or in TensorFlow Datasets.
    splits: `train`, `validation` or `test` of `photographs`; in the syntax of
      TensorFlow Datasets for others.
    shape: what images are made to be.
    data_dir: of TensorFlow Datasets; see `tfds.load`.
  """
  if name == 'photographs':
    for split in splits:
      if split not in photographs.SPLITS:
        raise errors.UserError(
            f'{name}:{split}: there is no such split; there are'
            f' {", ".join(photographs.SPLITS)}'
        )
    crops = photographs.load(shape.size or 32, shape.channels)
    parts = tuple(crops[photographs.SPLITS.index(split)] for split in splits)
  elif name == 'cifar10' and cifar10.wanted(data_dir):
    parts = cifar10.load(splits)
  else:
    return tfds.load(name, data_dir, splits, shape)
  return tuple(images_lib.shaped(part, shape, name) for part in parts)


def _choose(num_bytes):
  if num_bytes <= _DEVICE_BYTES:
    return 'device'
  return 'memory' if num_bytes <= _memory() / 2 else 'stream'


def _memory():
  """Returns the bytes of memory of this machine, or of its container."""
  machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  try:
    return min(machine, int(_CONTAINER_LIMIT.read_text()))
  except (OSError, ValueError):  # No container, or one without a limit.
    return machine


def _refuse(name, **fields):
  for field, value in fields.items():
    if value:
      raise errors.UserError(
          f'config.data.{field}={value}: {name} is used as it is; give 0'
      )


def _check(name, splits, channels):
  for split, images in zip(Splits._fields, splits, strict=True):
    if not len(images):
      raise errors.UserError(
          f'data.name={name!r}: its {split} split is empty; it must hold at'
          ' least one image'
      )
  shapes = {images.shape[1:] for images in splits}
  if len(shapes) > 1:
    raise errors.UserError(
        f'data.name={name!r}: its splits hold images of different shapes:'
        f' {sorted(shapes)}; they must be alike, and those of TensorFlow'
        ' Datasets are made so by --config.data.size=SIDE'
    )
  (shape,) = shapes
  if channels == 1 and shape[-1] != 1:
    raise errors.UserError(
        f'config.data.channels=1: {name} holds images in colour, and is used as'
        ' it is; give 3'
    )
