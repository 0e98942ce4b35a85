"""Codes as files."""

import json
import pathlib
import pickle

import grain
import numpy as np
import pytest

import gmvq_jax
from gmvq_jax.runtime import errors
from gmvq_jax.tokenizer import code_files

NAMES = [f'räume/{i}.png' for i in range(7)]


def described(**fields):
  known = code_files.Description(
      tokenizer='abc', num_codes=300, grid=(2, 3), image_shape=(8, 12, 3),
      bits=9, count=7, images='some', identity='x', shard_size=3,
  )  # fmt: skip
  return known._replace(**fields)


@pytest.fixture
def codes(rng):
  return rng.integers(0, 300, (7, 2, 3)).astype(np.int32)


def write(path, codes, **fields):
  """Writes codes in one of the two forms, and returns where they are."""
  description = described(**fields)
  if path.suffix == '.npz':
    code_files.write_npz(path, description, NAMES, codes)
    return path
  path.mkdir()
  code_files.write_description(path, description)
  for shard in range(description.num_shards):
    part = slice(
        shard * description.shard_size, (shard + 1) * description.shard_size
    )
    code_files.write_shard(path, description, shard, NAMES[part], codes[part])
  return path


@pytest.fixture(params=['folder', 'small.npz'])
def path(request, tmp_path, codes):
  return write(tmp_path / request.param, codes)


@pytest.mark.parametrize('bits', [9, 16, 32])
@pytest.mark.parametrize('name', ['folder', 'small.npz'])
def test_what_is_written_is_read(tmp_path, codes, name, bits):
  opened = gmvq_jax.codes.open(write(tmp_path / name, codes, bits=bits))
  assert len(opened) == 7
  assert (opened.num_codes, opened.grid) == (300, (2, 3))
  assert opened.description == described(bits=bits)
  for i in (3, 0, 6, 5, -1, np.int64(2)):
    read_name, grid = opened[i]
    assert read_name == NAMES[i]
    assert grid.dtype == np.int32
    np.testing.assert_array_equal(grid, codes[i])
  names, grids = zip(*opened.__getitems__([6, 1, 1]), strict=True)
  assert list(names) == [NAMES[6], NAMES[1], NAMES[1]]
  np.testing.assert_array_equal(grids, codes[[6, 1, 1]])
  np.testing.assert_array_equal(
      opened.counts(), np.bincount(codes.ravel(), minlength=300)
  )


def test_several_at_once(path, codes):
  opened = code_files.open(path)
  names, grids = opened[2:6]
  assert names == NAMES[2:6]
  np.testing.assert_array_equal(grids, codes[2:6])
  assert grids.dtype == np.int32
  np.testing.assert_array_equal(opened[:][1], codes)
  assert opened[7:][1].shape == (0, 2, 3)
  assert opened.__getitems__([]) == []


def test_small_sets_are_plain_arrays(tmp_path, codes):
  path = write(tmp_path / 'codes.npz', codes, bits=16)
  with np.load(path) as file:
    assert file['codes'].dtype == np.uint16
    np.testing.assert_array_equal(file['codes'], codes)
    assert file['names'].tolist() == NAMES


def test_an_index_beyond_the_last_is_an_error(path):
  opened = code_files.open(path)
  for index in (7, -8):
    with pytest.raises(IndexError):
      opened[index]
  assert [name for name, _ in opened] == NAMES


def test_files_of_a_folder(tmp_path, codes):
  folder = write(tmp_path / 'folder', codes)
  assert sorted(p.name for p in folder.iterdir()) == [
      'codes-00000-of-00003.array_record',
      'codes-00001-of-00003.array_record',
      'codes-00002-of-00003.array_record',
      'codes.json',
  ]


def test_a_record_is_as_documented(tmp_path, codes):
  """The length of the name, the name, six codes of nine bits."""
  from array_record.python import array_record_data_source

  folder = write(tmp_path / 'folder', codes)
  files = sorted(map(str, folder.glob('*.array_record')))
  record = array_record_data_source.ArrayRecordDataSource(files)[4]
  name = NAMES[4].encode()
  assert record[: 2 + len(name)] == len(name).to_bytes(2, 'big') + name
  stream = ''.join(f'{byte:08b}' for byte in record[2 + len(name) :])
  read = [int(stream[9 * i : 9 * i + 9], 2) for i in range(6)]
  assert read == codes[4].ravel().tolist()
  assert len(stream) == 56


