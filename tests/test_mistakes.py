"""Mistakes that users make: whole command lines, and the line each gets."""

import json
from unittest import mock

from absl import app
import commands
import jax
import numpy as np
import pytest
import tiny

from gmvq_jax import data
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.runtime import program
from gmvq_jax.training import command_line

CIFAR10 = '--config=configs/cifar10.py:gmvq+entropy'
# The arguments, and what is said. What begins with no dash is a field of a run
# that would be right without; DIR is `folder`.
MISTAKES = {
    # The configuration.
    'field of another method': (
        ['--config=cifar10:vqvae', '--config.quantizer.gamma=0.1'],
        '--config.quantizer.gamma: there is no such field; there is',
    ),
    'a comparison': (
        ['--config=configs/table1_cifar10.py', '--workdir=DIR/run'],
        "config.compare.methods=('gmvq', ",
    ),
    'no value': (
        [f'{CIFAR10}', '--config.batch_size'],
        'Missing value for flag --config.batch_size',
    ),
    'seed': (['seed=4294967296'], 'config.seed=4294967296: must be at least 0'),
    'too many halvings': (
        ['network.num_downsamplings=5'],
        'images of 16 x 16 cannot be halved that often',
    ),
    'more than the data': (
        ['batch_size=512'],
        'config.batch_size=512: more than the 480 training images',
    ),
    'unknown loss': (['reconstruction_loss=huber'], "'huber': is unknown"),
    'loss that is no function': (
        ['reconstruction_loss=math:pi'],
        'must be an importable function',
    ),
    # The data.
    'path of two lines': (['data.name=array:a\nb.npy'], 'there is no such fil'),
    'empty folder': (['data.name=folder:DIR/empty'], 'holds no image files'),
    'damaged file': (['data.name=array:DIR/cut.npz'], 'cannot be read as'),
    'numbers of a kind': (
        ['data.name=array:DIR/floats.npy'],
        'holds float32 of shape (20, 16, 16, 3); images must be uint8',
    ),
    'not in the directory': (
        ['data.name=mnist', 'data.dir=DIR/empty'],
        'not found in DIR/empty',
    ),
    # The work directory.
    'no home': (['--workdir=~nobody-of/run'], '--workdir=~nobody-of/run: cann'),
    'report before training': (
        ['--mode=report', '--workdir=DIR/started'],
        'there is no checkpoint yet',
    ),
    'damaged config.json': (
        ['--mode=evaluate', '--workdir=DIR/damaged'],
        'config.json: cannot be read',
    ),
    'config.json of a list': (
        ['--workdir=DIR/list'],
        'config.json: cannot be read (no JSON object)',
    ),
    'damaged summary.json': (
        ['--workdir=DIR/started'],
        'summary.json: cannot be read',
    ),
    'from what is no run': (['init_from=DIR/empty'], 'holds no config.json'),
    # The tokenizer.
    'no output': (
        ['--mode=encode', '--input=cifar10:test'],
        '--output is missing',
    ),
    'a flag of another mode': (
        ['--mode=evaluate', '--output=DIR/x'],
        '--output=DIR/x: is not for --mode=evaluate, which takes --workdir',
    ),
    'no tokenizer': (
        ['--mode=encode', '--input=cifar10:test', '--output=DIR/x',
         '--workdir=DIR/empty'],
        'DIR/empty: holds no config.json',
    ),
    'an untrained tokenizer': (
        ['--mode=export', '--output=DIR/x', '--workdir=DIR/started'],
        'there is no checkpoint yet',
    ),
    'nobody to join': (
        ['--workdir=DIR/run', '--distributed'],
        '--distributed: the processes of the run are not found',
    ),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, photographs):
  """The directory DIR."""
  folder = tmp_path_factory.mktemp('mistakes')
  (folder / 'empty').mkdir()
  np.save(folder / 'floats.npy', np.zeros((20, 16, 16, 3), np.float32))
  name = tiny.save_images(folder, photographs)
  whole = (folder / 'images.npz').read_bytes()
  (folder / 'cut.npz').write_bytes(whole[: len(whole) // 2])
  config = json.dumps(tiny.config(name).to_dict())
  for run, content in {
      'started': config,
      'damaged': config[:100],
      'list': f'[{config}]',
  }.items():
    (folder / run).mkdir()
    (folder / run / 'config.json').write_text(content)
  (folder / 'started' / 'summary.json').write_text('{"mse": 0.0')
  return folder


@pytest.mark.parametrize('case', MISTAKES)
def test_a_command_line_with_a_mistake_gets_one_line(case, folder):
  arguments, said = MISTAKES[case]
  whole = [argument for argument in arguments if argument.startswith('-')]
  fields = [f'--config.{a}' for a in arguments if a not in whole]
  begins = {argument.partition('=')[0] for argument in whole}
  first = []
  if not begins & {'--config', '--mode'}:
    first = [CIFAR10, *tiny.flags(f'array:{folder}/images.npz')]
  if '--workdir' not in begins:
    first.append(f'--workdir=DIR/{case}')
  flags = [a.replace('DIR', str(folder)) for a in first + whole + fields]
  # Processes that never met cannot be forgotten by this one.
  run = commands.call if '--distributed' in flags else commands.run_here
  commands.assert_one_line(run(*flags), said.replace('DIR', str(folder)))


@pytest.mark.parametrize('content', ['[]', '1', '{"a.b": 1}', '{"__init__": 1}',
                                     '[' * 100_000, '\0', '9' * 5000])
def test_a_damaged_config_json_is_one_line(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(errors.UserError, match='config.json: cannot be read'):
    files.read_config(str(tmp_path))


def test_a_home_of_nobody_is_one_line():
  for use in (data.load, files.read_config, files.create):
    kind = 'folder:' if use is data.load else ''
    with pytest.raises(errors.UserError, match='~nobody-of/run'):
      use(f'{kind}~nobody-of/run')


def test_images_without_pixels_are_refused(tmp_path):
  np.save(tmp_path / 'flat.npy', np.zeros((20, 0, 16, 3), np.uint8))
  with pytest.raises(errors.UserError, match=r'of shape \(20, 0, 16, 3\)'):
    data.load(f'array:{tmp_path}/flat.npy')


def test_a_config_must_return_a_config_dict(tmp_path):
  (tmp_path / 'dictionary.py').write_text('def get_config(): return {}')
  with pytest.raises(errors.UserError, match='a dict, no ConfigDict'):
    command_line.parse(['', f'--config={tmp_path}/dictionary.py'])


@pytest.mark.parametrize('error', [
    MemoryError('Unable to allocate 9 EiB'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nof a GPU'),
    jax.errors.JaxRuntimeError('INTERNAL: Error: Out of memory allocating 9.'),
    RuntimeError("Unable to initialize backend 'cuda': no jaxlib of that"),
    OSError('two\nlines'),
    errors.UserError('two\nlines'),
])
def test_what_ends_a_program_is_one_line(error, capsys):
  with (
      mock.patch.object(app, 'run', side_effect=error),
      mock.patch.object(program, '_quiet'),
      pytest.raises(SystemExit) as exited,
  ):
    command_line.run(print)
  assert exited.value.code in (1, 2)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')


def test_a_mistake_of_ours_is_no_users():
  error = jax.errors.JaxRuntimeError('INTERNAL: a bug')
  with (
      mock.patch.object(app, 'run', side_effect=error),
      mock.patch.object(program, '_quiet'),
      pytest.raises(jax.errors.JaxRuntimeError),
  ):
    command_line.run(print)
