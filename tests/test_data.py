"""Loading, and the order of images."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from gmvq_jax import data
from gmvq_jax import errors


@pytest.mark.parametrize('num_images, batch_size', [(20, 5), (23, 7), (8, 8)])
def test_an_epoch_visits_every_image_once(num_images, batch_size):
  """Also where batches straddle two epochs."""
  key, epochs = jax.random.key(0), 7
  seen = []
  for step in range(epochs * num_images // batch_size + 1):
    epoch, offset = divmod(step * batch_size, num_images)
    order = data.two_epochs(key, epoch, num_images)
    seen.extend(np.asarray(order[offset : offset + batch_size]))
  orders = []
  for epoch in range(epochs):
    indices = seen[epoch * num_images : (epoch + 1) * num_images]
    assert sorted(indices) == list(range(num_images))
    orders.append(tuple(indices))
  assert len(set(orders)) == epochs


def test_orders_differ_between_keys():
  one = data.two_epochs(jax.random.key(0), 0, 50)
  other = data.two_epochs(jax.random.key(1), 0, 50)
  assert not np.array_equal(one, other)


def test_npy_is_divided_into_three(tmp_path):
  values = np.arange(50, dtype=np.uint8)[:, None, None]
  images = np.broadcast_to(values, (50, 4, 4))
  np.save(tmp_path / 'a.npy', images)
  splits = data.load(f'array:{tmp_path}/a.npy')
  assert [s.shape for s in splits] == [
      (40, 4, 4, 1),
      (5, 4, 4, 1),
      (5, 4, 4, 1),
  ]
  values = np.concatenate([s[:, 0, 0, 0] for s in splits])
  assert sorted(values) == list(range(50))
  again = data.load(f'array:{tmp_path}/a.npy')
  np.testing.assert_array_equal(splits.train, again.train)


def test_npz_keeps_its_splits(tmp_path, photographs):
  parts = dict(
      train=photographs[:20], validation=photographs[20:25],
      test=photographs[25:30],
  )
  np.savez(tmp_path / 'a.npz', **parts)
  splits = data.load(f'array:{tmp_path}/a.npz')
  for name, expected in parts.items():
    np.testing.assert_array_equal(getattr(splits, name), expected)


def test_arrays_need_no_tensorflow_datasets(tmp_path, photographs):
  np.save(tmp_path / 'a.npy', photographs[:20])
  program = f"""
import sys
for name in ('tensorflow', 'tensorflow_datasets', 'grain', 'array_record'):
  sys.modules[name] = None
from gmvq_jax import data, train
assert len(data.load('array:{tmp_path}/a.npy').train) == 16
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
  with pytest.raises(errors.UserError, match=message):
    data.load(f'array:{tmp_path}/a.npy')


def test_bad_array_files_are_refused(tmp_path, photographs):
  (tmp_path / 'text.npy').write_text('hello')
  np.savez(tmp_path / 'two.npz', train=photographs, test=photographs)
  np.savez(
      tmp_path / 'mixed.npz',
      train=photographs,
      validation=photographs,
      test=photographs[:, :8],
  )
  for name, message in [
      ('text.npy', 'cannot be read'),
      ('none.npy', 'there is no such file'),
      ('two.npz', 'must hold exactly train, validation, test'),
      ('mixed.npz', 'different shapes'),
  ]:
    with pytest.raises(errors.UserError, match=message):
      data.load(f'array:{tmp_path}/{name}')


@pytest.fixture
def tfds_dir(tmp_path, photographs, monkeypatch):
  """A data set `tiny_photos` of 40 images, as array_record."""
  tfds = pytest.importorskip('tensorflow_datasets')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  write_tfds(tfds, tmp_path / 'tfds', photographs)
  return tmp_path / 'tfds'


