"""A pytest plugin: counts the programs that XLA compiles, and frees them.

Every run ends with the total. With `--profile` it ends with a table of the
files: processor seconds (of child processes too, so that they mean the same on
a busy machine), programs compiled, and tests.
"""

import collections
import os
import pathlib
from typing import NamedTuple

import jax
import pytest

_COMPILED = '/jax/core/compile/backend_compile_duration'
_FROM_CACHE = '/jax/compilation_cache/cache_hits'


class Cost(NamedTuple):
  """What this process and its children have used so far."""

  seconds: float
  programs: int


# Each program takes about a hundred memory maps, those of training steps on
# several devices more. Beyond Linux's limit of 65,530 (`vm.max_map_count`) XLA
# crashes, so programs are freed at this number, counted after so many programs.
_MAX_MAPS = 30_000
_PER_COUNT = 25
_MAPS = pathlib.Path('/proc/self/maps')

_programs = 0
_uncounted = 0
_last = Cost(0.0, 0)


def _on_duration(event, duration, **_):
  global _programs, _uncounted
  del duration
  _programs += event == _COMPILED
  _uncounted += event == _COMPILED


def _on_event(event, **_):
  global _programs
  _programs -= event == _FROM_CACHE  # Which has a duration as well.


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)


def pytest_addoption(parser):
  parser.addoption(
      '--profile',
      action='store_true',
      help='end with the processor seconds and compiled programs of each file',
  )


@pytest.fixture(autouse=True)
def _forget_programs():
  """Frees the programs of this process once they take too many maps."""
  global _uncounted
  yield
  if _uncounted >= _PER_COUNT and _MAPS.exists():
    _uncounted = 0
    if _MAPS.read_bytes().count(b'\n') > _MAX_MAPS:
      jax.clear_caches()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
  """Adds to each report the cost since the one before."""
  global _last
  report = (yield).get_result()
  now = Cost(sum(os.times()[:4]), _programs)
  report.user_properties.append(
      ('cost', [now.seconds - _last.seconds, now.programs - _last.programs])
  )
  _last = now


def pytest_terminal_summary(terminalreporter, config):
  files = collections.defaultdict(lambda: [0.0, 0, 0])
  for reports in terminalreporter.stats.values():
    for report in reports:
      if not isinstance(report, pytest.TestReport):
        continue
      # A test's properties add up over its phases; the last is this phase's.
      costs = [x for name, x in report.user_properties if name == 'cost']
      if not costs:  # The report of a worker that crashed.
        continue
      row = files[report.nodeid.partition('::')[0]]
      row[0] += costs[-1][0]
      row[1] += costs[-1][1]
      row[2] += report.when == 'call'
  seconds = sum(row[0] for row in files.values())
  programs = sum(row[1] for row in files.values())
  terminalreporter.section('compilation')
  terminalreporter.line(
      f'{programs} programs compiled; {seconds:.0f} s of processor time'
  )
  if not config.getoption('--profile'):
    return
  terminalreporter.line(f'{"seconds":>8} {"programs":>8} {"tests":>6}')
  for name, (seconds, programs, tests) in sorted(
      files.items(), key=lambda item: -item[1][0]
  ):
    terminalreporter.line(f'{seconds:8.1f} {programs:8} {tests:6}  {name}')
