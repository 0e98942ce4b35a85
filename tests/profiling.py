"""A pytest plugin: counts the programs that XLA compiles, and frees them.

Every run ends with the total. With `--profile` it ends with a table of the
files: processor seconds (of child processes too, so that they mean the same on
a busy machine), programs compiled, and tests.
"""

import collections
import os
from typing import NamedTuple

import jax
import pytest

_COMPILED = '/jax/core/compile/backend_compile_duration'
_FROM_CACHE = '/jax/compilation_cache/cache_hits'


class Cost(NamedTuple):
  """What this process and its children have used so far."""

  seconds: float
  programs: int


# The most programs that a process keeps. Each takes up to a hundred maps of
# memory, and XLA crashes beyond Linux's limit of 65,530 (`vm.max_map_count`).
_MAX_KEPT = 400

_programs = 0
_kept = 0
_last = Cost(0.0, 0)


def _on_duration(event, duration, **_):
  global _kept, _programs
  del duration
  _programs += event == _COMPILED
  _kept += event == _COMPILED


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
  """Frees the programs of this process once there are too many."""
  global _kept
  yield
  if _kept > _MAX_KEPT:
    jax.clear_caches()
    _kept = 0


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
