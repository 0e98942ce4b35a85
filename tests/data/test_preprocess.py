"""From what image files hold to pixels."""

import numpy as np
from PIL import Image
import pytest

from gmvq_jax.data import preprocess
from gmvq_jax.data.preprocess import Shape


@pytest.fixture
def image(rng):
  """As large as those of CelebA: 178 wide, 218 high."""
  return rng.integers(0, 256, (218, 178, 3), np.uint8)


def convert(image, **shape):
  return preprocess.from_image(Image.fromarray(image), Shape(**shape))


def resized(image, size):
  bilinear = Image.Resampling.BILINEAR  # Antialiased, in Pillow.
  return np.asarray(Image.fromarray(image).resize((size, size), bilinear))


def test_without_a_shape_an_image_stays_as_it_is(image):
  np.testing.assert_array_equal(convert(image), image)


def test_a_crop_is_centred(image):
  """The literature's of CelebA is rows 39 to 179, columns 19 to 159."""
  expected = image[39:179, 19:159]
  np.testing.assert_array_equal(convert(image, crop=140), expected)


def test_a_crop_is_taken_before_resizing(image):
  expected = resized(image[39:179, 19:159], 64)
  np.testing.assert_array_equal(convert(image, crop=140, size=64), expected)


def test_a_size_alone_takes_the_largest_centred_square(image):
  expected = resized(image[20:198], 32)
  np.testing.assert_array_equal(convert(image, size=32), expected)
  wide = image.transpose(1, 0, 2)
  expected = resized(wide[:, 20:198], 32)
  np.testing.assert_array_equal(convert(wide, size=32), expected)


def test_nothing_outside_of_the_crop_is_seen(image):
  other = np.zeros_like(image)
  other[39:179, 19:159] = image[39:179, 19:159]
  np.testing.assert_array_equal(
      convert(image, crop=140, size=64), convert(other, crop=140, size=64)
  )


def test_resizing_is_antialiased():
  y, x = np.mgrid[:64, :64]
  board = np.where((x + y) % 2, 255, 0).astype(np.uint8)
  small = convert(board, size=8, channels=1)[1:-1, 1:-1]
  assert np.abs(small.astype(int) - 128).max() <= 2


def test_small_images_are_enlarged(image):
  expected = resized(image[:8, :8], 20)
  np.testing.assert_array_equal(convert(image[:8, :8], size=20), expected)


def test_grey_is_luminance(image):
  grey = convert(image, channels=1)
  assert grey.shape == (218, 178, 1)
  luminance = image @ np.array([0.299, 0.587, 0.114])
  np.testing.assert_allclose(grey[..., 0], luminance, atol=1)


def test_a_crop_may_be_the_whole_image_but_not_more(image):
  square = image[:50, :50]
  np.testing.assert_array_equal(convert(square, crop=50), square)
  with pytest.raises(preprocess.UnusableError) as caught:
    convert(image[:49, :60], crop=50)
  assert str(caught.value) == '49 x 60, smaller than the crop of 50'


@pytest.mark.parametrize('mode', ['I', 'F'])
def test_32_bits_are_not_guessed_at(mode):
  with pytest.raises(preprocess.UnusableError, match=f'32 bits.*mode {mode}'):
    preprocess.from_image(Image.new(mode, (4, 4)), Shape())


@pytest.mark.parametrize('channels', [1, 3])
def test_arrays_keep_their_channels(image, channels):
  """Whatever is configured: that is for image files."""
  array = image[..., :channels]
  for shape in (Shape(channels=3), Shape(channels=1)):
    assert preprocess.from_array(array, shape) is array
    cropped = preprocess.from_array(array, shape._replace(crop=140))
    np.testing.assert_array_equal(cropped, array[39:179, 19:159])
    small = preprocess.from_array(array, shape._replace(size=16))
    expected = resized(array[20:198].squeeze(), 16)
    np.testing.assert_array_equal(small.squeeze(), expected)
    assert small.shape == (16, 16, channels)
