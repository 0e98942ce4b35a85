"""Kills runs, starts them again, and compares them with one left alone.

    python benchmarks/kill.py --workdir=DIR [--processes=2] [--output=FILE.json]
        [-- --config.num_steps=100 ...]

A run is killed once, at a random moment between 10 % and 95 % of its length or
at one that is looked for: before its first step, while a checkpoint is being
written, right after an evaluation, before the report. Others are told to stop
with SIGTERM. The same command then brings each to its end, and its summary and
metrics must be those of the run that was left alone, to the last bit.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

from absl import app
from absl import flags
import timing

_WORKDIR = flags.DEFINE_string('workdir', '', 'Where the runs go.')
_CONFIG = flags.DEFINE_string(
    'config', 'configs/quickstart.py', 'Of the runs.'
)
_KILLS = flags.DEFINE_integer('kills', 20, 'At random moments.')
_STOPS = flags.DEFINE_integer('stops', 5, 'With SIGTERM.')
_PROCESSES = flags.DEFINE_integer(
    'processes', 1, 'Of a run. Of several one is killed.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')

_PATIENCE = 600  # Seconds.


class Run:
  """The processes of one run, started."""

  def __init__(self, workdir, arguments):
    self.workdir, self.start = workdir, time.monotonic()
    command = [
        *(sys.executable, '-m', 'gmvq_jax.main'),
        *(f'--config={_CONFIG.value}', f'--workdir={workdir}', *arguments),
    ]
    environments = [{}]
    if _PROCESSES.value > 1:
      command.append('--distributed')
      with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
      environments = [
          {
              'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
              'JAX_NUM_PROCESSES': str(_PROCESSES.value),
              'JAX_PROCESS_ID': str(index),
          }
          for index in range(_PROCESSES.value)
      ]
    workdir.mkdir(parents=True, exist_ok=True)
    self.processes = []
    for environment in environments:
      with open(workdir / 'output.txt', 'a') as output:
        self.processes.append(
            subprocess.Popen(
                command,
                env=os.environ | environment,
                stdout=output,
                stderr=output,
            )
        )

  @property
  def seconds(self):
    """How long ago it was started."""
    return time.monotonic() - self.start

  @property
  def running(self):
    """Whether none of its processes has ended."""
    return all(process.poll() is None for process in self.processes)

  def signal(self, number):
    """Sends a signal to one process; returns the seconds till all have ended.

    Those that do not notice that one is missing are killed as well.
    """
    start = time.monotonic()
    random.choice(self.processes).send_signal(number)
    for process in self.processes:
      try:
        process.wait(_PATIENCE)
      except subprocess.TimeoutExpired:
        process.kill()
    return time.monotonic() - start

  def finish(self):
    """Waits for the end, which must be a good one."""
    for process in self.processes:
      if process.wait() != 0:
        raise SystemExit(f'{self.workdir}/output.txt: ended badly')


def outcome(workdir):
  """Returns what must not depend on interruptions: summary and metrics."""
  summary = json.loads((workdir / 'summary.json').read_text())
  del summary['images_per_second']
  if not (workdir / 'report.html').exists():
    raise SystemExit(f'{workdir}: has no report')
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return summary, [json.loads(line) for line in lines]


def moments():
  """Yields names, signals, and what makes a test of whether a run is there.

  That takes the seconds of a whole run, and of its way to the first step.
  """

  def between(low, high):
    def draw(length, first_step):
      names = {'first step': first_step, 'length': length}
      seconds = random.uniform(*(a * names[b] for a, b in (low, high)))
      return lambda run: run.seconds > seconds

    return draw

  def there(pattern):
    return lambda *_: lambda run: any(run.workdir.glob(pattern))

  anywhere = between((0.1, 'length'), (0.95, 'length'))
  for _ in range(_KILLS.value):
    yield 'at random', signal.SIGKILL, anywhere
  in_training = between((1.1, 'first step'), (0.7, 'length'))
  for _ in range(_STOPS.value):
    yield 'SIGTERM', signal.SIGTERM, in_training
  if _KILLS.value:
    yield 'before the first step', signal.SIGKILL, between(
        (0.5, 'first step'), (1, 'first step')
    )
    for name, pattern in (
        ('writing a checkpoint', 'checkpoints/*tmp*'),
        ('after an evaluation', 'pictures/*.png'),
        ('before the report', 'summary.json'),
    ):
      yield name, signal.SIGKILL, there(pattern)


def interrupt(workdir, arguments, number, here):
  """Starts a run and interrupts it; returns how long it took to end.

  None if the run came to its end before its moment.
  """
  run = Run(workdir, arguments)
  while run.running and not here(run):
    time.sleep(0.002)
  if not run.running:
    run.finish()
    return None
  seconds = run.signal(number)
  codes = [process.returncode for process in run.processes]
  if number == signal.SIGTERM and any(codes):
    raise SystemExit(f'{workdir}/output.txt: exit codes {codes} after SIGTERM')
  return seconds


def whole(workdir, arguments):
  """Makes a whole run; returns its seconds, and those to its first step."""
  run, first_step = Run(workdir, arguments), None
  while run.running:
    if first_step is None and (workdir / 'metrics.jsonl').exists():
      first_step = run.seconds
    time.sleep(0.01)
  seconds = run.seconds
  run.finish()
  return seconds, first_step


def main(argv):
  """Interrupts and compares."""
  random.seed(_SEED.value)
  arguments, root = argv[1:], pathlib.Path(_WORKDIR.value)
  if not _WORKDIR.value or root.exists():
    raise SystemExit(f'--workdir={root}: give a directory that is not there')
  whole(root / 'compiled', arguments)
  length, first_step = whole(root / 'whole', arguments)
  expected = outcome(root / 'whole')
  if outcome(root / 'compiled') != expected:
    raise SystemExit('two runs left alone differ')
  print(f'A run takes {length:.0f} s, {first_step:.0f} s to its first step.')

  records = []
  for name, number, draw in moments():
    workdir, seconds = root / 'interrupted', None
    while seconds is None:
      shutil.rmtree(workdir, ignore_errors=True)
      here = draw(length, first_step)
      start = time.monotonic()
      seconds = interrupt(workdir, arguments, number, here)
      if seconds is None:  # A machine with less to do, perhaps.
        length = min(length, time.monotonic() - start)
    Run(workdir, arguments).finish()
    equal = outcome(workdir) == expected
    records.append({'moment': name, 'seconds_to_end': seconds, 'equal': equal})
    print(records[-1], flush=True)
  stops = [r['seconds_to_end'] for r in records if r['moment'] == 'SIGTERM']
  timing.report(
      {
          'hardware': timing.hardware(),
          'processes': _PROCESSES.value,
          'arguments': arguments,
          'seconds': length,
          'interrupted': len(records),
          'equal': sum(r['equal'] for r in records),
          'most_seconds_from_sigterm_to_exit': max(stops, default=None),
          'records': records,
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
