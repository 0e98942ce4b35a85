"""Data sets of TensorFlow Datasets, as array_record, without TensorFlow.

Of an example the image alone is decoded: of one in CelebA, with its 51 labels,
that takes half the time, and what is left mostly leaves Python to other
threads.
"""

import os
import pathlib

import numpy as np

from gmvq_jax.data import images as images_lib
from gmvq_jax.data import preprocess
from gmvq_jax.runtime import errors


def load(
    name: str, data_dir: str, splits: tuple[str, ...], shape: preprocess.Shape
) -> tuple[images_lib.Lazy, ...]:
  """Returns splits of a data set whose examples have an `image`.

  Args:
    name: such as `cifar10`.
    data_dir: where it was prepared. Empty: `$TFDS_DATA_DIR`, else TFDS's own.
    splits: in the syntax of TFDS, such as `train[:90%]`.
    shape: what images are made to be, but for their channels.

  Raises:
    errors.UserError: for what cannot be found, read or used.
  """
  # Slow to import, and not needed for other data.
  import tensorflow_datasets as tfds

  where = data_dir or os.environ.get('TFDS_DATA_DIR') or None
  if where and not os.path.isdir(os.path.expanduser(where)):
    raise errors.UserError(
        f'data.dir={where!r}: there is no such directory; give the one that'
        f' holds {name}/, by --config.data.dir or TFDS_DATA_DIR'
    )
  try:
    builder = tfds.builder(name, data_dir=where)
    available = builder.info.splits
  except Exception as error:
    reason = str(error).partition('\n')[0]
    raise errors.UserError(
        f'data.name={name!r}: TensorFlow Datasets knows no such data set'
        f' ({reason}); give one of its names, folder:PATH or array:PATH, or by'
        ' --config.data.dir or TFDS_DATA_DIR the directory that holds this one'
    ) from error
  if not available:
    raise errors.UserError(
        f'data.name={name!r}: not found in {builder.data_path.parent.parent};'
        ' set --config.data.dir or TFDS_DATA_DIR to the directory that holds'
        ' it, prepared with file_format=array_record'
    )
  return tuple(_lazy(builder, name, split, shape) for split in splits)


def _lazy(builder, name, split, shape):
  """Returns the images of a split, each read when it is asked for."""
  from tensorflow_datasets import decode

  try:
    source = builder.as_data_source(
        split=split, deserialize_method=decode.DeserializeMethod.RAW_BYTES
    )
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
  decoded = _decoder(builder.info.features or {}, name)

  def read(indices):
    try:
      records = source.__getitems__([int(i) for i in indices])
      images = images_lib.in_threads(
          lambda record: _made(name, decoded(record), shape), records
      )
    except errors.UserError:
      raise
    except Exception as error:  # TFDS and Pillow raise what they like.
      reason = str(error).partition('\n')[0]
      raise errors.UserError(
          f'data: {name!r} {split!r} in {builder.data_path} cannot be read'
          f' ({reason}); it may be damaged: prepare it anew'
      ) from error
    return _stack(name, images)

  files = sorted(pathlib.Path(builder.data_path).iterdir())
  identity = f'{images_lib.identity_of_files(files)} {split} {shape}'
  return images_lib.Lazy(read, count, identity=identity)


def _decoder(features, name):
  """Returns the function from a record to the image in it, as TFDS has it."""
  from tensorflow_datasets import features as tfds_features

  def check(fits):
    if not fits:
      raise errors.UserError(
          f'data.name={name!r}: its examples hold'
          f' {", ".join(sorted(features))}; it must be a data set whose'
          ' examples have an image, uint8 of 1 or 3 channels'
      )

  check('image' in features)
  only = tfds_features.FeaturesDict({'image': features['image']})

  def decode(record):
    image = only.deserialize_example_np(record)['image']
    check(
        getattr(image, 'dtype', None) == np.uint8
        and image.ndim == 3
        and image.shape[2] in (1, 3)
    )
    return image

  return decode


def _made(name, image, shape):
  """Returns an image cropped and resized."""
  try:
    return preprocess.from_array(image, shape)
  except preprocess.UnusableError as error:
    raise errors.UserError(
        f'data.name={name!r}: one of its images is {error}; give a smaller'
        ' --config.data.crop'
    ) from error


def _stack(name, images):
  shapes = {image.shape for image in images}
  if len(shapes) > 1:
    raise errors.UserError(
        f'data.name={name!r}: its images have different shapes, such as'
        f' {sorted(shapes)[0]} and {sorted(shapes)[1]}; give'
        ' --config.data.size=SIDE to crop and resize them to squares'
    )
  return np.stack(images)
