"""Codes as bits: how few they could take, and how they are packed.

Shapes: `N` images, `P` positions in each, `C` codes.
"""

import math

import numpy as np

_WHOLE = (8, 16, 32)


def needed(num_codes: int) -> int:
  """Returns the bits of a code of fixed length: log2(C), rounded up."""
  return max((num_codes - 1).bit_length(), 1)


def whole_bytes(num_codes: int) -> int:
  """Returns the bits of the least unsigned integer that holds a code."""
  return next(bits for bits in _WHOLE if bits >= needed(num_codes))


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
  """Packs codes, each with its highest bit first, the last byte filled with 0.

  With 8, 16 or 32 bits these are unsigned integers, big-endian.

  Args:
    codes: `[N, P]` integers less than `2 ** bits`.
    bits: of a code, at most 32.

  Returns:
    uint8 `[N, ceil(P * bits / 8)]`.
  """
  if bits in _WHOLE:
    return codes.astype(f'>u{bits // 8}').view(np.uint8)
  shifts = np.arange(bits - 1, -1, -1)

  def pack_row(row: np.ndarray) -> np.ndarray:
    return np.packbits((row[:, None] >> shifts & 1).astype(bool))

  # A row at a time: there are many times as many bits as codes.
  return np.stack([pack_row(row) for row in codes])


def unpack(packed: np.ndarray, positions: int, bits: int) -> np.ndarray:
  """Returns the codes, `[N, positions]` int32, that `pack` made `packed` of."""
  if bits in _WHOLE:
    return packed.view(f'>u{bits // 8}').astype(np.int32)
  weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.float64)

  def unpack_row(row: np.ndarray) -> np.ndarray:
    ones = np.unpackbits(row, count=positions * bits)
    return ones.reshape(positions, bits) @ weights

  return np.stack([unpack_row(row) for row in packed]).astype(np.int32)


def entropy(counts: np.ndarray) -> float:
  """Returns the entropy of counts `[C]`, in bits per code."""
  share = counts[counts > 0] / counts.sum()
  return float(-np.sum(share * np.log2(share)))


def adaptive_length(counts: np.ndarray) -> float:
  """Returns the bits that an adaptive arithmetic coder needs for all codes.

  It knows nothing at the start, and predicts each code from how often the codes
  occurred before it: `(n_c + 1/2) / (n + C/2)`. The product of these does not
  depend on the order (Krichevsky and Trofimov 1981, "The performance of
  universal encoding"); what it is above the entropy is what the table costs.

  Args:
    counts: `[C]`, how often each code occurs.
  """
  half = len(counts) / 2
  log_probability = math.lgamma(half) - math.lgamma(counts.sum() + half)
  seen = counts[counts > 0].tolist()
  log_probability += sum(math.lgamma(n + 0.5) for n in seen)
  log_probability -= len(seen) * math.lgamma(0.5)
  return -log_probability / math.log(2)
