"""Whole sets of images with a name for each, for what is done with all."""

import os
import pathlib
from typing import NamedTuple

from gmvq_jax.data import images as images_lib
from gmvq_jax.data import loading
from gmvq_jax.data import preprocess
from gmvq_jax.data.sources import arrays
from gmvq_jax.data.sources import folder
from gmvq_jax.runtime import digests
from gmvq_jax.runtime import errors

FORMS = 'folder:PATH, array:PATH.npy, array:PATH.npz:ARRAY or DATASET:SPLIT'


class NamedImages(NamedTuple):
  """Images, and what they are called.

  Attributes:
    source: what was loaded, for the user.
    images: read as they are asked for.
    prefix: of the names that are numbers.
    files: the names, of images that have their own; empty for others.
  """

  source: str
  images: images_lib.Images
  prefix: str = ''
  files: tuple[str, ...] = ()

  @property
  def identity(self) -> str:
    """What changes when an image or its name does.

    By the files they are in, or for arrays in memory by some of them.
    """
    known = getattr(self.images, 'identity', '')
    files = [os.fsencode(file) + bytes(1) for file in self.files]
    return digests.sha256(known, images_lib.fingerprint(self.images), *files)

  def name(self, index: int) -> str:
    """Returns the name of an image, which no other of the set has."""
    return self.files[index] if self.files else f'{self.prefix}{index:06}'


def load(
    name: str,
    shape: preprocess.Shape,
    *,
    data_dir: str = '',
    skip_bad: bool = True,
) -> NamedImages:
  """Opens a set of images, without dividing it into splits.

  Args:
    name: what to load.
      - `folder:PATH`: every image in a folder, to any depth, by its path in it;
      - `array:PATH.npy`, or `array:PATH.npz:ARRAY`: uint8 images, by number;
      - `DATASET:SPLIT`: a data set of TensorFlow Datasets, such as
        `cifar10:test` or `cifar10:train[:90%]`, or `photographs`, by number.
    shape: what images are made to be; arrays keep their channels.
    data_dir: of TensorFlow Datasets; see `tfds.load`.
    skip_bad: see `folder.load_whole`.

  Raises:
    errors.UserError: for what cannot be found, read or used, and when there is
      no image.
  """
  kind, colon, rest = name.partition(':')
  if not colon or not kind or not rest:
    raise errors.UserError(f'{name!r}: is no set of images; give {FORMS}')
  path = pathlib.Path(os.path.expanduser(rest))
  images: images_lib.Images
  files: tuple[str, ...] = ()
  prefix = ''
  if kind == 'folder':
    images, files = folder.load_whole(path, shape, skip_bad=skip_bad)
  elif kind == 'array':
    images = images_lib.shaped(arrays.load_whole(rest), shape, name)
  else:
    (images,) = loading.of_dataset(kind, (rest,), shape, data_dir=data_dir)
    prefix = f'{rest}/'
  if not len(images):
    raise errors.UserError(f'{name}: holds no image; there must be one')
  return NamedImages(name, images, prefix, files)
