"""Pictures, pixel by pixel."""

import io

import numpy as np
from PIL import Image

from gmvq_jax.reporting import pictures


def test_comparison_puts_reconstructions_under_originals(rng):
  originals = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
  restored = rng.uniform(size=(5, 4, 4, 3))
  picture = pictures.comparison(originals, restored, columns=3)
  assert picture.shape == (2 * 2 * 6, 3 * 6, 3)
  np.testing.assert_array_equal(picture[2:6, 8:12], originals[1])
  np.testing.assert_array_equal(
      picture[8:12, 8:12], np.round(255 * restored[1]).astype(np.uint8)
  )
  np.testing.assert_array_equal(picture[14:18, 2:6], originals[3])
  assert np.all(picture[14:, 14:] == 255)  # There is no sixth.


def test_grey_images_get_three_channels(rng):
  originals = rng.integers(0, 256, (2, 4, 4, 1), dtype=np.uint8)
  picture = pictures.comparison(originals, originals / 255, columns=2)
  assert picture.shape == (12, 12, 3)
  np.testing.assert_array_equal(picture[2:6, 2:6, 2], originals[0, ..., 0])


def test_dissection_shows_four_things(rng):
  original = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
  restored = rng.uniform(size=(8, 8, 3))
  codes = np.array([[0, 1], [2, 1]])
  colours = np.array([[9, 9, 9], [90, 0, 0], [0, 0, 90]], np.uint8)
  picture = pictures.dissection(original, restored, codes, colours)
  assert picture.shape == (8, 4 * 8 + 3 * 2, 3)
  np.testing.assert_array_equal(picture[:, :8], original)
  np.testing.assert_array_equal(
      picture[:, 10:18], np.round(255 * restored).astype(np.uint8)
  )
  difference = np.clip(127.5 + 2 * (255 * restored - original), 0, 255)
  np.testing.assert_allclose(picture[:, 20:28], difference, atol=0.51)
  np.testing.assert_array_equal(picture[1, 31], [9, 9, 9])
  np.testing.assert_array_equal(picture[1, 37], [90, 0, 0])
  np.testing.assert_array_equal(picture[7, 31], [0, 0, 90])


def test_strip_puts_images_side_by_side(rng):
  images = rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
  picture = pictures.strip(images)
  assert picture.shape == (4, 3 * 7, 3)
  np.testing.assert_array_equal(picture[:, 7:12], images[1])
  assert pictures.strip(images[..., :1]).shape == (4, 3 * 7, 3)


def test_a_perfect_reconstruction_differs_by_grey(rng):
  original = rng.integers(0, 256, (4, 4, 1), dtype=np.uint8)
  codes = np.zeros((1, 1), int)
  picture = pictures.dissection(
      original, original / 255, codes, np.zeros((1, 3), np.uint8)
  )
  np.testing.assert_allclose(picture[:, 12:16], 127.5, atol=0.51)


def test_principal_components_are_those_of_the_covariance(rng):
  codebook = rng.normal(size=(50, 4)) * [1, 5, 2, 0.1]
  along, shares = pictures.principal(codebook, 2)
  values = np.sort(np.linalg.eigvalsh(np.cov(codebook.T)))[::-1]
  np.testing.assert_allclose(along.var(axis=0, ddof=1), values[:2])
  np.testing.assert_allclose(shares, values[:2] / values.sum())


def test_close_codewords_have_similar_colours():
  """Along a line, colours go steadily from one end to the other."""
  codebook = np.linspace(0, 1, 16)[:, None] * np.ones((1, 3))
  red = pictures.code_colours(codebook)[:, 0].astype(int)
  assert np.all(np.diff(red) > 0) or np.all(np.diff(red) < 0)


def test_any_codebook_has_colours():
  for codebook in (np.zeros((5, 4)), np.ones((3, 1)), np.eye(2)):
    assert pictures.code_colours(codebook).shape == (len(codebook), 3)


def test_png_holds_the_pixels(rng):
  picture = rng.integers(0, 256, (3, 5, 3), dtype=np.uint8)
  opened = np.asarray(Image.open(io.BytesIO(pictures.to_png(picture, zoom=2))))
  np.testing.assert_array_equal(opened[::2, ::2], picture)
  np.testing.assert_array_equal(opened[1::2, 1::2], picture)
