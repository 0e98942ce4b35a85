"""Memory that a step frees, kept for the next."""

import ctypes

# Of mallopt(3): when freed memory is given back, how many blocks are mapped by
# themselves, how many heaps there are.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> None:
  """Lets this process keep the memory that it frees, where glibc is.

  XLA frees the temporaries of a step and allocates them again in the next. By
  default glibc gives them back in between, and the system zeroes every page
  anew: on two CPU cores a seventh of the processor time of a train step. It
  is to be called before there are other threads.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return
  mallopt(_TRIM_THRESHOLD, 2**31 - 1)
  mallopt(_MMAP_MAX, 0)
  mallopt(_ARENA_MAX, 1)
