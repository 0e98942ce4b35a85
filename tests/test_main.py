"""The command line: runs that end early, that fail, and that are wrong."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from unittest import mock

from commands import assert_one_line
from commands import call
from commands import command  # noqa: F401  (for other tests)
from commands import kill_after
from commands import run_here
from commands import signal_after
from commands import start  # noqa: F401  (for other tests)
import pytest
import tiny

from gmvq_jax.reporting import pages
from gmvq_jax.runtime import files
from gmvq_jax.training import command_line
from gmvq_jax.training import experiment
from gmvq_jax.training import metric_writer
from gmvq_jax.training import trainer

CIFAR10 = '--config=configs/cifar10.py:gmvq+entropy'


@pytest.fixture(scope='module')
def run(tmp_path_factory, photographs):
  """A run of the command line: its fields, work directory and result."""
  path = tmp_path_factory.mktemp('run')
  fields = {
      'data_name': tiny.save_images(path, photographs),
      'num_steps': 40,
      'eval_every_steps': 16,
      'checkpoint_every_steps': 8,
  }
  whole = path / 'whole'
  # Its page stays empty, as charts take seconds; see test_report.
  with mock.patch.object(pages, 'render', lambda contents: ''):
    result = run_here(CIFAR10, *tiny.flags(**fields), f'--workdir={whole}')
  assert result.returncode == 0, result.stderr
  return fields, whole, result


def train_here(fields, workdir):
  """Continues a run in this process; evaluates and reports nothing."""
  trainer.run(tiny.config(**fields), str(workdir), test=False)


def records(workdir):
  """Returns metrics.jsonl, without the test split."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
      record for record in map(json.loads, lines)
      if record.get('split') != 'test'
  ]  # fmt: skip


def stop_after(calls, number, *flags):
  """Runs in this process, which gets a signal after so many writes."""
  with signal_after(calls, metric_writer.Writer, 'write', number):
    result = run_here(*flags)
  assert result.returncode == 0, result.stderr
  assert 'The same command continues.' in result.stdout, number
  return result


def test_stopped_runs_continue_exactly(run, tmp_path):
  """After SIGKILL, Ctrl-C and SIGTERM: the same metrics, bit for bit."""
  fields, whole, _ = run
  parts = tmp_path / 'parts'
  flags = [CIFAR10, *tiny.flags(**fields), f'--workdir={parts}']
  # Steps 1, 4, 8 ... are logged, and the validation at 16 and 32. At step 20
  # the checkpoint of step 8 is sure to be complete.
  writes = ('gmvq_jax.training.metric_writer:Writer', 'write')
  kill_after(7, *writes, *flags)
  assert records(parts)[-1]['step'] == 20
  stopped = stop_after(2, signal.SIGINT, *flags)
  assert 'from step 0' not in stopped.stdout
  if os.environ.get('GMVQ_JAX_TESTS') == 'all':
    kill_after(2, *writes, *flags)
  stop_after(2, signal.SIGTERM, *flags)
  assert 16 < records(parts)[-1]['step'] < 40
  train_here(fields, parts)
  assert records(parts) == records(whole)


def test_a_run_reports_and_can_be_evaluated_with_its_directory_alone(run):
  _, whole, trained = run
  # Nothing but progress, which a slow machine shows.
  assert re.sub('.* left\n', '', trained.stderr) == ''
  assert trained.stdout.endswith(f'Report: {whole}/report.html\n')
  result = run_here('--mode=evaluate', f'--workdir={whole}')
  assert result.returncode == 0, result.stderr
  summary = json.loads((whole / 'summary.json').read_text())
  del summary['images_per_second']
  assert json.loads(result.stdout) == summary


def test_two_runs_do_not_share_a_directory(run, tmp_path):
  """Of two processes; the second one ends as every mistake does."""
  flags = [CIFAR10, *tiny.flags(**run[0]), f'--workdir={tmp_path}/run']
  with files.lock(files.create(f'{tmp_path}/run')):
    assert_one_line(call(*flags), 'another run is using it')
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_damaged_checkpoint_is_named_and_done_again(
    run, tmp_path, caplog, capsys
):
  fields, whole, _ = run
  shutil.copytree(whole, tmp_path / 'run')
  (tmp_path / 'run' / 'summary.json').unlink()
  for path in (tmp_path / 'run' / 'checkpoints' / '40').rglob('d/*'):
    path.write_bytes(b'')
  train_here(fields, tmp_path / 'run')
  named, moved = caplog.messages
  assert named.startswith('Checkpoint 40')
  assert 'damaged_checkpoints' in moved
  assert 'from step 32' in capsys.readouterr().out
  assert records(tmp_path / 'run') == records(whole)


