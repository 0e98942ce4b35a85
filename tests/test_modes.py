"""The modes of the command line that make a tokenizer of a run."""

import json
import signal

import commands
import numpy as np
from PIL import Image
import pytest

import gmvq_jax
from gmvq_jax import commands as commands_lib
from gmvq_jax.runtime import errors
from gmvq_jax.tokenizer import code_files

NOTHING = commands_lib.Options(None, '', '', '', False, 0, None, None)


def call(*flags):
  result = commands.run_here(*flags)
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_there_and_back_again(trained, tmp_path):
  """Export, then encode, decode and reconstruct with what was exported."""
  workdir, images = trained
  np.save(tmp_path / 'images.npy', images)
  source = f'--input=array:{tmp_path}/images.npy'
  call('--mode=export', f'--workdir={workdir}', f'--output={tmp_path}/export')
  tokenizer = f'--workdir={tmp_path}/export'
  out = call(
      '--mode=encode', tokenizer, source, f'--output={tmp_path}/codes',
      '--packed',
  )  # fmt: skip
  summary = json.loads(out)
  assert summary['images'] == 60
  assert summary['bits_per_code'] == 5
  loaded = gmvq_jax.Tokenizer.load(workdir)
  codes = gmvq_jax.codes.open(tmp_path / 'codes')
  np.testing.assert_array_equal(codes[7][1], loaded.encode(images)[7])

  sheet = tmp_path / 'sheet.png'
  call(
      '--mode=decode', f'--workdir={workdir}', f'--input={tmp_path}/codes',
      f'--output={sheet}', '--limit=4',
  )  # fmt: skip
  assert Image.open(sheet).size == (34, 34)
  out = call(
      '--mode=reconstruct', tokenizer, source,
      f'--output={tmp_path}/page.html', '--limit=3',
  )  # fmt: skip
  assert json.loads(out)['images'] == 3
  assert (tmp_path / 'page.html').exists()


@pytest.fixture(scope='module')
def many(trained, tmp_path_factory):
  """What encodes more images than a file of codes holds, and its files."""
  path = tmp_path_factory.mktemp('many')
  np.save(path / 'many.npy', np.tile(trained[1], (150, 1, 1, 1)))
  flags = [
      '--mode=encode',
      f'--workdir={trained[0]}',
      f'--input=array:{path}/many.npy',
  ]
  call(*flags, f'--output={path}/codes')
  return flags, files_of(path / 'codes')


def files_of(path):
  return {p.name: p.read_bytes() for p in path.glob('*.array_record')}


def test_killed_encoding_continues(many, tmp_path):
  """SIGKILL, then Ctrl-C, each after another file; then to the end."""
  flags, whole = many
  assert len(whole) == 3
  flags = [*flags, f'--output={tmp_path}/codes']
  commands.kill_after(
      1, 'gmvq_jax.tokenizer.code_files', 'write_shard', *flags
  )
  assert len(files_of(tmp_path / 'codes')) == 1
  with commands.signal_after(1, code_files, 'write_shard', signal.SIGINT):
    result = commands.run_here(*flags)
  assert result.returncode == 130
  assert result.stderr.splitlines()[-1] == (
      'error: interrupted; the same command continues'
  )
  assert len(files_of(tmp_path / 'codes')) == 2
  call(*flags)
  assert files_of(tmp_path / 'codes') == whole
  assert {
      p.suffix for p in (tmp_path / 'codes').iterdir() if p.name != '.lock'
  } == {'.json', '.array_record'}


@pytest.mark.slow
def test_two_processes_share_the_work(many, tmp_path):
  flags, whole = many
  first, second = commands.finish_processes(
      commands.start_processes([*flags, f'--output={tmp_path}/codes'], 2, 2)
  )
  assert files_of(tmp_path / 'codes') == whole
  # Gloo writes to standard output too.
  assert json.loads(first[first.index('{') :])['images'] == 9000
  assert '{' not in second  # Only the first process prints.


def test_messages_speak_of_the_flags_of_the_mode(trained, tmp_path):
  (tmp_path / 'photos').mkdir()
  for side in (16, 20):
    Image.new('RGB', (side, side)).save(tmp_path / 'photos' / f'{side}.png')
  options = NOTHING._replace(
      workdir=str(trained[0]),
      input=f'folder:{tmp_path}/photos',
      output=f'{tmp_path}/codes',
  )
  with pytest.raises(errors.UserError) as caught:
    commands_lib.MODES['encode'].run(options)
  assert 'give --size=SIDE' in str(caught.value)
  assert f'--input=folder:{tmp_path}/photos: images' in str(caught.value)
  commands_lib.MODES['encode'].run(options._replace(crop=12, size=8))
  codes = gmvq_jax.codes.open(tmp_path / 'codes')
  assert codes.description.image_shape == (8, 8, 3)
  assert len(codes) == 2


@pytest.mark.parametrize('name', commands_lib.MODES)
def test_what_a_mode_needs_is_named(name):
  with pytest.raises(errors.UserError, match='--[a-z]+ is missing; [a-z]+'):
    commands_lib.check(name, NOTHING)


@pytest.mark.parametrize(
    'name, given',
    [
        ('train', {'input': 'x'}),
        ('evaluate', {'packed': True}),
        ('decode', {'size': 8}),
        ('export', {'limit': 3}),
        ('encode', {'config': 'x'}),
        ('encode', {'limit': 3}),
    ],
)
def test_what_is_not_for_a_mode_is_named(name, given):
  whole = NOTHING._replace(workdir='x')
  if name == 'train':
    whole = whole._replace(config='x')
  if name not in ('train', 'evaluate'):
    whole = whole._replace(output='x')
  if name in ('encode', 'decode'):
    whole = whole._replace(input='x')
  commands_lib.check(name, whole)
  (option,) = given
  with pytest.raises(errors.UserError, match=f'--{option}.* is not for'):
    commands_lib.check(name, whole._replace(**given))
