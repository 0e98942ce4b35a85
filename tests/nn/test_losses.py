"""Reconstruction losses, and a user's own."""

import sys

import numpy as np
import pytest

from gmvq_jax.nn import losses
from gmvq_jax.runtime import errors

MODULE = """
import jax.numpy as jnp

constant = 3

def worst(decoded, images):
  return jnp.max(jnp.abs(decoded - images), axis=(1, 2, 3))

def mean_of_all(decoded, images):
  return jnp.mean(jnp.abs(decoded - images))

def of_pixels(decoded, images):
  return jnp.abs(decoded - images)

def several(decoded, images):
  return worst(decoded, images), worst(decoded, images)

def nothing(decoded, images):
  pass

def of_one(images):
  return images.mean((1, 2, 3))

def multiline(decoded, images):
  raise RuntimeError('a\\nb')

class WithWeights:
  def __call__(self, decoded, images):
    return 2 * worst(decoded, images)

with_weights = WithWeights()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  """The name of a module of a user's."""
  (tmp_path / 'users_losses.py').write_text(MODULE)
  (tmp_path / 'users_broken.py').write_text('def worst(:\n')
  monkeypatch.syspath_prepend(tmp_path)
  yield 'users_losses'
  sys.modules.pop('users_losses', None)


@pytest.fixture
def pair():
  """Two images of 1 x 2 pixels and one channel, and what was decoded."""
  images = np.float32([[0.0, 0.5], [1.0, 1.0]]).reshape(2, 1, 2, 1)
  decoded = np.float32([[0.5, 0.5], [0.0, 0.8]]).reshape(2, 1, 2, 1)
  return decoded, images


@pytest.mark.parametrize(
    'name, expected', [('mse', [0.125, 0.52]), ('l1', [0.25, 0.6])]
)
def test_values(pair, name, expected):
  loss = losses.get(name, (32, 32, 3))
  np.testing.assert_allclose(loss(*pair), expected, rtol=1e-6)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_a_loss_does_not_depend_on_the_size_of_images(pair, name):
  loss = losses.get(name, (32, 32, 3))
  larger = [np.tile(images, (1, 3, 5, 3)) for images in pair]
  np.testing.assert_allclose(loss(*larger), loss(*pair), rtol=1e-5)


@pytest.mark.parametrize(
    'function, expected', [('worst', [0.5, 1]), ('with_weights', [1, 2])]
)
def test_a_function_of_the_user_can_be_named(module, pair, function, expected):
  loss = losses.get(f'{module}:{function}', (32, 32, 3))
  np.testing.assert_allclose(loss(*pair), expected, rtol=1e-6)


@pytest.mark.parametrize(
    'name, message',
    [
        ('huber', 'is unknown; it must be one of mse, l1, or MODULE:FUNCTION'),
        ('', 'is unknown'),
        ('users_losses', 'is unknown'),
        ('no_such_module:f', "ModuleNotFoundError: No module named 'no_such_m"),
        ('users_broken:worst', 'SyntaxError'),
        ('users_losses:best', "no attribute 'best'"),
        ('users_losses:', 'AttributeError'),
        (':worst', 'ValueError'),
        ('users_losses:constant', 'TypeError'),
        ('users_losses:of_one', 'TypeError'),
        ('users_losses:multiline', 'RuntimeError: a b'),
        ('users_losses:mean_of_all', 'one value for each'),
        ('users_losses:of_pixels', 'one value for each'),
        ('users_losses:several', 'one value for each'),
        ('users_losses:nothing', 'returned None for two images'),
    ],
)
def test_mistakes_are_named(module, name, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    losses.get(name, (32, 32, 3))
  line = str(caught.value)
  assert line.startswith(f'config.reconstruction_loss={name!r}: ')
  assert '\n' not in line
