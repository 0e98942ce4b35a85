"""Loading: arrays, TensorFlow Datasets, and where images are kept."""

import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
from PIL import Image
import pytest
import tfds_files

from gmvq_jax import data
from gmvq_jax.data import loading
from gmvq_jax.runtime import errors

KEEPS = ('device', 'memory', 'stream')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def load(name, **fields):
  splits, _ = data.load(name, **fields)
  return splits


def refused(message, name, **fields):
  with pytest.raises(errors.UserError, match=message) as caught:
    load(name, **fields)
  assert '\n' not in str(caught.value)


# NumPy files.


def test_npy_is_divided_into_three(tmp_path):
  values = np.arange(50, dtype=np.uint8)[:, None, None]
  images = np.broadcast_to(values, (50, 4, 4))
  np.save(tmp_path / 'a.npy', images)
  splits = load(f'array:{tmp_path}/a.npy')
  assert [s.shape for s in splits] == [
      (40, 4, 4, 1),
      (5, 4, 4, 1),
      (5, 4, 4, 1),
  ]
  values = np.concatenate([s[:, 0, 0, 0] for s in splits])
  assert sorted(values) == list(range(50))
  # Always the same, in every version: else training sees test images.
  assert list(splits.validation[:, 0, 0, 0]) == [7, 39, 49, 5, 14]
  assert list(splits.test[:, 0, 0, 0]) == [29, 41, 33, 15, 31]


def test_npz_keeps_its_splits(tmp_path, photographs):
  parts = dict(
      train=photographs[:20], validation=photographs[20:25],
      test=photographs[25:30],
  )
  np.savez(tmp_path / 'a.npz', **parts)
  splits = load(f'array:{tmp_path}/a.npz')
  for name, expected in parts.items():
    np.testing.assert_array_equal(getattr(splits, name), expected)


def test_a_streamed_npy_is_read_only_where_it_is_asked_for(tmp_path):
  shape = (1000, 256, 256, 3)
  np.lib.format.open_memmap(tmp_path / 'a.npy', 'w+', np.uint8, shape)
  tracemalloc.start()
  splits = load(f'array:{tmp_path}/a.npy', keep='stream')
  assert splits.train.shape == (800, 256, 256, 3)
  assert splits.test[np.array([5, 99])].shape == (2, 256, 256, 3)
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < np.prod(shape) / 50


def test_arrays_need_no_tensorflow_datasets(tmp_path, photographs):
  np.save(tmp_path / 'a.npy', photographs[:20])
  program = f"""
import sys
for name in ('tensorflow', 'tensorflow_datasets'):
  sys.modules[name] = None
from gmvq_jax import data
from gmvq_jax.training import trainer
splits, _ = data.load('array:{tmp_path}/a.npy')
assert len(splits.train) == 16
"""
  subprocess.run([sys.executable, '-c', program], check=True)


BAD_ARRAYS = {
    'floats': (np.zeros((4, 8, 8, 3), np.float32), 'must be uint8'),
    'flat': (np.zeros((4, 8), np.uint8), 'must be uint8'),
    'two channels': (np.zeros((4, 8, 8, 2), np.uint8), 'must be uint8'),
    'alpha': (np.zeros((4, 8, 8, 4), np.uint8), 'must be uint8'),
    'objects': (np.array([{}, None]), 'cannot be read'),
    'empty': (np.zeros((0, 8, 8, 3), np.uint8), 'is empty'),
    'single': (np.zeros((1, 8, 8, 3), np.uint8), 'is empty'),
}


@pytest.mark.parametrize('name', BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path, name):
  array, message = BAD_ARRAYS[name]
  np.save(tmp_path / 'a.npy', array, allow_pickle=True)
  refused(message, f'array:{tmp_path}/a.npy')


