"""The largest batch that fits into a device's memory."""

from collections.abc import Callable

from gmvq_jax.planning import compilation

# It is found to one part in so many.
_PRECISION = 16


def largest_batch(
    compile_step: Callable[[int], compilation.Compiled],
    first: compilation.Compiled,
    memory: int,
    devices: int,
) -> int:
  """Returns the largest batch that fits, to one part in 16; 0 if none does.

  The next batch is the one that would fill the memory by a straight line
  through the last two; every third one halves the interval instead, for memory
  that does not grow in proportion.

  Args:
    compile_step: compiles the train step for a batch size.
    first: the train step for the configured batch size.
    memory: of each device, in bytes.
    devices: how many; batch sizes are multiples of it.
  """
  low, high = 0, None
  last, known = (0, 0), first
  tried = 0
  while True:
    size, needed = known.images, known.needed
    if known.fits:
      low = size
    else:
      high = size
    unit = max((high or low) // _PRECISION, devices)
    if high is not None and high - low <= unit:
      return low
    slope = (needed - last[1]) / (size - last[0])
    line = size + (memory - needed) / slope if slope > 0 else float('inf')
    tried += 1
    if high is None:
      # The first line is through the origin; a later one may be flat.
      most = 16 * low if tried > 1 else line
      guess = min(max(line, low + unit), most)
    elif tried % 3 == 0:
      guess = (low + high) / 2
    else:
      guess = min(max(line, low + unit), high - unit)
    guess = int(guess) // devices * devices
    guess = max(guess, low + devices)
    last, known = (size, needed), compile_step(guess)
