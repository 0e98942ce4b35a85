"""A folder of image files."""

from collections import Counter
import concurrent.futures
import logging
import os
import pathlib

import numpy as np
from PIL import Image

from gmvq_jax.data import images as images_lib
from gmvq_jax.data import preprocess
from gmvq_jax.runtime import cache
from gmvq_jax.runtime import digests
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import progress

_LOGGER = logging.getLogger(__name__)
_SPLITS = ('train', 'validation', 'test')
_CHECKED_AT_ONCE = 256
_NAMED = 10


def load(
    path: pathlib.Path, shape: preprocess.Shape, *, skip_bad: bool
) -> tuple[images_lib.Lazy, ...]:
  """Returns the train, validation and test images of a folder.

  They are in sub-folders of these names, or else divided by a hash of their
  file names into about 80, 10 and 10 %, so that an image stays in its split
  whatever is added or moved. Folders are searched to any depth.

  Every file is read once, to know that it can be, and the outcome is cached.

  Args:
    path: of the folder.
    shape: what images are made to be.
    skip_bad: whether files that cannot be used are named and left out, instead
      of raising.

  Raises:
    errors.UserError: for a folder that is not there or has no usable image,
      sub-folders for only some splits, images that differ in size after
      cropping and resizing, and, unless `skip_bad`, one that cannot be used.
  """
  splits = _splits(path)
  parts = _divide(path, _usable_files(path, splits, shape, skip_bad), splits)
  return tuple(_lazy(part, shape) for part in parts.values())


def load_whole(
    path: pathlib.Path, shape: preprocess.Shape, *, skip_bad: bool
) -> tuple[images_lib.Lazy, tuple[str, ...]]:
  """Returns all images of a folder, and their paths within it, sorted.

  Args:
    path: of the folder.
    shape: what images are made to be.
    skip_bad: see `load`.

  Raises:
    errors.UserError: as `load`.
  """
  files = _usable_files(path, (), shape, skip_bad)
  names = tuple(file.relative_to(path).as_posix() for file in files)
  return _lazy(files, shape), names


def _usable_files(path, splits, shape, skip_bad):
  """Returns the files of a folder, or of some sub-folders, that can be used."""
  name = f'folder:{path}'
  if not path.is_dir():
    raise errors.UserError(
        f'data.name={name}: there is no such folder; give one that holds images'
    )
  files = _find(path, splits)
  if not files:
    raise errors.UserError(
        f'data.name={name}: holds no image files (such as .png, .jpg, .webp);'
        ' give a folder that does'
    )
  identity = f'{images_lib.identity_of_files(files)} {shape}'
  checked = cache.remember(name, identity, lambda: _check(files, shape))
  # What was wrong may have been the network, or a permission.
  bad = [i for i, (*_, reason) in enumerate(checked) if reason]
  for i, again in zip(bad, _check([files[i] for i in bad], shape), strict=True):
    checked[i] = again
  return _usable(name, files, checked, skip_bad)


def _lazy(files, shape):
  identity = f'{images_lib.identity_of_files(files)} {shape}'
  return images_lib.Lazy(_reader(files, shape), len(files), identity=identity)


def _find(path, splits):
  """Returns all files that look like images, in the order of their names.

  Args:
    path: of the folder.
    splits: sub-folders to search; all if there are none.
  """
  known = Image.registered_extensions()
  found, seen = [], set()
  for top in [path / split for split in splits] or [path]:
    for directory, folders, names in os.walk(top, followlinks=True):
      seen.add(os.path.realpath(directory))
      folders[:] = [
          name
          for name in folders
          if not name.startswith('.')
          # A link may lead in a circle.
          and os.path.realpath(os.path.join(directory, name)) not in seen
      ]
      found += [
          pathlib.Path(directory, name)
          for name in names
          if not name.startswith('.')
          and known.get(pathlib.Path(name).suffix.lower()) in Image.OPEN
      ]
  return sorted(found)


