"""Whatever a user has of images, as one array."""

from collections.abc import Sequence
import os

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from gmvq_jax.data import preprocess
from gmvq_jax.runtime import errors

Image = np.ndarray | jax.Array | PIL.Image.Image | str | os.PathLike


def of(images: Image | Sequence[Image], channels: int) -> np.ndarray:
  """Returns images as `[B, H, W, channels]`, uint8 or float32 in [0, 1].

  Args:
    images: such an array (or `[B, H, W]`, of one channel); or an image of PIL
      or the path of one, which make a batch of one; or a list of such, or of
      arrays `[H, W, channels]`, all of one size.
    channels: what images of PIL become: 3, or 1 for grey.

  Raises:
    errors.UserError: for anything else, and when there is no image.
  """
  if isinstance(images, (PIL.Image.Image, str, os.PathLike)):
    images = [images]
  if isinstance(images, (list, tuple)):
    images = _stack([_array_of(image, channels) for image in images])
  images = np.asarray(images)
  if images.ndim == 3 and channels == 1:
    images = images[..., None]
  shape = images.shape
  if len(shape) != 4 or shape[3] != channels:
    raise errors.UserError(
        f'images of shape {shape}: must be [B, H, W, {channels}]; one image is'
        ' a batch as images[None]'
    )
  if not images.size:
    raise errors.UserError(f'images of shape {shape}: there must be one')
  if images.dtype == np.uint8:
    return images
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise errors.UserError(
        f'images of type {images.dtype}: must be uint8, or floats in [0, 1]'
    )
  images = images.astype(np.float32)
  # NaNs compare as false.
  if not (images.min() >= 0 and images.max() <= 1):
    raise errors.UserError(
        f'images from {images.min():g} to {images.max():g}: floats must be in'
        ' [0, 1]; uint8 may be up to 255'
    )
  return images


def _array_of(image, channels):
  name, shape = 'an image', preprocess.Shape(channels=channels)
  try:
    if isinstance(image, PIL.Image.Image):
      return preprocess.from_image(image, shape)
    if isinstance(image, (str, os.PathLike)):
      name = image
      with PIL.Image.open(image) as opened:
        return preprocess.from_image(opened, shape)
  except preprocess.UnusableError as error:
    raise errors.UserError(f'{name}: {error}') from error
  except Exception as error:  # Pillow raises what it likes.
    raise errors.UserError(
        f'{name}: cannot be read as an image ({error})'
    ) from error
  return np.asarray(image)


def _stack(arrays):
  shapes = {array.shape for array in arrays}
  if len(shapes) > 1:
    one, other, *_ = sorted(shapes)
    raise errors.UserError(
        f'images of shapes {one} and {other}: those of a batch must be of one'
    )
  return np.stack(arrays) if arrays else np.zeros((0, 0, 0, 0), np.uint8)
