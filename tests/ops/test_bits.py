"""Codes as bits."""

import math

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from gmvq_jax.ops import bits


@pytest.mark.parametrize(
    'num_codes, needed, whole',
    [(2, 1, 8), (3, 2, 8), (256, 8, 8), (257, 9, 16), (1024, 10, 16),
     (1025, 11, 16), (2**16, 16, 16), (2**16 + 1, 17, 32), (1, 1, 8)],
)
def test_bits_of_a_code(num_codes, needed, whole):
  assert bits.needed(num_codes) == needed
  assert bits.whole_bytes(num_codes) == whole


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 31), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99)
)
def test_packing_keeps_everything(width, images, positions, seed):
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, 2**width, (images, positions))
  packed = bits.pack(codes, width)
  assert packed.dtype == np.uint8
  assert packed.shape == (images, math.ceil(positions * width / 8))
  unpacked = bits.unpack(packed, positions, width)
  assert unpacked.dtype == np.int32
  np.testing.assert_array_equal(unpacked, codes)


def test_packing_by_hand():
  # 1 is 001, 5 is 101, 7 is 111: 00110111 1 and seven zeros.
  packed = bits.pack(np.array([[1, 5, 7]]), 3)
  np.testing.assert_array_equal(packed, [[0b00110111, 0b10000000]])


@pytest.mark.parametrize('width', [8, 16, 32])
def test_whole_bytes_are_big_endian(rng, width):
  codes = rng.integers(0, 100, (4, 5))
  expected = codes.astype(f'>u{width // 8}').tobytes()
  assert bits.pack(codes, width).tobytes() == expected


def test_entropy():
  assert bits.entropy(np.array([3, 3, 0, 3, 3])) == pytest.approx(2)
  assert bits.entropy(np.array([7])) == 0
  # 1/2 log 2 + 2 * 1/4 log 4
  assert bits.entropy(np.array([2, 1, 1])) == pytest.approx(1.5)


@pytest.mark.parametrize('num_codes, length', [(2, 40), (5, 17), (300, 100)])
def test_adaptive_length_is_that_of_a_coder(rng, num_codes, length):
  """Each code is predicted from those before it, in any order."""
  codes = rng.integers(0, max(num_codes // 2, 2), length)
  seen, total = np.zeros(num_codes), 0.0
  for n, code in enumerate(codes):
    total -= math.log2((seen[code] + 0.5) / (n + num_codes / 2))
    seen[code] += 1
  assert bits.adaptive_length(seen) == pytest.approx(total, rel=1e-9)
  assert bits.adaptive_length(seen) > length * bits.entropy(seen)