def write_tfds(tfds, directory, images):
  """Writes the files that `tfds.data_source` reads, without TensorFlow."""
  from array_record.python.array_record_module import ArrayRecordWriter

  folder = directory / 'tiny_photos' / '1.0.0'
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict({
      'image': tfds.features.Image(shape=images.shape[1:]),
  })
  features.save_config(str(folder))
  counts = {'train': 30, 'test': 10}
  start = 0
  for split, count in counts.items():
    path = folder / f'tiny_photos-{split}.array_record-00000-of-00001'
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for image in images[start : start + count]:
      writer.write(example(image))
    writer.close()
    start += count
  info = {
      'fileFormat': 'array_record',
      'name': 'tiny_photos',
      'version': '1.0.0',
      'splits': [
          {
              'name': split,
              'shardLengths': [str(count)],
              'numBytes': '1',
              'filepathTemplate': (
                  '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
              ),
          }
          for split, count in counts.items()
      ],
  }
  import json

  (folder / 'dataset_info.json').write_text(json.dumps(info))


def example(image):
  """Serialises `{'image': PNG}` as a `tf.train.Example`."""
  import io

  from PIL import Image
  from tensorflow_datasets.proto import tf_example_pb2

  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png')
  record = tf_example_pb2.Example()
  record.features.feature['image'].bytes_list.value.append(buffer.getvalue())
  return record.SerializeToString()


def test_tfds_is_read_and_cached(tfds_dir, photographs):
  splits = data.load('tiny_photos', data_dir=str(tfds_dir))
  assert [len(s) for s in splits] == [27, 3, 10]
  np.testing.assert_array_equal(
      np.concatenate(splits), photographs[:40]
  )
  cached = sorted((tfds_dir.parent / 'cache').rglob('*.npy'))
  assert len(cached) == 3
  # A damaged cache is decoded anew.
  for path in cached:
    path.write_bytes(path.read_bytes()[:100])
  again = data.load('tiny_photos', data_dir=str(tfds_dir))
  np.testing.assert_array_equal(again.test, splits.test)


def test_tfds_written_anew_is_read_anew(tfds_dir, photographs):
  tfds = pytest.importorskip('tensorflow_datasets')
  data.load('tiny_photos', data_dir=str(tfds_dir))
  shutil.rmtree(tfds_dir)
  write_tfds(tfds, tfds_dir, photographs[100:])
  splits = data.load('tiny_photos', data_dir=str(tfds_dir))
  np.testing.assert_array_equal(splits.test, photographs[130:140])


def test_tfds_too_large_or_damaged_is_named(tfds_dir, monkeypatch):
  records = next(tfds_dir.rglob('*train.array_record*'))
  content = records.read_bytes()
  with monkeypatch.context() as patch:
    patch.setattr(data, '_MAX_BYTES', 10_000)
    with pytest.raises(errors.UserError, match='must be at most'):
      data.load('tiny_photos', data_dir=str(tfds_dir))
  for damaged in (b'', content[: len(content) // 2]):
    records.write_bytes(damaged)
    with pytest.raises(errors.UserError, match='tiny_photos') as caught:
      data.load('tiny_photos', data_dir=str(tfds_dir))
    assert '\n' not in str(caught.value)


def test_tfds_mistakes_are_named(tfds_dir, tmp_path):
  (tmp_path / 'nothing').mkdir()
  for name, kwargs, message in [
      ('no_such', {}, "data.name='no_such'.*knows no such data set"),
      ('tiny_photos', {'train': 'trian'}, "no split 'trian'; it has test, tr"),
      ('tiny_photos', {'test': 'test[5:'}, r"no split 'test\[5:'"),
      ('tiny_photos', {'test': 'test[9:2]'}, r"no split 'test\[9:2\]'"),
      ('tiny_photos', {'data_dir': '/no/where'}, 'there is no such directory'),
      ('cifar10', {'data_dir': str(tmp_path / 'nothing')}, 'not found in'),
  ]:
    kwargs = {'data_dir': str(tfds_dir)} | kwargs
    with pytest.raises(errors.UserError, match=message) as caught:
      data.load(name, **kwargs)
    assert '\n' not in str(caught.value)
