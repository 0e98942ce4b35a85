"""The order of training images, and the batches in that order."""

import itertools
import json
import threading
import time

import jax
import numpy as np
from PIL import Image
import pytest

from gmvq_jax import data
from gmvq_jax.data import pipeline
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors

COUNT, BATCH, SEED = 21, 8, 3
KEEPS = ('device', 'memory', 'stream')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def folder(tmp_path, rng):
  """A folder of `COUNT` training images, no two alike."""
  path = tmp_path / 'images'
  for split, count in (('train', COUNT), ('validation', 1), ('test', 1)):
    (path / split).mkdir(parents=True)
    for i in range(count):
      image = rng.integers(0, 256, (4, 6, 3), np.uint8)
      Image.fromarray(image).save(path / split / f'{i:02}.png')
  return path


@pytest.fixture
def batches(folder):
  """Makes iterators over batches, and closes them."""
  made = []

  def make(keep='stream', seed=SEED):
    splits, on_device = data.load(f'folder:{folder}', keep=keep)
    made.append(
        data.batches(
            splits.train,
            BATCH,
            distributed.data_mesh(),
            seed=seed,
            on_device=on_device,
        )
    )
    return made[-1]

  yield make
  for iterator in made:
    iterator.close()


def take(iterator, count):
  return np.stack([np.asarray(b) for b in itertools.islice(iterator, count)])


@pytest.mark.parametrize('num_images, batch_size', [(20, 5), (23, 7), (8, 8)])
def test_an_epoch_visits_every_image_once(num_images, batch_size):
  """Also where batches straddle two epochs."""
  epochs = 7
  order = pipeline.Order(num_images, batch_size, SEED)
  steps = range(epochs * num_images // batch_size + 1)
  seen = np.concatenate([order[step] for step in steps])
  assert len(seen) == batch_size * len(steps)
  epochs = seen[: epochs * num_images].reshape(epochs, num_images)
  for indices in epochs:
    assert sorted(indices) == list(range(num_images))
  assert len(np.unique(epochs, axis=0)) == len(epochs)


def test_orders_differ_between_seeds():
  one, other = (pipeline.Order(50, 50, seed)[0] for seed in (0, 1))
  assert not np.array_equal(one, other)


def test_an_order_does_not_depend_on_earlier_steps():
  order = pipeline.Order(23, 7, SEED)
  for step in (100, 3, 1000, 4, 0, 99):
    np.testing.assert_array_equal(
        order[step], pipeline.Order(23, 7, SEED)[step]
    )


def test_batches_are_the_images_of_the_order(folder, batches):
  splits, _ = data.load(f'folder:{folder}', keep='memory')
  order = pipeline.Order(COUNT, BATCH, SEED)
  expected = np.stack([splits.train[order[step]] for step in range(7)])
  np.testing.assert_array_equal(take(batches(), 7), expected)


def test_batches_are_the_same_wherever_the_images_lie(batches):
  on_device, in_memory, in_files = (take(batches(k), 7) for k in KEEPS)
  np.testing.assert_array_equal(on_device, in_memory)
  np.testing.assert_array_equal(on_device, in_files)
  assert on_device.dtype == np.uint8
  assert not np.array_equal(on_device, take(batches(seed=SEED + 1), 7))


@pytest.mark.parametrize('keep', KEEPS)
def test_a_batch_is_sharded_over_the_mesh(batches, keep):
  assert jax.device_count() == 8
  batch = next(batches(keep))
  sharding = distributed.batched(distributed.data_mesh())
  assert batch.sharding.is_equivalent_to(sharding, batch.ndim)
  shards = batch.addressable_shards
  assert [shard.data.shape for shard in shards] == [(1, 4, 6, 3)] * 8


def test_each_process_reads_its_share_of_a_batch(folder, monkeypatch):
  """As each of two processes would; what they make of it is JAX's."""
  splits, _ = data.load(f'folder:{folder}', keep='memory')
  mesh = distributed.data_mesh()
  made = []

  def local(sharding, array, shape):
    assert shape == (BATCH, 4, 6, 3)
    return array

  monkeypatch.setattr(jax, 'make_array_from_process_local_data', local)
  for process, count in ((0, 1), (0, 2), (1, 2)):
    with monkeypatch.context() as patch:
      patch.setattr(jax, 'process_count', lambda count=count: count)
      patch.setattr(jax, 'process_index', lambda process=process: process)
      iterator = data.batches(
          splits.train, BATCH, mesh, seed=SEED, on_device=False
      )
    made.append(take(iterator, 5))
    iterator.close()
  whole, first, second = made
  np.testing.assert_array_equal(whole, np.concatenate([first, second], axis=1))


@pytest.mark.parametrize('keep', KEEPS)
def test_an_iterator_continues_exactly_at_its_place(batches, keep):
  iterator = batches(keep)
  take(iterator, 3)
  state = json.loads(json.dumps(iterator.get_state()))
  expected = take(iterator, 6)
  fresh = batches(keep)
  fresh.set_state(state)
  np.testing.assert_array_equal(take(fresh, 6), expected)
  iterator.set_state(state)
  np.testing.assert_array_equal(take(iterator, 6), expected)


def test_a_place_far_away_is_reached_at_once(batches):
  iterator = batches()
  state = iterator.get_state()
  iterator.set_state({name: 10**6 for name in state})
  assert take(iterator, 2).shape == (2, BATCH, 4, 6, 3)
  assert set(iterator.get_state().values()) == {10**6 + 2}


def test_a_missing_image_is_named_by_the_next_batch(folder, batches):
  iterator = batches('stream')
  gone = folder / 'train' / '07.png'
  gone.unlink()
  with pytest.raises(errors.UserError) as caught:
    take(iterator, COUNT)
  assert str(gone) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_closing_ends_its_threads(batches):
  def ours():
    return {t for t in threading.enumerate() if 'prefetch' in t.name} - before

  before = set(threading.enumerate())
  iterator = batches('memory')
  next(iterator)
  assert ours()
  iterator.close()
  iterator.close()
  deadline = time.monotonic() + 10
  while ours() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not ours()