@pytest.fixture
def small_disk(tmp_path):
  """A file system with room for few checkpoints."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('not allowed to mount')
  yield disk
  subprocess.run(['umount', '-l', str(disk)], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(run, small_disk, capsys):
  """Room for some checkpoints; with more room the run ends as any other."""
  fields, whole, _ = run
  result = run_here(
      CIFAR10, *tiny.flags(**fields), f'--workdir={small_disk}/run'
  )
  assert result.returncode, result.stdout
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ')
  assert 'No space left' in line or 'checkpoint cannot be written' in line
  larger = ['mount', '-o', 'remount,size=200m', str(small_disk)]
  subprocess.run(larger, check=True)
  train_here(fields, small_disk / 'run')
  assert 'from step 0' not in capsys.readouterr().out
  assert records(small_disk / 'run') == records(whole)


def test_a_read_only_disk_is_one_line(run, small_disk):
  read_only = ['mount', '-o', 'remount,ro', str(small_disk)]
  subprocess.run(read_only, check=True)
  flags = tiny.flags(**run[0])
  result = run_here(CIFAR10, *flags, f'--workdir={small_disk}/run')
  assert_one_line(result, 'cannot be written to')


def test_the_first_run_needs_no_data_set(tmp_path, monkeypatch):
  """The configuration of the README's first command, with smaller images."""
  pytest.importorskip('sklearn')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  config = command_line.load('quickstart')['get_config']()
  config.data.size = 16
  quickstart = experiment.Experiment(config)
  assert quickstart.splits.train.shape == (8192, 16, 16, 3)
  with contextlib.closing(quickstart.batches()) as batches:
    assert next(batches).shape == (64, 16, 16, 3)


@pytest.mark.slow
def test_the_first_command_of_the_readme(tmp_path):
  """In a process of its own, with a report."""
  pytest.importorskip('sklearn')
  result = call(
      '--config=configs/quickstart.py',
      f'--workdir={tmp_path}/run',
      '--config.num_steps=3',
      '--config.network.width=8',
      '--config.quantizer.num_codes=16',
      XDG_CACHE_HOME=str(tmp_path),
  )
  assert result.returncode == 0, result.stderr
  assert '8192 images' in result.stdout


MISTAKES = {
    'no flags': ([], '--config is missing'),
    'no workdir': ([CIFAR10], '--workdir is missing'),
    'no such file': (['--config=configs/no.py'], 'no.py: there is no such'),
    'file of no config': (['--config=setup.cfg'], 'cannot be called'),
    'no such file, apart': (['--config', 'no.py'], 'no.py: there is no such'),
    'no such method': (['--config=cifar10:typo'], "name='typo' is unknown"),
    'no such field': ([CIFAR10, '--config.typo=1'], 'typo'),
    'no such nested field': (
        [CIFAR10, '--config.data.nmae=x'],
        '--config.data.nmae: there is no such field; there is data.name',
    ),
    'one dash': (['-config=no.py'], 'no.py: there is no such file'),
    'no such field to negate': ([CIFAR10, '--noconfig.hrad'], 'hrad'),
    'too many steps': (
        [CIFAR10, '--config.num_steps=10000000000', '--workdir=WORKDIR'],
        'config.num_steps=10000000000: must be from 0 to 2^31 - 1',
    ),
    'no such flag': ([CIFAR10, '--wrokdir=x'], 'wrokdir'),
    'no such mode': ([CIFAR10, '--mode=fly'], 'mode'),
    'wrong type': ([CIFAR10, '--config.batch_size=many'], 'batch_size'),
    'out of range': (
        [CIFAR10, '--config.batch_size=0', '--workdir=WORKDIR'],
        'config.batch_size=0: must be at least 1',
    ),
    'not a flag': ([CIFAR10, 'extra', '--workdir=WORKDIR'], 'extra'),
    'not divisible': (
        [CIFAR10, '--config.batch_size=10', '--workdir=WORKDIR', 'DATA'],
        'not divisible by the 8 devices',
    ),
    'no such data set': (
        [CIFAR10, '--config.data.name=cifra10', '--workdir=WORKDIR'],
        'cifra10',
    ),
    'no such data file': (
        [CIFAR10, '--config.data.name=array:x.npy', '--workdir=WORKDIR'],
        'x.npy: there is no such file',
    ),
    'no such data directory': (
        [CIFAR10, '--config.data.dir=/no/where', '--workdir=WORKDIR'],
        'there is no such directory',
    ),
    'workdir is a file': (
        [CIFAR10, f'--workdir={__file__}'],
        'cannot be written to',
    ),
    'nothing to evaluate': (
        ['--mode=evaluate', '--workdir=WORKDIR'],
        'holds no config.json',
    ),
}


@pytest.mark.parametrize('case', MISTAKES)
def test_a_mistake_is_one_line(case, tmp_path, run):
  flags, message = MISTAKES[case]
  replaced = []
  for flag in flags:
    if flag == 'DATA':
      replaced.append(f'--config.data.name={run[0]["data_name"]}')
    else:
      replaced.append(flag.replace('WORKDIR', str(tmp_path / 'run')))
  assert_one_line(run_here(*replaced), message)
  assert not (tmp_path / 'run' / 'config.json').exists()
