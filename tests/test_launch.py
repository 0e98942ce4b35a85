"""The launchers: what they would run, and what shellcheck has to say."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOCAL = 'launch/local.sh'
ONE = 'python -m gmvq_jax.main'
CPU = 'env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES='


def run(*command, **environment):
  return subprocess.run(
      command,
      cwd=ROOT,
      env=os.environ | environment,
      capture_output=True,
      text=True,
      timeout=60,
  )


@pytest.mark.parametrize('arguments, expected', [
    ([], [f'env {ONE} --config=configs/quickstart.py'
          ' --workdir=runs/quickstart']),
    (['--config=a b', '--workdir=c'], [f'env {ONE} --config=a b --workdir=c']),
    (['--devices=4', '--workdir=c'], [f'{CPU}4 {ONE} --workdir=c']),
    (['--processes=2', '--devices=3', '--workdir=c'], [
        f'{CPU}3 JAX_COORDINATOR_ADDRESS=localhost:1234 JAX_NUM_PROCESSES=2'
        f' JAX_PROCESS_ID={index} {ONE} --distributed --workdir=c'
        for index in (0, 1)
    ]),
])  # fmt: skip
def test_a_dry_run_prints_what_would_be_run(arguments, expected):
  result = run(LOCAL, '--dry-run', *arguments, PORT='1234')
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines() == expected


@pytest.mark.parametrize('argument', ['--processes=0', '--devices=two'])
def test_a_mistake_is_one_line(argument):
  result = run(LOCAL, '--dry-run', argument)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ')
  assert argument in line


def test_help_says_what_there_is():
  text = run(LOCAL, '--help').stdout
  for word in ('--processes=P', '--devices=D', '--dry-run'):
    assert word in text


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='no shellcheck')
def test_shellcheck():
  scripts = [*ROOT.glob('launch/*.sh'), *ROOT.glob('benchmarks/*.sh')]
  result = run('shellcheck', '-x', *map(str, scripts))
  assert result.returncode == 0, result.stdout
