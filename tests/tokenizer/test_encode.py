"""Sets of images to codes and back."""

import json
import time

import numpy as np
from PIL import Image
import pytest

import gmvq_jax
from gmvq_jax.data import named_images
from gmvq_jax.data import preprocess
from gmvq_jax.data.sources import photographs
from gmvq_jax.ops import bits
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.tokenizer import code_files
from gmvq_jax.tokenizer import decode
from gmvq_jax.tokenizer import encode as encode_lib


@pytest.fixture(scope='module')
def tokenizer(trained):
  return gmvq_jax.Tokenizer.load(trained[0])


@pytest.fixture
def images(trained, tmp_path):
  """The path of the images in a file, and they themselves."""
  np.save(tmp_path / 'images.npy', trained[1])
  return f'array:{tmp_path}/images.npy', trained[1]


def encode(tokenizer, name, output, **kwargs):
  loaded = encode_lib.load_images(tokenizer, name)
  return encode_lib.encode(tokenizer, loaded, str(output), **kwargs)


def contents(path):
  return {p.name: p.read_bytes() for p in path.glob('*.array_record')}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('output', ['codes', 'codes.npz', 'deep/er/codes'])
def test_a_set_of_images(tokenizer, images, tmp_path, output, packed):
  name, array = images
  path = tmp_path / output
  summary = encode(tokenizer, name, path, packed=packed, shard_size=25)
  codes = code_files.open(path)
  expected = tokenizer.encode(array)
  assert codes.description.tokenizer == tokenizer.hash
  assert codes.description.image_shape == (16, 16, 3)
  assert codes.description.bits == (5 if packed else 8)
  assert name in codes.description.images
  for i in (0, 24, 25, 59):
    assert codes[i][0] == f'{i:06}'
    np.testing.assert_array_equal(codes[i][1], expected[i])

  counts = np.bincount(expected.ravel(), minlength=24)
  assert summary['images'] == 60
  assert summary['codes'] == 60 * 16
  assert summary['bytes'] == 60 * (10 if packed else 16)
  assert summary['bytes_packed'] == 60 * 10
  assert summary['entropy'] == bits.entropy(counts)
  assert summary['perplexity'] == pytest.approx(2 ** bits.entropy(counts))
  assert summary['grid'] == [4, 4]
  assert summary['bits_per_pixel'] == np.log2(24) / 16
  assert summary['codes_used'] == np.mean(counts > 0)
  assert summary['entropy_bits_per_pixel'] == summary['entropy'] / 16
  length = bits.adaptive_length(counts) / 8
  assert length <= summary['bytes_entropy_coded'] < length + 1
  assert 0 < summary['device_busy'] <= 1
  assert summary['images_per_second'] > 0


