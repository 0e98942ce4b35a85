"""Images in a NumPy file."""

import os
import pathlib

import numpy as np

from gmvq_jax.data import images as images_lib
from gmvq_jax.runtime import errors

_SPLITS = ('train', 'validation', 'test')


def load(path: pathlib.Path) -> tuple[images_lib.Images, ...]:
  """Returns the train, validation and test images of a `.npy` or `.npz` file.

  A `.npy` is divided 80/10/10 by a permutation that is always the same, and is
  not read before it is needed; a `.npz` has an array for each.

  Raises:
    errors.UserError: for a file that is not there, cannot be read, or holds
      something else.
  """
  loaded = _open(path)
  if isinstance(loaded, np.ndarray):
    return _divide(check(loaded, path))
  if set(loaded) != set(_SPLITS):
    raise errors.UserError(
        f'data.name=array:{path}: holds the arrays {sorted(loaded)}; a .npz'
        f' must hold exactly {", ".join(_SPLITS)}'
    )
  return tuple(check(loaded[split], path) for split in _SPLITS)


def load_whole(name: str) -> images_lib.Lazy:
  """Returns the images of `PATH.npy`, or of an array in it, `PATH.npz:ARRAY`.

  Those of a `.npy` are not read before they are needed.

  Raises:
    errors.UserError: as `load`.
  """
  start, _, array = name.partition('.npz:')
  path = pathlib.Path(os.path.expanduser(f'{start}.npz' if array else start))
  loaded = _open(path, array)
  if isinstance(loaded, np.ndarray):
    return _with_identity(check(loaded, path), path)
  if array not in loaded:
    raise errors.UserError(
        f'array:{name}: which array? there are {", ".join(sorted(loaded))};'
        f' such as array:{path}:{min(loaded, default="images")}'
    )
  return _with_identity(check(loaded[array], path), path)


def _with_identity(images, path):
  """Returns images that are known by their file."""
  return images_lib.Lazy(
      lambda indices: images[indices],
      len(images),
      identity=images_lib.identity_of_files([path.resolve()]),
  )


def _open(path, only=None):
  """Returns the array of a `.npy`, or a dict of those of a `.npz`.

  Args:
    path: of the file.
    only: the name of the one that is wanted, of which alone there is more than
      its name then.
  """
  if not path.is_file():
    raise errors.UserError(
        f'data.name=array:{path}: there is no such file; give a .npy or .npz'
        ' file of uint8 images'
    )
  try:
    mapped = 'r' if path.suffix == '.npy' else None
    loaded = np.load(path, mmap_mode=mapped, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
      return loaded
    with loaded:
      names = loaded.files
      return {
          name: loaded[name] if only in (None, name) else None for name in names
      }
  except Exception as error:
    raise errors.UserError(
        f'data.name=array:{path}: cannot be read as a .npy or .npz file'
        f' ({error})'
    ) from error


def check(images: np.ndarray, where: object) -> np.ndarray:
  """Returns images as `[N, H, W, channels]`.

  Raises:
    errors.UserError: if they are not uint8, or of no such shape.
  """
  if images.ndim == 3:
    images = images[..., None]
  fits = images.ndim == 4 and images.shape[3] in (1, 3)
  fits = fits and images.shape[1] and images.shape[2]
  if images.dtype != np.uint8 or not fits:
    raise errors.UserError(
        f'{where}: holds {images.dtype} of shape {images.shape}; images must be'
        ' uint8 of shape [N, H, W, 1 or 3] or [N, H, W]'
    )
  return images


def _divide(images):
  order = np.random.default_rng(0).permutation(len(images))
  tenth = max(len(images) // 10, 1)
  ends = [max(len(images) - 2 * tenth, 0), max(len(images) - tenth, 0)]
  return tuple(_lazy(images, part) for part in np.split(order, ends))


def _lazy(images, part):
  return images_lib.Lazy(lambda indices: images[part[indices]], len(part))
