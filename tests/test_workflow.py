"""Continuous integration: the Pythons that setup.cfg promises, by test.sh."""

import configparser
import os
import pathlib

import yaml

ROOT = pathlib.Path(__file__).parents[1]
VERSIONS = ['3.11', '3.12', '3.13']


def workflow():
  path = ROOT / '.github' / 'workflows' / 'tests.yml'
  # To YAML 1.1, `on` is true.
  return yaml.load(path.read_text(), yaml.BaseLoader)


def test_it_runs_the_test_command_for_each_python():
  job = workflow()['jobs']['tests']
  assert job['strategy']['matrix']['python'] == VERSIONS
  python = next(
      step['with']
      for step in job['steps']
      if step.get('uses', '').startswith('actions/setup-python@')
  )
  assert python['python-version'] == '${{ matrix.python }}'
  assert (ROOT / python['cache-dependency-path']).exists()
  (command,) = [step['run'] for step in job['steps'] if 'run' in step]
  assert command == 'launch/test.sh'
  assert os.access(ROOT / command, os.X_OK)


def test_it_may_only_read_and_does_not_run_forever():
  assert set(workflow()['on']) == {'push', 'pull_request'}
  assert workflow()['permissions'] == {'contents': 'read'}
  assert workflow()['concurrency']['cancel-in-progress'] == 'true'
  assert 0 < int(workflow()['jobs']['tests']['timeout-minutes']) <= 120


def test_setup_cfg_promises_these_pythons():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  assert setup['options']['python_requires'] == f'>={VERSIONS[0]}'
  prefix = 'Programming Language :: Python :: 3.'
  classifiers = setup['metadata'].get('classifiers', '').splitlines()
  named = [line.split()[-1] for line in classifiers if prefix in line]
  assert named == VERSIONS