def test_bad_array_files_are_refused(tmp_path, photographs):
  (tmp_path / 'text.npy').write_text('hello')
  (tmp_path / 'text.npz').write_text('hello')
  np.save(tmp_path / 'cut.npy', photographs)
  with open(tmp_path / 'cut.npy', 'r+b') as file:
    file.truncate(1000)
  np.savez(tmp_path / 'two.npz', train=photographs, test=photographs)
  np.savez(
      tmp_path / 'mixed.npz',
      train=photographs,
      validation=photographs,
      test=photographs[:, :8],
  )
  np.savez(
      tmp_path / 'empty.npz',
      train=photographs,
      validation=photographs[:0],
      test=photographs,
  )
  for name, message in [
      ('text.npy', 'cannot be read'),
      ('text.npz', 'cannot be read'),
      ('cut.npy', 'cannot be read'),
      ('none.npy', 'there is no such file'),
      ('two.npz', 'must hold exactly train, validation, test'),
      ('mixed.npz', 'different shapes'),
      ('empty.npz', 'its validation split is empty'),
  ]:
    refused(message, f'array:{tmp_path}/{name}')


@pytest.mark.parametrize('field', ['crop', 'size'])
def test_arrays_are_used_as_they_are(tmp_path, photographs, field):
  np.save(tmp_path / 'a.npy', photographs)
  message = f'config.data.{field}=8: array:.* is used as it is; give 0'
  refused(message, f'array:{tmp_path}/a.npy', **{field: 8})


# Where images are kept.


@pytest.fixture
def source(request, tmp_path, photographs):
  """The name of 40 images of a kind of source, and other fields."""
  if request.param == 'tfds':
    write_tfds(tmp_path / 'tfds', photographs[:40])
    return 'tiny_photos', {'dir': str(tmp_path / 'tfds')}
  if request.param == 'folder':
    (tmp_path / 'images').mkdir()
    for i, image in enumerate(photographs[:40]):
      Image.fromarray(image).save(tmp_path / 'images' / f'{i}.png')
    return f'folder:{tmp_path}/images', {}
  if request.param == 'npy':
    np.save(tmp_path / 'a.npy', photographs[:40])
    return f'array:{tmp_path}/a.npy', {}
  train, validation, test = np.split(photographs[:40], [27, 30])
  np.savez(
      tmp_path / 'a.npz', train=train, validation=validation, test=test
  )
  return f'array:{tmp_path}/a.npz', {}


SOURCES = pytest.mark.parametrize(
    'source', ['tfds', 'folder', 'npy', 'npz'], indirect=True
)


@SOURCES
def test_images_are_the_same_wherever_they_are_kept(source):
  name, fields = source
  on_device, in_memory, in_files = (
      load(name, keep=keep, **fields) for keep in KEEPS
  )
  again = load(name, keep='memory', **fields)  # From the cache.
  some = np.array([2, 0, 2, 1])
  for i, images in enumerate(in_memory):
    assert isinstance(images, np.ndarray)
    assert images.dtype == np.uint8
    assert in_files[i].shape == images.shape
    assert in_files[i].nbytes == images.nbytes
    for other in (on_device[i], in_files[i][:], again[i]):
      np.testing.assert_array_equal(other, images)
    some = some % len(images)
    np.testing.assert_array_equal(in_files[i][some], images[some])
    np.testing.assert_array_equal(in_files[i][-2:], images[-2:])


@pytest.mark.parametrize('device_bytes, memory, expected', [
    (0, 0, 'device'),
    (-1, 0, 'memory'),
    (-1, -1, 'stream'),
])
def test_where_images_are_kept_follows_from_their_size(
    tmp_path, photographs, monkeypatch, device_bytes, memory, expected
):
  """Up to a limit they are on devices, and up to half of the memory in it."""
  images = photographs[:40]
  np.save(tmp_path / 'a.npy', images)
  pages = {'SC_PAGE_SIZE': 2, 'SC_PHYS_PAGES': images.nbytes + memory}
  monkeypatch.setattr(loading.os, 'sysconf', pages.get)
  monkeypatch.setattr(loading, '_DEVICE_BYTES', images.nbytes + device_bytes)
  splits, on_device = data.load(f'array:{tmp_path}/a.npy')
  assert on_device == (expected == 'device')
  assert isinstance(splits.train, data.Lazy) == (expected == 'stream')
  for keep in KEEPS:  # What is configured goes before.
    splits, on_device = data.load(f'array:{tmp_path}/a.npy', keep=keep)
    assert on_device == (keep == 'device')
    assert isinstance(splits.train, data.Lazy) == (keep == 'stream')


