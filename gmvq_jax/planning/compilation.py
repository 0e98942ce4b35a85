"""Programs compiled for devices that are not here."""

import re
import time
from typing import Any
from typing import NamedTuple

import jax

from gmvq_jax.planning import hlo
from gmvq_jax.planning import programs
from gmvq_jax.planning import topologies


class Compiled(NamedTuple):
  """What the compiler says of a program.

  Attributes:
    images: that all devices take at a time.
    compile_seconds: that the compiler took here.
    fits: whether each device has memory enough.
    needed: bytes on each device.
    sizes: what they are of: `arguments`, `results`, `temporaries`, `code`. None
      where the compiler gave up for want of memory.
    flops: of each device, as the compiler counts them. None where it does not.
    estimated_seconds: for TPUs, the cycles that the compiler expects of all
      operations, at the clock of the device. What overlaps counts twice, and
      waiting for other devices does not count. None where the compiler gives no
      estimate, or less than the device's peak allows.
    sent: what devices exchange.
  """

  images: int
  compile_seconds: float
  fits: bool
  needed: int
  sizes: dict[str, int] | None = None
  flops: float | None = None
  estimated_seconds: float | None = None
  sent: tuple[hlo.Collective, ...] = ()

  def to_json(self) -> dict[str, Any]:
    """Returns the fields as JSON has them."""
    return self._asdict() | {'sent': [x._asdict() for x in self.sent]}


def compile_for(
    target: topologies.Topology, program: programs.Program
) -> Compiled:
  """Returns what is known of a program once it is compiled; nothing runs."""
  lowered = program.lower()
  start = time.monotonic()
  try:
    compiled = lowered.compile(compiler_options=dict(target.compiler_options))
  except jax.errors.JaxRuntimeError as error:
    needed = _needed(str(error))
    if needed is None:
      raise
    return Compiled(program.images, time.monotonic() - start, False, needed)
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  assert memory is not None  # Only interpreters have none.
  sizes = {
      'arguments': memory.argument_size_in_bytes,
      'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
      'temporaries': memory.temp_size_in_bytes,
      'code': memory.generated_code_size_in_bytes,
  }
  needed = sum(sizes.values())
  text = compiled.as_text() or ''
  flops = max((compiled.cost_analysis() or {}).get('flops', 0.0), 0.0)
  return Compiled(
      program.images,
      seconds,
      needed <= target.memory,
      needed,
      sizes,
      flops or None,
      _seconds(target, hlo.cycles(text), flops),
      tuple(hlo.collectives(text)),
  )


def _seconds(
    target: topologies.Topology, cycles: int | None, flops: float
) -> float | None:
  """Returns the time of so many cycles, if the device can be that fast."""
  if not cycles or not target.clock_hz or not target.peak_flops:
    return None
  seconds = cycles / target.clock_hz
  return seconds if seconds >= flops / target.peak_flops else None


_UNITS = {'': 0, 'K': 10, 'M': 20, 'G': 30, 'T': 40}
_SHORTAGES = (
    r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm',
    r'otal memory required[^\d]*([\d.]+)([KMGT]?)',
)


def _needed(error: str) -> int | None:
  """Returns the bytes that a compiler found too many; None for other errors."""
  for pattern in _SHORTAGES:
    found = re.search(pattern, error)
    if found:
      return int(float(found[1]) * 2 ** _UNITS[found[2]])
  return None
