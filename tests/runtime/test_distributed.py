"""One run made by several processes.

By default one pair of processes does all that `processes.py` has them do.
"""

import json
import pathlib
import shutil
import signal
import time

import commands
import numpy as np
import pytest
import tiny

from gmvq_jax.training import config as config_lib
from gmvq_jax.training import summary as summary_lib
from gmvq_jax.training import trainer

TESTS = pathlib.Path(__file__).parents[1]


def complete(*run):
  """Runs processes to their end; returns what each wrote."""
  return commands.finish_processes(commands.start_processes(*run))


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


@pytest.fixture
def arguments(tmp_path, photographs):
  data = tiny.save_images(tmp_path, photographs)

  def make(workdir, **fields):
    return [
        f'--config={TESTS.parent}/configs/cifar10.py:gmvq+entropy',
        f'--workdir={tmp_path / workdir}',
        *tiny.flags(data, **fields),
    ]

  return make


def after(output, name):
  """Returns what a process has written after it began one of its runs."""
  return output.partition(f'--- --workdir={name}\n')[2].partition('---')[0]


def test_two_processes_are_as_one_and_end_together(
    tmp_path, photographs
):
  """A whole run; a mistake; SIGTERM saves and stops; SIGKILL is named."""
  # Each process compiles all of its programs.
  config = tiny.small_config(tiny.save_images(tmp_path, photographs))
  one = tmp_path / 'one'
  assert trainer.run(config, str(one), test=False)
  expected = summary_lib.evaluate_workdir(str(one))

  def assert_as_one(actual, run):
    for name in ('mse', 'perplexity', 'split_perplexity', 'ssim'):
      np.testing.assert_allclose(
          actual[name], expected[name], rtol=2e-3, err_msg=f'{run}: {name}'
      )

  flags = [
      f'--config.{field}={value}'
      for field, value in config_lib.flatten(config).items()
      if field in (*tiny.FIELDS, 'data.name', 'network.num_downsamplings')
  ]
  started = commands.start_processes(
      [
          str(tmp_path),
          f'--config={TESTS.parent}/configs/cifar10.py:vqvae+ema',
          *flags,
      ],
      2,
      1,
      program=[TESTS / 'processes.py'],
  )
  outputs = commands.communicate(started)
  (first, first_errors), (second, second_errors) = outputs
  print(first_errors[-2000:], second_errors[-2000:])

  whole, stopped, killed = (
      tmp_path / name for name in ('whole', 'stopped', 'killed')
  )
  assert_as_one(summary(whole), 'whole')
  assert (whole / 'report.html').exists()
  assert 'step 1/12' in after(first, whole)
  assert 'step' not in after(second, whole)  # One speaks for all.

  for number, output in enumerate((first, second)):
    assert 'mistake: config.batch_size=3: not divisible' in output, number
  assert not (tmp_path / 'mistake' / 'config.json').exists()

  assert 'Stopped; saved step' in after(first, stopped)
  assert not (stopped / 'summary.json').exists()
  # It continues on eight devices of one process.
  assert trainer.run(config, str(stopped), test=False)
  assert_as_one(summary_lib.evaluate_workdir(str(stopped)), 'stopped')

  assert started[1].returncode == -signal.SIGKILL
  assert started[0].returncode == 1, first_errors
  last = first_errors.strip().splitlines()[-1]
  assert last.startswith('error: another process of the run is no longer there')
  assert not (killed / 'summary.json').exists()


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path, arguments):
  complete(arguments('one'), 1, 4)
  first, second = complete(arguments('two'), 2, 2)
  one, two = summary(tmp_path / 'one'), summary(tmp_path / 'two')
  for name in ('mse', 'kl', 'perplexity', 'split_perplexity', 'ssim'):
    np.testing.assert_allclose(two[name], one[name], rtol=2e-3, err_msg=name)
  assert (tmp_path / 'two' / 'report.html').exists()
  assert 'step 1/12' in first
  assert 'step' not in second  # One speaks for all.


@pytest.mark.slow
def test_a_run_continues_on_other_devices_and_processes(tmp_path, arguments):
  """On more of them, and in another number of processes."""
  run = tmp_path / 'run'
  complete(arguments('run'), 1, 4)
  whole = summary(run)
  for processes, devices in ((1, 8), (2, 1)):
    (run / 'summary.json').unlink()
    shutil.rmtree(run / 'checkpoints' / '12')
    started = commands.start_processes(arguments('run'), processes, devices)
    output, *_ = commands.finish_processes(started)
    assert 'from step 8' in output
    for name in ('mse', 'kl', 'perplexity'):
      np.testing.assert_allclose(
          summary(run)[name], whole[name], rtol=2e-3, err_msg=name
      )


@pytest.mark.slow
def test_what_ends_one_process_ends_all_and_loses_nothing(tmp_path, arguments):
  """SIGTERM saves and stops at one step; SIGKILL is named by the other."""
  more = dict(num_steps=100, eval_every_steps=50, checkpoint_every_steps=25)
  complete(arguments('whole', **more), 2, 1)
  run = tmp_path / 'run'

  def interrupt(number):
    """Sends a signal to the second process, when a step was logged."""
    started = commands.start_processes(arguments('run', **more), 2, 1)
    metrics = run / 'metrics.jsonl'
    before = metrics.read_text() if metrics.exists() else ''
    while not (metrics.exists() and len(metrics.read_text()) > len(before)):
      assert started[0].poll() is None
      time.sleep(0.05)
    started[1].send_signal(number)
    return started

  first, _ = commands.finish_processes(interrupt(signal.SIGTERM))
  assert 'Stopped; saved step' in first
  one, _ = interrupt(signal.SIGKILL)
  _, errors = one.communicate(timeout=200)
  assert one.returncode == 1
  last = errors.strip().splitlines()[-1]
  assert last.startswith('error: another process of the run is no longer there')
  assert not (run / 'summary.json').exists()
  complete(arguments('run', **more), 2, 1)
  sha256 = 'parameters_sha256'
  assert summary(run)[sha256] == summary(tmp_path / 'whole')[sha256]


@pytest.mark.slow
def test_what_one_process_cannot_write_ends_all(tmp_path, arguments):
  """The first has a file where it wants a directory."""
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'tensorboard').write_text('')
  first, second = commands.start_processes(arguments('run'), 2, 1)
  _, errors = first.communicate(timeout=200)
  assert first.returncode == 1
  assert 'tensorboard' in errors.strip().splitlines()[-1]
  assert 'Traceback' not in errors
  second.communicate(timeout=200)
  assert second.returncode != 0


@pytest.mark.slow
def test_a_mistake_stops_all_processes_with_its_line(arguments):
  started = commands.start_processes(arguments('run', batch_size=3), 2, 2)
  for process in started:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert 'batch_size=3' in errors
    assert 'Traceback' not in errors
