"""Pictures of what a model does."""

import pathlib

import numpy as np
from PIL import Image


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
  restored = np.round(255 * np.asarray(reconstructions)).astype(np.uint8)
  pairs = np.stack([originals, restored], axis=1)
  missing = -len(pairs) % columns
  pairs = np.pad(
      pairs, [(0, missing)] + [(0, 0)] * 4, constant_values=255
  )
  pairs = np.pad(
      pairs, [(0, 0), (0, 0), (2, 0), (2, 0), (0, 0)], constant_values=255
  )
  n, two, height, width, channels = pairs.shape
  grid = pairs.reshape(n // columns, columns, two, height, width, channels)
  grid = grid.transpose(0, 2, 3, 1, 4, 5)
  grid = grid.reshape(-1, columns * width, channels)
  return np.broadcast_to(grid, grid.shape[:2] + (3,))


def save_picture(path: pathlib.Path, picture: np.ndarray, *, zoom: int = 2):
  """Writes uint8 `[H, W, 3]` as a PNG, its pixels `zoom` times as large."""
  path.parent.mkdir(parents=True, exist_ok=True)
  picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
  Image.fromarray(np.ascontiguousarray(picture)).save(path)
