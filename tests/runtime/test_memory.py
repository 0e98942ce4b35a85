"""Freed memory is kept: the system gives no page twice."""

import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from gmvq_jax.runtime import memory

if sys.argv[1] == 'kept':
  memory.keep_freed()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(mode):
  """Returns the pages that four arrays of 64 MiB took, after one of them."""
  return int(
      subprocess.run(
          [sys.executable, '-c', PROGRAM, mode],
          check=True,
          capture_output=True,
          text=True,
      ).stdout
  )


def test_what_is_freed_is_used_again():
  assert new_pages('kept') < new_pages('given back') / 10
