"""Digests, by which stored things are known again."""

import hashlib

import numpy as np


def sha256(*parts: str | bytes | np.ndarray) -> str:
  """Returns the SHA-256 of parts, one after the other, in hexadecimal.

  Args:
    *parts: text, as UTF-8; bytes; or arrays, the bytes of their elements.
  """
  digest = hashlib.sha256()
  for part in parts:
    if isinstance(part, np.ndarray):
      digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    else:
      digest.update(part.encode() if isinstance(part, str) else part)
  return digest.hexdigest()
