"""The wheel: what is in it, and that it works away from the repository."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
import tiny

from gmvq_jax.runtime import errors
from gmvq_jax.training import command_line

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ('gmvq_jax', 'configs', 'setup.cfg', 'pyproject.toml', 'README.md',
           'LICENSE')  # fmt: skip
NAMES = sorted(path.stem for path in ROOT.glob('configs/*.py'))
# Packages that read, write or plot, and are slow to import.
HEAVY = (
    'PIL',
    'array_record',
    'dm_pix',
    'grain',
    'jinja2',
    'matplotlib',
    'ml_collections',
    'orbax',
    'safetensors',
    'scipy',
    'tensorboardX',
    'tensorflow_datasets',
    'torch',
)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The built wheel, from a copy: setuptools leaves things behind."""
  pytest.importorskip('pip')
  path = tmp_path_factory.mktemp('wheel')
  for name in SOURCES:
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, path / name)
  command = ['wheel', '--no-deps', '--no-build-isolation', '--no-index']
  pip(*command, '--wheel-dir', path / 'dist', path)
  (file,) = (path / 'dist').glob('*.whl')
  return file


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """A folder with the package and its command, and none of its repository."""
  path = tmp_path_factory.mktemp('installed')
  pip('install', '--no-deps', '--no-index', '--target', path, wheel)
  return path


def pip(*arguments):
  command = [sys.executable, '-m', 'pip', '--quiet', *map(str, arguments)]
  result = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert result.returncode == 0, result.stderr


def call(installed, cwd, *command):
  return subprocess.run(
      list(map(str, command)),
      cwd=cwd,
      env=os.environ
      | {'PYTHONPATH': str(installed), 'JAX_NUM_CPU_DEVICES': '1'},
      capture_output=True,
      text=True,
      timeout=300,
  )


def test_all_that_is_needed_is_in_the_wheel(wheel):
  with zipfile.ZipFile(wheel) as file:
    names = set(file.namelist())
    (metadata,) = [name for name in names if name.endswith('/METADATA')]
    metadata = file.read(metadata).decode()
  for path in (ROOT / 'gmvq_jax').rglob('*'):
    if path.is_file() and path.suffix != '.pyc':
      assert path.relative_to(ROOT).as_posix() in names
  assert {f'gmvq_jax/configs/{name}.py' for name in NAMES} <= names
  assert 'gmvq_jax/py.typed' in names
  assert any(name.endswith('/licenses/LICENSE') for name in names)
  tops = {name.partition('/')[0] for name in names}
  assert {top.partition('-')[0] for top in tops} == {'gmvq_jax'}
  assert 'License-Expression: Apache-2.0\n' in metadata


def test_the_command_finds_configurations_away_from_the_repository(
    installed, tmp_path
):
  result = call(
      installed,
      tmp_path,
      sys.executable,
      installed / 'bin' / 'gmvq',
      '--config=cifar10:vqvae',
      '--workdir=run',
      '--config.data.name=array:no.npy',
  )
  assert result.returncode == 2, result.stderr
  (line,) = result.stderr.splitlines()
  assert 'no.npy: there is no such file' in line


@pytest.mark.slow
def test_the_command_is_the_module(installed, tmp_path):
  """In its help too, where absl shows the flags of the module that is run."""
  module, script = (
      call(installed, tmp_path, sys.executable, *command, '--help')
      for command in (['-m', 'gmvq_jax.main'], [installed / 'bin' / 'gmvq'])
  )
  assert module.returncode == script.returncode
  assert module.stdout == script.stdout
  assert '--workdir' in script.stdout


@pytest.mark.slow
def test_a_run_by_name_away_from_the_repository(
    installed, tmp_path, photographs
):
  """It trains, and its report finds its template."""
  data = tiny.save_images(tmp_path, photographs)
  result = call(
      installed,
      tmp_path,
      sys.executable,
      installed / 'bin' / 'gmvq',
      '--config=cifar10:vqvae',
      '--workdir=run',
      f'--config.data.name={data}',
      '--config.num_steps=1',
      '--config.batch_size=8',
      '--config.network.width=8',
      '--config.quantizer.num_codes=16',
  )
  assert result.returncode == 0, result.stderr
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert config['quantizer']['name'] == 'vqvae'
  assert (tmp_path / 'run' / 'report.html').exists()


@pytest.mark.slow
def test_a_configuration_that_loads_another(installed, tmp_path):
  """One method too few shows that the rest was read."""
  result = call(
      installed,
      tmp_path,
      sys.executable,
      '-m',
      'gmvq_jax.compare',
      '--config=table1_cifar10',
      '--workdir=run',
      '--methods=typo',
  )
  assert result.returncode == 2, result.stderr
  assert 'typo' in result.stderr
  assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize('name', NAMES)
def test_names(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert pathlib.Path(command_line.find(name)).read_text() == (
      (ROOT / 'configs' / f'{name}.py').read_text()
  )


def test_a_path_is_a_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').touch()
  (tmp_path / 'cifar10').mkdir()
  assert command_line.find('mine.py') == 'mine.py'
  assert command_line.find('cifar10').endswith('configs/cifar10.py')


@pytest.mark.parametrize('name', ['cifra10', 'configs/no.py', 'cifar10.py', ''])
def test_what_is_neither(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError) as refused:
    command_line.find(name)
  assert str(refused.value) == (
      f'--config={name}: there is no such file, nor is it one of'
      f' {", ".join(NAMES)}'
  )


def test_nothing_heavy_is_imported_before_it_is_used():
  """Only what Flax and Optax import themselves."""
  program = """
import sys, flax, optax
theirs = set(sys.modules)
import gmvq_jax
print(*(set(sys.modules) - theirs))
"""
  command = [sys.executable, '-c', program]
  output = subprocess.run(command, capture_output=True, text=True, check=True)
  ours = {name.split('.')[0] for name in output.stdout.split()}
  assert 'gmvq_jax' in ours
  assert not ours & set(HEAVY)
