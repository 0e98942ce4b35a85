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


def moments(length, first_step):
  """Yields names, signals, and what is true of a run when its moment is here.

  Args:
    length: seconds of a run.
    first_step: seconds to its first logged step.
  """

  def after(low, high):
    seconds = random.uniform(low, high)
    return lambda run: run.seconds > seconds

  def there(pattern):
    return lambda run: any(run.workdir.glob(pattern))

  for _ in range(_KILLS.value):
    yield 'at random', signal.SIGKILL, after(0.1 * length, 0.95 * length)
  for _ in range(_STOPS.value):
    yield 'SIGTERM', signal.SIGTERM, after(first_step, 0.9 * length)
  if _KILLS.value:
    yield 'before the first step', signal.SIGKILL, after(0, first_step)
    for name, pattern in (
        ('writing a checkpoint', 'checkpoints/*tmp*'),
        ('after an evaluation', 'pictures/*.png'),
        ('before the report', 'summary.json'),
    ):
      yield name, signal.SIGKILL, there(pattern)


def interrupt(workdir, arguments, number, here):
  """Starts a run and interrupts it; returns how long it took to end, if it did.

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


def main(argv):
  """Interrupts and compares."""
  random.seed(_SEED.value)
  arguments, root = argv[1:], pathlib.Path(_WORKDIR.value)
  if not _WORKDIR.value or root.exists():
    raise SystemExit(f'--workdir={root}: give a directory that is not there')
  Run(root / 'compiled', arguments).finish()
  whole = Run(root / 'whole', arguments)
  first_step = None
  while whole.running:
    if first_step is None and (root / 'whole' / 'metrics.jsonl').exists():
      first_step = whole.seconds
    time.sleep(0.01)
  length = whole.seconds
  whole.finish()
  expected = outcome(root / 'whole')
  if outcome(root / 'compiled') != expected:
    raise SystemExit('two runs left alone differ')
  print(f'A run takes {length:.0f} s, {first_step:.0f} s to its first step.')

  records = []
  for name, number, here in moments(length, first_step):
    workdir = root / 'interrupted'
    seconds = interrupt(workdir, arguments, number, here)
    if seconds is not None:
      Run(workdir, arguments).finish()
    equal = outcome(workdir) == expected
    records.append({'moment': name, 'seconds_to_end': seconds, 'equal': equal})
    print(records[-1], flush=True)
    shutil.rmtree(workdir)
  hit = [r for r in records if r['seconds_to_end'] is not None]
  stops = [r['seconds_to_end'] for r in hit if r['moment'] == 'SIGTERM']
  timing.report(
      {
          'hardware': timing.hardware(),
          'processes': _PROCESSES.value,
          'arguments': arguments,
          'seconds': length,
          'interrupted': len(hit),
          'equal': sum(r['equal'] for r in hit),
          'most_seconds_from_sigterm_to_exit': max(stops, default=None),
          'records': records,
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