# TensorFlow Datasets.


@pytest.fixture
def tfds_dir(tmp_path, photographs):
  """A data set `tiny_photos` of 40 images, as array_record."""
  write_tfds(tmp_path / 'tfds', photographs[:40])
  return tmp_path / 'tfds'


def write_tfds(directory, images, features=None):
  """Writes the files that `tfds.data_source` reads, without TensorFlow.

  A quarter of the images is the test split.
  """
  tfds = pytest.importorskip('tensorflow_datasets')
  image = tfds.features.Image(shape=(None, None, images[0].shape[-1]))
  quarter = len(images) // 4
  examples = [tfds_files.example(image, label=3) for image in images]
  splits = {'train': examples[:-quarter], 'test': examples[-quarter:]}
  features = features or {'image': image}
  tfds_files.write(directory, 'tiny_photos', '1.0.0', features, splits)


def test_tfds_is_read_and_cached(tfds_dir, photographs, cache):
  splits = load('tiny_photos', dir=str(tfds_dir))
  assert [len(s) for s in splits] == [27, 3, 10]
  np.testing.assert_array_equal(np.concatenate(splits), photographs[:40])
  cached = sorted(cache.rglob('*.npy'))
  assert len(cached) == 3
  # A damaged cache is decoded anew.
  for path in cached:
    path.write_bytes(path.read_bytes()[:100])
  again = load('tiny_photos', dir=str(tfds_dir))
  np.testing.assert_array_equal(again.test, splits.test)


def test_tfds_is_found_by_the_environment(tfds_dir, photographs, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_dir))
  splits = load('tiny_photos', validation='train[:2]', test='test[5:]')
  np.testing.assert_array_equal(splits.validation, photographs[:2])
  np.testing.assert_array_equal(splits.test, photographs[35:40])


def test_tfds_written_anew_is_read_anew(tfds_dir, photographs):
  load('tiny_photos', dir=str(tfds_dir))
  shutil.rmtree(tfds_dir)
  write_tfds(tfds_dir, photographs[100:140])
  splits = load('tiny_photos', dir=str(tfds_dir))
  np.testing.assert_array_equal(splits.test, photographs[130:140])


@pytest.mark.parametrize('keep', ['memory', 'stream'])
def test_tfds_is_cropped_and_resized(tfds_dir, photographs, keep):
  fields = {'dir': str(tfds_dir), 'keep': keep}
  cropped = load('tiny_photos', crop=10, **fields)
  np.testing.assert_array_equal(cropped.test[:], photographs[30:40, 3:13, 3:13])
  # Else than the cache holds now.
  small = load('tiny_photos', size=8, **fields)
  bilinear = Image.Resampling.BILINEAR
  expected = Image.fromarray(photographs[30]).resize((8, 8), bilinear)
  np.testing.assert_array_equal(small.test[:][0], expected)
  assert small.train.shape == (27, 8, 8, 3)
  refused('is 16 x 16, smaller than the crop of 17; give a smaller --config.'
          'data.crop', 'tiny_photos', crop=17, **fields)


def test_tfds_of_grey_images_stays_grey(tmp_path, photographs):
  write_tfds(tmp_path / 'tfds', photographs[:40, ..., :1])
  fields = {'dir': str(tmp_path / 'tfds')}
  splits = load('tiny_photos', **fields)
  np.testing.assert_array_equal(splits.test, photographs[30:40, ..., :1])
  assert load('tiny_photos', size=8, **fields).test.shape == (10, 8, 8, 1)


