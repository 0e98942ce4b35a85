"""The command line: whole programs in processes of their own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tiny

ROOT = pathlib.Path(__file__).parent.parent
CIFAR10 = '--config=configs/cifar10.py'


def command(*flags, module='gmvq_jax.main'):
  return [sys.executable, '-m', module, *map(str, flags)]


def call(*flags, module='gmvq_jax.main', **env):
  return subprocess.run(
      command(*flags, module=module),
      cwd=ROOT,
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'} | env,
      capture_output=True,
      text=True,
      timeout=300,
  )


def start(*flags):
  return subprocess.Popen(
      command(*flags),
      cwd=ROOT,
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  )


@pytest.fixture
def name(tmp_path, photographs):
  return tiny.save_images(tmp_path, photographs)


def records(workdir):
  """Returns metrics.jsonl as far as it is written."""
  try:
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  except FileNotFoundError:
    return []
  return [json.loads(line) for line in lines if line.endswith('}')]


def wait_for_step(process, workdir, step):
  for _ in range(3000):
    if any(r['step'] >= step for r in records(workdir)):
      return
    if process.poll() is not None:
      break
    time.sleep(0.05)
  raise AssertionError(process.communicate())


def without_rate(summary):
  return {k: v for k, v in summary.items() if k != 'images_per_second'}


def test_killed_runs_continue_exactly(name, tmp_path):
  """SIGKILL twice, and Ctrl-C once: parameters and metrics bit for bit."""
  flags = [
      CIFAR10,
      *tiny.flags(
          name, num_steps=240, eval_every_steps=60, checkpoint_every_steps=20
      ),
  ]
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  result = call(*flags, f'--workdir={whole}')
  assert result.returncode == 0, result.stderr
  assert result.stderr == ''

  for step, number in ((30, signal.SIGKILL), (90, signal.SIGINT),
                       (150, signal.SIGKILL)):
    process = start(*flags, f'--workdir={parts}')
    wait_for_step(process, parts, step)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert not (parts / 'summary.json').exists(), 'ended before the signal'
    if number == signal.SIGINT:
      assert process.returncode == 0, err
      assert 'The same command continues.' in out
  result = call(*flags, f'--workdir={parts}')
  assert result.returncode == 0, result.stderr
  assert 'from step 0' not in result.stdout
  summaries = [
      json.loads((d / 'summary.json').read_text()) for d in (whole, parts)
  ]
  assert without_rate(summaries[0]) == without_rate(summaries[1])
  assert records(whole) == records(parts)

  assert result.stdout.endswith(f'Report: {parts}/report.html\n')

  # And what is there can be evaluated, with nothing but its directory.
  result = call('--mode=evaluate', f'--workdir={parts}')
  assert result.returncode == 0, result.stderr
  assert json.loads(result.stdout) == without_rate(summaries[0])


def test_a_damaged_checkpoint_is_named_and_done_again(name, tmp_path):
  flags = [CIFAR10, *tiny.flags(name), f'--workdir={tmp_path}/run']
  once = call(*flags)
  assert once.returncode == 0, once.stderr
  summary = tmp_path / 'run' / 'summary.json'
  before = json.loads(summary.read_text())
  summary.unlink()
  for path in (tmp_path / 'run' / 'checkpoints' / '12').rglob('d/*'):
    path.write_bytes(b'')
  again = call(*flags)
  assert again.returncode == 0, again.stderr
  named, moved = again.stderr.splitlines()
  assert named.startswith('Checkpoint 12')
  assert 'damaged_checkpoints' in moved
  assert 'from step 8' in again.stdout
  assert without_rate(json.loads(summary.read_text())) == without_rate(before)


def test_two_runs_do_not_share_a_directory(name, tmp_path):
  flags = [CIFAR10, *tiny.flags(name, num_steps=100_000)]
  first = start(*flags, f'--workdir={tmp_path}/run')
  try:
    wait_for_step(first, tmp_path / 'run', 1)
    second = call(*flags, f'--workdir={tmp_path}/run')
    assert_one_line(second, 'another run is using it')
  finally:
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
  assert first.returncode == 0, err
  assert 'The same command continues.' in out


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 5 MiB."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=5m', 'tmpfs', str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('not allowed to mount')
  yield disk
  subprocess.run(['umount', '-l', str(disk)], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(name, tmp_path, small_disk):
  """Room for some checkpoints; after room is made the run ends as any other."""
  flags = [
      CIFAR10,
      *tiny.flags(name, num_steps=40, quantizer__num_codes=4096,
                  kmeans__images=300, quantizer__dim=64),
  ]
  result = call(*flags, f'--workdir={small_disk}/run')
  assert result.returncode, result.stdout
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ')
  assert 'No space left' in line or 'checkpoint cannot be written' in line
  larger = ['mount', '-o', 'remount,size=200m', str(small_disk)]
  subprocess.run(larger, check=True)
  result = call(*flags, f'--workdir={small_disk}/run')
  assert result.returncode == 0, result.stderr
  whole = call(*flags, f'--workdir={tmp_path}/whole')
  assert whole.returncode == 0, whole.stderr
  summaries = [
      json.loads((d / 'summary.json').read_text())
      for d in (small_disk / 'run', tmp_path / 'whole')
  ]
  assert without_rate(summaries[0]) == without_rate(summaries[1])


def test_a_read_only_disk_is_one_line(name, small_disk):
  read_only = ['mount', '-o', 'remount,ro', str(small_disk)]
  subprocess.run(read_only, check=True)
  flags = [CIFAR10, *tiny.flags(name), f'--workdir={small_disk}/run']
  assert_one_line(call(*flags), 'cannot be written to')


def test_the_first_run_needs_nothing(tmp_path):
  """The configuration of the README's first command, made short."""
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
  assert result.stdout.endswith(f'Report: {tmp_path}/run/report.html\n')


def assert_one_line(result, message):
  """A mistake is one line that says what was wrong, and exit code 2."""
  assert result.returncode == 2, result
  lines = [line for line in result.stderr.splitlines() if line.strip()]
  assert len(lines) == 1, result.stderr
  assert lines[0].startswith('error: ')
  assert message in lines[0]


MISTAKES = {
    'no flags': ([], '--config is missing'),
    'no workdir': ([CIFAR10], '--workdir is missing'),
    'no such file': (['--config=configs/no.py'], 'no.py: there is no such'),
    'file of no config': (['--config=setup.cfg'], 'cannot be called'),
    'no such file, apart': (['--config', 'no.py'], 'no.py: there is no such'),
    'no such method': ([f'{CIFAR10}:typo'], "name='typo' is unknown"),
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
def test_a_mistake_is_one_line(case, tmp_path, photographs):
  flags, message = MISTAKES[case]
  data_name = tiny.save_images(tmp_path, photographs)
  replaced = []
  for flag in flags:
    if flag == 'DATA':
      replaced.append(f'--config.data.name={data_name}')
    else:
      replaced.append(flag.replace('WORKDIR', str(tmp_path / 'run')))
  result = call(*replaced, JAX_NUM_CPU_DEVICES='8')
  assert_one_line(result, message)
  assert not (tmp_path / 'run' / 'config.json').exists()
