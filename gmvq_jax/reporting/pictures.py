"""Pictures of what a model does, as uint8 `[H, W, 3]`."""

import io
import math
import pathlib

import numpy as np
from PIL import Image

_GAP = 2  # Pixels between images, white.


def comparison(
    originals: np.ndarray, reconstructions: np.ndarray, *, columns: int = 16
) -> np.ndarray:
  """Lays out originals in rows, each above the row of their reconstructions.

  Args:
    originals: uint8 `[N, H, W, channels]`, of 1 or 3 channels.
    reconstructions: like originals, but float in [0, 1].
    columns: images in a row.

  Returns:
    uint8 `[rows, width, 3]`, on white, two pixels between images.
  """
  pairs = np.stack([originals, to_uint8(reconstructions)], axis=1)
  missing = -len(pairs) % columns
  pairs = np.pad(
      pairs, [(0, missing)] + [(0, 0)] * 4, constant_values=255
  )
  pairs = np.pad(
      pairs,
      [(0, 0), (0, 0), (_GAP, 0), (_GAP, 0), (0, 0)],
      constant_values=255,
  )
  n, two, height, width, channels = pairs.shape
  grid = pairs.reshape(n // columns, columns, two, height, width, channels)
  grid = grid.transpose(0, 2, 3, 1, 4, 5)
  return _colour(grid.reshape(-1, columns * width, channels))


def sheet(images: np.ndarray) -> np.ndarray:
  """Lays uint8 `[N, H, W, channels]` out in about as many rows as columns.

  Returns:
    uint8 `[height, width, 3]`, on white, two pixels between images.
  """
  columns = math.ceil(math.sqrt(len(images)))
  missing = -len(images) % columns
  images = np.pad(
      images,
      [(0, missing), (0, _GAP), (0, _GAP), (0, 0)],
      constant_values=255,
  )
  n, height, width, channels = images.shape
  grid = images.reshape(n // columns, columns, height, width, channels)
  grid = grid.swapaxes(1, 2).reshape(-1, columns * width, channels)
  return _colour(grid[:-_GAP, :-_GAP])


def strip(images: np.ndarray) -> np.ndarray:
  """Lays uint8 `[N, H, W, channels]` side by side, as uint8 `[H, width, 3]`."""
  gaps = [(0, 0), (0, 0), (0, _GAP), (0, 0)]
  padded = np.pad(images, gaps, constant_values=255)
  return _colour(np.concatenate(list(padded), axis=1))


def dissection(
    original: np.ndarray,
    reconstruction: np.ndarray,
    codes: np.ndarray,
    colours: np.ndarray,
) -> np.ndarray:
  """Lays an image beside its reconstruction, their difference and its codes.

  Args:
    original: uint8 `[H, W, channels]`.
    reconstruction: float in [0, 1], like it.
    codes: `[h, w]`, of the image.
    colours: `[C, 3]` uint8, one for each code.

  Returns:
    uint8 `[H, 4 W + gaps, 3]`. The difference is twice as strong as it is, on
    grey where there is none.
  """
  difference = 0.5 + 2 * (reconstruction - original / 255)
  height, width = original.shape[:2]
  code_map = Image.fromarray(colours[codes])
  code_map = code_map.resize((width, height), Image.Resampling.NEAREST)
  parts = [
      original,
      to_uint8(reconstruction),
      to_uint8(np.clip(difference, 0, 1)),
      np.asarray(code_map),
  ]
  gap = np.full((height, _GAP, 3), 255, np.uint8)
  parts = [array for part in parts for array in (_colour(part), gap)]
  return np.concatenate(parts[:-1], axis=1)


def code_colours(codebook: np.ndarray) -> np.ndarray:
  """Returns a colour for each code, near for codewords that are near.

  Args:
    codebook: `[C, L]`. Red, green and blue are the ranks of codewords along its
      three principal components.

  Returns:
    uint8 `[C, 3]`.
  """
  along, _ = principal(codebook, 3)
  ranks = along.argsort(axis=0).argsort(axis=0) / max(len(along) - 1, 1)
  colours = np.full((len(along), 3), 128, np.uint8)
  colours[:, : ranks.shape[1]] = np.round(32 + 208 * ranks)
  return colours


def principal(
    codebook: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns codewords along principal components, and their shares of variance.

  Args:
    codebook: `[C, L]`.
    count: of components; fewer if L is less.

  Returns:
    `[C, count]` and `[count]`.
  """
  centred = codebook - codebook.mean(axis=0)
  _, scales, axes = np.linalg.svd(centred, full_matrices=False)
  energy = np.square(scales)
  return centred @ axes[:count].T, energy[:count] / max(energy.sum(), 1e-30)


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Converts values in [0, 1] to uint8."""
  return np.round(255 * np.asarray(image)).astype(np.uint8)


def to_png(picture: np.ndarray, *, zoom: int = 1) -> bytes:
  """Returns uint8 `[H, W, 3 or 1]` as a PNG, pixels `zoom` times as large."""
  if picture.shape[-1] == 1:
    picture = picture[..., 0]
  picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, 'png')
  return buffer.getvalue()


def save(path: pathlib.Path, picture: np.ndarray) -> None:
  """Writes uint8 `[H, W, 3]` as a PNG, its pixels twice as large."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(to_png(picture, zoom=2))


def _colour(image):
  """Makes three channels of one."""
  return np.ascontiguousarray(np.broadcast_to(image, image.shape[:2] + (3,)))