def _check(files, shape):
  """Returns `[mode, shape, reason it cannot be used]` of every file."""

  def check(file):
    try:
      with Image.open(file) as image:
        mode = image.mode
        return [mode, preprocess.from_image(image, shape).shape, None]
    except preprocess.UnusableError as error:
      return [None, None, str(error)]
    except Exception as error:  # Pillow raises what it likes.
      reason = str(error).replace(repr(str(file)), 'it')
      reason = ' '.join(reason.replace(str(file), 'it').split())
      return [None, None, f'cannot be read ({reason[:100]})']

  starts = range(0, len(files), _CHECKED_AT_ONCE)
  checked = []
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for start in progress.track(starts, f'Checking {len(files)} images'):
      checked += pool.map(check, files[start : start + _CHECKED_AT_ONCE])
  return checked


def _usable(name, files, checked, skip_bad):
  """Returns the files that can be used, and says what there is to say."""
  bad = [
      f'{file}: {reason}'
      for file, (*_, reason) in zip(files, checked, strict=True)
      if reason
  ]
  if len(bad) == len(files) or (bad and not skip_bad):
    raise errors.UserError(
        f'data.name={name}: {len(bad)} of {len(files)} images cannot be used;'
        f' the first is {bad[0]}; mend or remove them'
        + ('' if skip_bad else ', or give --config.data.bad_images=skip')
    )
  for line in bad[:_NAMED]:
    _LOGGER.warning('Skipped %s', line)
  if bad:
    _LOGGER.warning('Skipped %d of %d images.', len(bad), len(files))
  shapes = Counter(tuple(size) for _, size, reason in checked if not reason)
  if len(shapes) > 1:
    some = ', '.join(f'{h} x {w}' for h, w, _ in sorted(shapes)[:3])
    raise errors.UserError(
        f'data.name={name}: images are of {len(shapes)} sizes, such as {some};'
        ' give --config.data.size=SIDE to crop and resize them to squares'
    )
  channels = next(iter(shapes))[2]
  usual = {1: 'L', 3: 'RGB'}[channels]
  others = Counter(m for m, *_, reason in checked if not reason and m != usual)
  if others:
    listed = ', '.join(f'{n} of mode {mode}' for mode, n in others.items())
    _LOGGER.info('Converted to %s: %s.', usual, listed)
  return [f for f, (*_, r) in zip(files, checked, strict=True) if not r]


def _splits(path):
  """Returns the names of the sub-folders of splits, if there are any."""
  present = [split for split in _SPLITS if (path / split).is_dir()]
  if 0 < len(present) < len(_SPLITS):
    raise errors.UserError(
        f'data.name=folder:{path}: has sub-folders {", ".join(present)}; it'
        f' must have all of {", ".join(_SPLITS)}, or none of them'
    )
  return present


def _divide(path, files, splits):
  """Returns the files of each split."""
  parts = {split: [] for split in _SPLITS}
  for file in files:
    first = file.relative_to(path).parts[0]
    parts[first if splits else _split_of(file.name)].append(file)
  empty = [split for split, part in parts.items() if not part]
  if empty and not splits:
    raise errors.UserError(
        f'data.name=folder:{path}: its {len(files)} images are divided by a'
        f' hash of their names, which leaves none for {", ".join(empty)}; give'
        f' more images, or sub-folders {", ".join(_SPLITS)}'
    )
  return parts


def _split_of(file_name):
  share = int(digests.sha256(os.fsencode(file_name))[:16], 16) / 2**64
  if share < 0.8:
    return 'train'
  return 'validation' if share < 0.9 else 'test'


def _reader(files, shape):
  """Returns the function that reads files, by their indices."""
  pool = concurrent.futures.ThreadPoolExecutor()

  def read_one(index):
    try:
      with Image.open(files[index]) as image:
        return preprocess.from_image(image, shape)
    except Exception as error:
      raise errors.UserError(
          f'{files[index]}: could be read at the start and no longer can'
          f' ({error})'
      ) from error

  def read(indices):
    images = list(pool.map(read_one, indices))
    for index, image in zip(indices, images, strict=True):
      if image.shape != images[0].shape:
        raise errors.UserError(
            f'{files[index]}: is of another size than at the start'
        )
    return np.stack(images)

  return read