def test_it_continues_where_it_was_stopped(
    tokenizer, images, tmp_path, monkeypatch
):
  """Also within a file, of which nothing is left then."""
  name, _ = images
  encode(tokenizer, name, tmp_path / 'whole', shard_size=10)
  path = tmp_path / 'codes'
  real, calls = code_files.write_shard, []

  def stop_at_the_third(*args):
    calls.append(args[2])
    if len(calls) == 3:
      raise KeyboardInterrupt
    real(*args)

  monkeypatch.setattr(code_files, 'write_shard', stop_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    encode(tokenizer, name, path, shard_size=10)
  with pytest.raises(errors.UserError, match='codes-00002-of-00006'):
    code_files.open(path)
  summary = encode(tokenizer, name, path, shard_size=10)
  assert calls == [0, 1, 2, 2, 3, 4, 5]
  assert contents(path) == contents(tmp_path / 'whole')
  assert summary['images_per_second'] > 0

  again = encode(tokenizer, name, path, shard_size=10)
  assert len(calls) == 7, 'nothing was left to do'
  assert 'images_per_second' not in again
  assert again['entropy'] == summary['entropy']


def test_a_small_set_is_not_encoded_twice(tokenizer, images, tmp_path):
  name, _ = images
  path = tmp_path / 'codes.npz'
  encode(tokenizer, name, path)
  before = path.stat().st_mtime_ns
  assert 'images_per_second' not in encode(tokenizer, name, path)
  assert path.stat().st_mtime_ns == before


def test_a_failing_image_leaves_whole_files(tokenizer, images, tmp_path):
  name, array = images
  loaded = encode_lib.load_images(tokenizer, name)

  class Broken:
    shape = array.shape
    identity = loaded.images.identity

    def __len__(self):
      return len(array)

    def __getitem__(self, index):
      if isinstance(index, slice) and index.start == 40:
        raise errors.UserError('image 40: no longer there')
      return array[index]

  with pytest.raises(errors.UserError, match='image 40'):
    encode_lib.encode(
        tokenizer,
        loaded._replace(images=Broken()),
        str(tmp_path / 'codes'),
        shard_size=20,
    )
  encode(tokenizer, name, tmp_path / 'codes', shard_size=20)
  encode(tokenizer, name, tmp_path / 'whole', shard_size=20)
  assert contents(tmp_path / 'codes') == contents(tmp_path / 'whole')


def message_of(function, *args, **kwargs):
  with pytest.raises(errors.UserError) as caught:
    function(*args, **kwargs)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_outputs_that_hold_something_else_are_refused(
    tokenizer, images, tmp_path
):
  name, array = images
  np.save(tmp_path / 'other.npy', array[::-1])
  path = tmp_path / 'codes'
  encode(tokenizer, name, path)
  before = contents(path)
  other = f'array:{tmp_path}/other.npy'
  assert 'or have changed since' in message_of(encode, tokenizer, other, path)
  assert 'bits is 8, not 5' in message_of(
      encode, tokenizer, name, path, packed=True
  )
  assert contents(path) == before
  small = tmp_path / 'codes.npz'
  encode(tokenizer, name, small)
  assert 'or have changed since' in message_of(encode, tokenizer, other, small)
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').write_text('')
  assert 'holds thesis.tex' in message_of(
      encode, tokenizer, name, tmp_path / 'mine'
  )
  assert 'cannot be written' in message_of(
      encode, tokenizer, name, tmp_path / 'images.npy' / 'codes'
  )


def test_codes_of_another_tokenizer_are_not_added_to(
    tokenizer, images, tmp_path, monkeypatch
):
  name, _ = images
  encode(tokenizer, name, tmp_path / 'codes', shard_size=20)
  (tmp_path / 'codes' / 'codes-00001-of-00003.array_record').unlink()
  other = gmvq_jax.Tokenizer(tokenizer.stored)
  other.hash = 'f' * 64
  assert 'tokenizer is' in message_of(
      encode, other, name, tmp_path / 'codes', shard_size=20
  )
  assert len(contents(tmp_path / 'codes')) == 2


def test_unreadable_images_are_named_and_skipped(
    tokenizer, folder, tmp_path, caplog
):
  (folder / 'bad.png').write_bytes(b'no image')
  loaded = encode_lib.load_images(tokenizer, f'folder:{folder}', size=16)
  assert 'bad.png' in caplog.text
  assert len(loaded.images) == len(loaded.files) == 3


def test_images_that_changed_are_not_mixed(tokenizer, folder, tmp_path):
  """One that is between those that a digest looks at; or another name."""
  array = np.zeros((1000, 16, 16, 3), np.uint8)
  np.save(tmp_path / 'x.npy', array)
  name, path = f'array:{tmp_path}/x.npy', tmp_path / 'codes'
  encode(tokenizer, name, path)
  array[1] = 9
  time.sleep(0.05)
  np.save(tmp_path / 'x.npy', array)
  assert 'or have changed since' in message_of(encode, tokenizer, name, path)

  def encode_folder():
    loaded = encode_lib.load_images(tokenizer, f'folder:{folder}', size=16)
    encode_lib.encode(tokenizer, loaded, str(tmp_path / 'of_folder'))

  encode_folder()
  encode_folder()
  (folder / 'a.jpg').rename(folder / 'a2.jpg')
  assert 'or have changed since' in message_of(encode_folder)


def test_files_are_smaller_where_grids_are_large(tokenizer):
  assert encode_lib._shard_size((8, 8)) == 4096
  assert encode_lib._shard_size((64, 64)) == 256
  assert encode_lib._shard_size((4096, 4096)) == 1


def test_two_runs_do_not_write_into_one_folder(tokenizer, images, tmp_path):
  name, _ = images
  path = tmp_path / 'codes'
  path.mkdir()
  with files.lock(path):
    assert 'another run is using it' in message_of(
        encode, tokenizer, name, path
    )
  encode(tokenizer, name, path)


def test_little_is_read_ahead(tokenizer, images, tmp_path, monkeypatch):
  """While a file is being written, no more than threads and buffer hold."""
  name, array = images
  loaded = encode_lib.load_images(tokenizer, name)
  read, seen = [], []

  class Counted:
    shape = array.shape

    def __len__(self):
      return len(array)

    def __getitem__(self, index):
      if isinstance(index, slice):
        read.append(index.start)
      return array[index]

  real = code_files.write_shard

  def slow(*args):
    if not seen:
      time.sleep(0.5)
    seen.append(len(read))
    real(*args)

  monkeypatch.setattr(code_files, 'write_shard', slow)
  loaded = loaded._replace(images=Counted())
  encode_lib.encode(tokenizer, loaded, str(tmp_path / 'codes'), shard_size=3)
  assert len(seen) == 20
  assert seen[0] <= 11, seen


def test_rates_are_those_of_the_clock(monkeypatch):
  """Busy from 1 to 5 and from 8 to 9, by two threads at first; read at 11."""
  meter = encode_lib._Meter()
  times = iter([1.0, 2.0, 4.0, 5.0, 8.0, 9.0, 11.0])
  monkeypatch.setattr(encode_lib.time, 'perf_counter', lambda: next(times))
  with meter.busy(), meter.busy():
    pass
  with meter.busy():
    pass
  assert meter.rates(30) == {'images_per_second': 3.0, 'device_busy': 0.5}


def test_images_that_do_not_fit_are_refused(tokenizer, tmp_path):
  np.save(tmp_path / 'grey.npy', np.zeros((3, 16, 16), np.uint8))
  np.save(tmp_path / 'odd.npy', np.zeros((3, 16, 18, 3), np.uint8))
  np.save(tmp_path / 'none.npy', np.zeros((0, 16, 16, 3), np.uint8))

  def message(name):
    return message_of(encode_lib.load_images, tokenizer, name)

  assert '1 channels' in message(f'array:{tmp_path}/grey.npy')
  assert '16 x 18' in message(f'array:{tmp_path}/odd.npy')
  assert 'there must be one' in message(f'array:{tmp_path}/none.npy')
  for name in ('images', 'folder:', ':test', ''):
    assert 'give folder:PATH' in message(name)
  assert 'no such folder' in message(f'folder:{tmp_path}/none')
  assert 'holds no image' in message(f'folder:{tmp_path}')
  assert 'no such file' in message(f'array:{tmp_path}/none.np')
  assert 'there is no such split' in message('photographs:all')


@pytest.fixture
def folder(tmp_path, rng):
  """Images of three sizes, in folders."""
  path = tmp_path / 'folder'
  for name, shape in (
      ('b/one.png', (20, 30)), ('a.jpg', (40, 24)), ('b/c/ä ö.png', (16, 16)),
  ):  # fmt: skip
    file = path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels_of = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels_of).save(file)
  return path


