"""Crops of photographs that come inside scikit-image and scikit-learn."""

import importlib.util
import pathlib

import numpy as np
from PIL import Image

from gmvq_jax.data import preprocess
from gmvq_jax.runtime import errors

# No photograph is in two splits.
_SPLITS = (
    (
        'skimage/data/astronaut.png',
        'skimage/data/hubble_deep_field.jpg',
        'skimage/data/motorcycle_left.png',
        'skimage/data/retina.jpg',
        'skimage/data/rocket.jpg',
        'sklearn/datasets/images/flower.jpg',
    ),
    ('skimage/data/coffee.png',),
    ('skimage/data/chelsea.png', 'sklearn/datasets/images/china.jpg'),
)
SPLITS = ('train', 'validation', 'test')
_COUNTS = (8192, 512, 1024)
_SCALES = (1, 2, 4)


def load(size: int, channels: int) -> tuple[np.ndarray, ...]:
  """Returns the crops of each of `SPLITS`, always the same.

  Each is a random square of a random photograph of its split, of `size`, or two
  or four times that where it fits, resized to `size`.

  Args:
    size: height and width of a crop.
    channels: 3, or 1 for grey.

  Raises:
    errors.UserError: when a package is missing, or no such crop fits.
  """
  rng = np.random.default_rng(0)
  shape = preprocess.Shape(size=size, channels=channels)
  return tuple(
      np.stack([
          _crop(rng, photographs[rng.integers(len(photographs))], shape)
          for _ in range(count)
      ])
      for photographs, count in zip(map(_open, _SPLITS), _COUNTS, strict=True)
  )


def _open(names):
  return [Image.open(_locate(name)).convert('RGB') for name in names]


def _locate(name):
  package, _, inside = name.partition('/')
  spec = importlib.util.find_spec(package)
  path = spec and pathlib.Path(spec.submodule_search_locations[0], inside)
  if not path or not path.is_file():
    raise errors.UserError(
        f'data.name=photographs: {name} is missing; install the photographs'
        " with pip install 'gmvq_jax[quickstart]'"
    )
  return path


def _crop(rng, photograph, shape):
  shortest = min(photograph.size)
  sides = [s * shape.size for s in _SCALES if s * shape.size <= shortest]
  if not sides:
    raise errors.UserError(
        f'config.data.size={shape.size}: a photograph is only {shortest} high;'
        ' give at most that'
    )
  side = sides[rng.integers(len(sides))]
  left, top = (rng.integers(length - side + 1) for length in photograph.size)
  window = photograph.crop((left, top, left + side, top + side))
  return preprocess.from_image(window, shape)