def test_tfds_of_several_sizes_needs_one(tmp_path, photographs):
  """Whether two splits differ, or two images of one."""
  for name, odd, message in [
      ('splits', 0, r'different shapes: \[\(10, .*, \(16, .*data.size=SIDE'),
      ('images', 1, r'shapes, such as \(10, .* and \(16, .*data.size=SIDE'),
  ]:
    images = list(photographs[:40])
    images[odd] = images[odd][:10]
    write_tfds(tmp_path / name, images)
    fields = {'dir': str(tmp_path / name)}
    refused(message, 'tiny_photos', **fields)
    splits = load('tiny_photos', size=8, **fields)
    assert splits.test.shape == (10, 8, 8, 3)


def test_tfds_without_images_of_8_bits_is_refused(tmp_path, photographs):
  tfds = pytest.importorskip('tensorflow_datasets')
  label = tfds.features.Scalar(np.int64)
  # TFDS stores a float32 as four channels.
  floats = np.concatenate([photographs[:8], photographs[:8, ..., :1]], axis=-1)
  image = tfds.features.Image(shape=(16, 16, 1), dtype=np.float32)
  for name, images, features, holds in [
      ('labels', photographs[:8], {'label': label}, 'label'),
      ('floats', floats, {'image': image, 'label': label}, 'image, label'),
  ]:
    write_tfds(tmp_path / name, images, features)
    message = f'its examples hold {holds}; it must be .* uint8'
    refused(message, 'tiny_photos', dir=str(tmp_path / name))


@pytest.mark.parametrize('keep', ['memory', 'stream'])
def test_tfds_that_is_damaged_is_named(tfds_dir, keep):
  records = next(tfds_dir.rglob('*train.array_record*'))
  content = records.read_bytes()
  for damaged in (b'', content[: len(content) // 2]):
    records.write_bytes(damaged)
    refused('tiny_photos', 'tiny_photos', dir=str(tfds_dir), keep=keep)


def test_tfds_mistakes_are_named(tfds_dir, tmp_path):
  (tmp_path / 'nothing').mkdir()
  for name, fields, message in [
      ('no_such', {}, "data.name='no_such'.*knows no such data set"),
      ('no_such:thing', {}, "data.name='no_such:thing'"),
      ('tiny_photos', {'train': 'trian'}, "no split 'trian'; it has test, tr"),
      ('tiny_photos', {'test': 'test[5:'}, r"no split 'test\[5:'"),
      ('tiny_photos', {'test': 'test[9:2]'}, r"no split 'test\[9:2\]'"),
      ('tiny_photos', {'dir': '/no/where'}, 'there is no such directory'),
      ('cifar10', {'dir': str(tmp_path / 'nothing')}, 'not found in'),
  ]:
    refused(message, name, **{'dir': str(tfds_dir)} | fields)


def test_a_path_must_be_given():
  for kind in ('folder', 'array'):
    with pytest.raises(errors.UserError, match='the path is missing'):
      data.load(f'{kind}:')


def test_colour_is_not_taken_for_grey(tmp_path, photographs):
  np.save(tmp_path / 'a.npy', photographs[:20])
  with pytest.raises(errors.UserError, match='channels=1.*in colour'):
    data.load(f'array:{tmp_path}/a.npy', channels=1)
  np.save(tmp_path / 'a.npy', photographs[:20, ..., :1])
  splits, _ = data.load(f'array:{tmp_path}/a.npy', channels=1)
  assert splits.train.shape[-1] == 1


@pytest.mark.parametrize('limit, keep', [('max', 'memory'), ('3000', 'stream')])
def test_a_container_may_have_less_memory(
    tmp_path, photographs, monkeypatch, limit, keep
):
  (tmp_path / 'memory.max').write_text(limit)
  monkeypatch.setattr(loading, '_CONTAINER_LIMIT', tmp_path / 'memory.max')
  monkeypatch.setattr(loading, '_DEVICE_BYTES', 1000)
  np.save(tmp_path / 'a.npy', photographs[:20])
  splits, on_device = data.load(f'array:{tmp_path}/a.npy')
  assert not on_device
  assert isinstance(splits.train, np.ndarray) == (keep == 'memory')
