"""Fair timing: things to compare take turns in one process."""

from collections.abc import Callable
import json
import os
import pathlib
import statistics
import time

import jax


def seconds(
    kinds: dict[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
  """Returns the seconds of each kind in each round, after one to warm up.

  Args:
    kinds: each runs one measurement to its end.
    rounds: how often each is measured, in alternation.
  """
  for run in kinds.values():
    run()
  taken = {name: [] for name in kinds}
  for _ in range(rounds):
    for name, run in kinds.items():
      start = time.perf_counter()
      run()
      taken[name].append(time.perf_counter() - start)
  return taken


def ratio(taken: dict[str, list[float]], over: str, under: str) -> float:
  """Returns the median over rounds of one kind's seconds over another's."""
  pairs = zip(taken[over], taken[under], strict=True)
  return statistics.median(a / b for a, b in pairs)


def medians(taken: dict[str, list[float]]) -> dict[str, float]:
  """Returns the median seconds of each kind."""
  return {name: statistics.median(values) for name, values in taken.items()}


def hardware() -> str:
  """Returns what this runs on."""
  device = jax.devices()[0]
  return f'{jax.device_count()} x {device.device_kind}, {os.cpu_count()} cores'


def report(result: dict, path: str) -> None:
  """Prints a result, and writes it as JSON to a path if there is one."""
  text = json.dumps(_rounded(result), indent=2)
  print(text)
  if path:
    pathlib.Path(path).write_text(text + '\n')


def _rounded(value):
  if isinstance(value, dict):
    return {k: _rounded(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_rounded(v) for v in value]
  return float(f'{value:.4g}') if isinstance(value, float) else value