def test_a_folder_keeps_its_names(tokenizer, folder, tmp_path):
  loaded = encode_lib.load_images(tokenizer, f'folder:{folder}', size=16)
  assert loaded.files == ('a.jpg', 'b/c/ä ö.png', 'b/one.png')
  path = tmp_path / 'codes'
  encode_lib.encode(tokenizer, loaded, str(path))
  codes = code_files.open(path)
  assert [name for name, _ in codes] == list(loaded.files)
  np.testing.assert_array_equal(
      codes[1][1], tokenizer.encode(folder / 'b/c/ä ö.png')[0]
  )
  decode.decode(tokenizer, codes, str(tmp_path / 'decoded'))
  found = {
      p.relative_to(tmp_path / 'decoded').as_posix()
      for p in (tmp_path / 'decoded').rglob('*.png')
  }
  assert found == {'a.jpg.png', 'b/c/ä ö.png.png', 'b/one.png.png'}


def test_sizes_are_those_of_training_unless_given(tokenizer, folder):
  with pytest.raises(errors.UserError, match='3 sizes'):
    encode_lib.load_images(tokenizer, f'folder:{folder}')
  loaded = encode_lib.load_images(
      tokenizer, f'folder:{folder}', crop=16, size=32
  )
  assert loaded.images.shape == (3, 32, 32, 3)


def test_arrays_are_cropped_and_resized_too(tokenizer, images, trained):
  name, _ = images
  loaded = encode_lib.load_images(tokenizer, name, crop=12, size=8)
  assert loaded.images.shape == (60, 8, 8, 3)
  expected = Image.fromarray(trained[1][3]).crop((2, 2, 14, 14))
  expected = expected.resize((8, 8), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(loaded.images[3:4][0], expected)
  message = message_of(encode_lib.load_images, tokenizer, name, crop=20)
  assert 'smaller than the crop of 20' in message


def test_arrays_in_a_file(trained, tmp_path):
  np.savez(tmp_path / 'x.npz', one=trained[1], two=trained[1][:3])

  def load(array):
    name = f'array:{tmp_path}/x.npz{array}'
    return named_images.load(name, preprocess.Shape())

  assert load(':two').images.shape == (3, 16, 16, 3)
  assert 'one, two' in message_of(load, '')
  assert 'one, two' in message_of(load, ':three')


def test_photographs_by_split(monkeypatch):
  monkeypatch.setattr(photographs, '_COUNTS', (60, 30, 40))
  loaded = named_images.load(
      'photographs:validation', preprocess.Shape(size=16)
  )
  assert loaded.images.shape == (30, 16, 16, 3)
  assert loaded.name(3) == 'validation/000003'


def test_the_description_is_json_that_anyone_can_read(
    tokenizer, images, tmp_path
):
  encode(tokenizer, images[0], tmp_path / 'codes')
  fields = json.loads((tmp_path / 'codes' / 'codes.json').read_text())
  assert fields['grid'] == [4, 4]
  assert fields['num_codes'] == 24
  assert fields['tokenizer'] == tokenizer.hash
