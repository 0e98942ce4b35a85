"""From whatever an image file holds to pixels of the configured shape."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageOps

_MODES = {1: 'L', 3: 'RGB'}


class UnusableError(Exception):
  """Why an image cannot be used."""


class Shape(NamedTuple):
  """What images are made to be.

  Attributes:
    crop: side of the centred square to take, in pixels of the file. 0: the
      largest if `size` is given, else the whole image.
    size: the height and width to resize that to; 0: as they are.
    channels: 3, or 1 for grey.
  """

  crop: int = 0
  size: int = 0
  channels: int = 3


def from_image(image: Image.Image, shape: Shape) -> np.ndarray:
  """Returns what an image shows, uint8 `[H, W, channels]`.

  It is turned as its EXIF data say, transparent parts are laid on white, 16
  bits become the higher 8, and resizing is bilinear, antialiased.

  Raises:
    UnusableError: if it is smaller than the crop, or has 32 bits per channel,
      whose range nothing tells.
  """
  # Pillow opens some files of 16 bits as of 32.
  deep = image.mode == 'I' and image.format in ('PNG', 'PPM')
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith('I;16') or deep:
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ('I', 'F'):
    raise UnusableError(f'32 bits per channel (mode {image.mode})')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  image = image.convert(_MODES[shape.channels])
  # Not `resize(box=...)`, which sees what lies outside of the box.
  image = image.crop(_window(image.size, shape))
  return _resized(image, shape)


def from_array(image: np.ndarray, shape: Shape) -> np.ndarray:
  """Crops and resizes uint8 `[H, W, 1 or 3]`; it keeps its channels.

  Raises:
    UnusableError: if it is smaller than the crop.
  """
  if not (shape.crop or shape.size):
    return image
  height, width, channels = image.shape
  left, upper, right, lower = _window((width, height), shape)
  # Before Pillow copies it.
  image = image[upper:lower, left:right]
  pixels = Image.fromarray(image[..., 0] if channels == 1 else image)
  return _resized(pixels, shape._replace(channels=channels))


def _resized(image: Image.Image, shape: Shape) -> np.ndarray:
  """Returns the pixels of an image of the right mode, at the right size."""
  if shape.size:
    size = (shape.size, shape.size)
    image = image.resize(size, Image.Resampling.BILINEAR)
  return np.asarray(image).reshape(image.height, image.width, shape.channels)


def _window(size, shape):
  """Returns the left, upper, right and lower edge of what is taken."""
  width, height = size
  side = shape.crop or (min(size) if shape.size else 0)
  if not side:
    return (0, 0, width, height)
  if side > min(size):
    raise UnusableError(f'{height} x {width}, smaller than the crop of {side}')
  left, top = (width - side) // 2, (height - side) // 2
  return (left, top, left + side, top + side)
