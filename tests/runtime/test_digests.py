"""Digests are of the bytes of all parts, in C order."""

import hashlib

import jax.numpy as jnp
import numpy as np

from gmvq_jax.runtime import digests


def test_it_is_sha256_of_the_bytes():
  array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
  few = np.asarray(jnp.ones(3, jnp.bfloat16))
  scalar, empty = np.array(7, np.int32), np.zeros((0, 3))
  found = digests.sha256('ü', b'\x00', array, few, scalar, empty)
  content = 'ü'.encode() + b'\x00'
  for part in (array, few, scalar, empty):
    content += part.tobytes()
  assert found == hashlib.sha256(content).hexdigest()