def test_grain_reads_them_in_any_order_and_process(path, codes):
  opened = code_files.open(path)
  again = pickle.loads(pickle.dumps(opened))
  np.testing.assert_array_equal(again[5][1], codes[5])
  dataset = grain.MapDataset.source(opened).seed(0).shuffle().repeat(2)
  seen = [name for name, _ in dataset.to_iter_dataset()]
  assert sorted(seen) == sorted(2 * NAMES)
  assert seen[:7] != NAMES
  batches = dataset.map(lambda example: example[1]).batch(4)
  assert batches[0].shape == (4, 2, 3)


def message_of(function, *args):
  with pytest.raises(errors.UserError) as caught:
    function(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_paths_without_codes(tmp_path, codes):
  for name in ('none', 'none.npz'):
    assert name in message_of(code_files.open, tmp_path / name)
  assert 'no codes.json' in message_of(code_files.open, tmp_path)
  folder = write(tmp_path / 'folder', codes)
  (folder / 'codes-00001-of-00003.array_record').unlink()
  assert 'codes-00001-of-00003' in message_of(code_files.open, folder)


@pytest.mark.parametrize(
    'content',
    ['', '[]', '{}', '{"count": "x"}', 'null',
     json.dumps(described(bits=33)._asdict()),
     json.dumps(described(count=0)._asdict()),
     json.dumps(described(num_codes=10**12)._asdict()),
     json.dumps(described(num_codes=513)._asdict()),
     json.dumps(described(grid=(2,))._asdict())],
)
def test_damaged_descriptions(tmp_path, codes, content):
  folder = write(tmp_path / 'folder', codes)
  (folder / 'codes.json').write_text(content)
  assert 'codes.json' in message_of(code_files.open, folder)


@pytest.mark.parametrize('kind', ['shortened', 'flipped', 'emptied', 'swapped'])
def test_damaged_files(tmp_path, codes, kind):
  folder = write(tmp_path / 'folder', codes)
  file = folder / 'codes-00001-of-00003.array_record'
  content = bytearray(file.read_bytes())
  if kind == 'shortened':
    content = content[: len(content) // 2]
  elif kind == 'flipped':
    place = content.index(NAMES[4].encode())
    content[place + 3] ^= 1
  elif kind == 'emptied':
    content = b''
  else:
    other = folder / 'codes-00002-of-00003.array_record'
    content = other.read_bytes()
  file.write_bytes(bytes(content))

  def read():
    return list(code_files.open(folder))

  message = message_of(read)
  assert f'{file}: is damaged' in message
  assert 'delete it' in message


def test_codes_beyond_the_description_are_refused(tmp_path, codes):
  codes[2, 1, 1] = 301
  folder = write(tmp_path / 'folder', codes)
  opened = code_files.open(folder)
  opened[0]
  assert '301' in message_of(lambda: opened[2])


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04' + bytes(50), b'x' * 99])
def test_damaged_npz(tmp_path, content):
  path = tmp_path / 'codes.npz'
  path.write_bytes(content)
  assert 'cannot be read as codes' in message_of(code_files.open, path)
  np.savez(path, names=NAMES, codes=np.zeros((7, 7), np.uint8))
  assert 'cannot be read as codes' in message_of(code_files.open, path)


def test_npz_of_another_length(tmp_path, codes):
  path = tmp_path / 'codes.npz'
  code_files.write_npz(path, described(count=8), NAMES, codes)
  assert '(8,2,3)' in message_of(code_files.open, path)


def test_a_description_of_too_many_files_is_refused_at_once(tmp_path, codes):
  folder = write(tmp_path / 'folder', codes)
  code_files.write_description(folder, described(count=10**12, shard_size=1))
  assert 'is not there' in message_of(code_files.open, folder)


def test_a_small_set_replaces_no_file(tmp_path, codes):
  path = write(tmp_path / 'codes.npz', codes)
  before = path.read_bytes()
  message = message_of(
      code_files.write_npz, path, described(), NAMES, codes[::-1]
  )
  assert 'is there already' in message
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['codes.npz']


def test_nothing_is_left_of_a_failed_write(tmp_path, codes, monkeypatch):
  folder = write(tmp_path / 'folder', codes)
  before = sorted(folder.iterdir())

  def fail(*_):
    raise OSError('No space left on device')

  monkeypatch.setattr(code_files.os, 'replace', fail)
  monkeypatch.setattr(code_files.os, 'link', fail)
  with pytest.raises(OSError, match='No space'):
    code_files.write_shard(folder, described(), 0, NAMES[:3], codes[:3])
  with pytest.raises(OSError, match='No space'):
    code_files.write_npz(folder / 'x.npz', described(), NAMES, codes)
  assert sorted(folder.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_one_line(codes):
  with pytest.raises(OSError, match='/nowhere.*cannot be written'):
    code_files.write_shard(
        pathlib.Path('/nowhere'), described(), 0, NAMES[:3], codes[:3]
    )
