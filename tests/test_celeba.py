"""The configurations of CelebA, and the images they make of it."""

import itertools
import pathlib
import subprocess

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest
import tfds_files

from gmvq_jax import data
from gmvq_jax.data import images as images_lib
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.training import build
from gmvq_jax.training import command_line
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import config_checks

NAMES = sorted(path.stem for path in pathlib.Path('configs').glob('*.py'))
SPLITS = {'train': 9, 'validation': 4, 'test': 4}

SUBSET = pathlib.Path('../shared/tfds').resolve()
needs_subset = pytest.mark.skipif(
    not (SUBSET / 'celeb_a_subset').is_dir(),
    reason='the 5,000 images of CelebA are not on this machine',
)


def get_config(name, *method):
  return command_line.load(name)['get_config'](*method)


def data_fields(name, **others):
  """The arguments of `data.load` of a configuration."""
  return get_config(name).data.to_dict() | others


# The settings.


@pytest.mark.parametrize('name', NAMES)
def test_every_configuration_loads_by_name(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = get_config(name)
  assert isinstance(config, ConfigDict)
  assert config.data.name


def test_it_is_the_papers_setting():
  """Of CIFAR10, with another learning rate, network and data."""
  config, cifar10 = (
      config_lib.flatten(get_config(name, 'gmvq+entropy'))
      for name in ('celeba', 'cifar10')
  )
  assert {f: v for f, v in config.items() if v != cifar10[f]} == {
      'learning_rate': 1e-4,
      'data.name': 'celeb_a',
      'data.train': 'train',
      'data.validation': 'validation',
      'data.crop': 140,
      'data.size': 128,
      'network.encoder_blocks': 6,
      'network.decoder_blocks': 5,
      'eval_every_steps': 2000,
  }
  assert get_config('celeba', 'gmvq').quantizer.beta == 1
  assert config_lib.num_steps(get_config('celeba'), 162_770) == 63_582


def test_the_subset_is_the_same_but_shorter():
  celeba = config_lib.flatten(get_config('celeba'))
  subset = config_lib.flatten(get_config('celeba_subset'))
  differing = {field for field in celeba if celeba[field] != subset[field]}
  assert differing == {
      'data.name',
      'batch_size',
      'num_steps',
      'kmeans.images',
      'calibration_images',
      'log_every_steps',
      'eval_every_steps',
      'checkpoint_every_steps',
  }


@pytest.mark.parametrize('name', ['celeba', 'celeba_subset'])
@pytest.mark.parametrize('downsamplings, side', [(2, 32), (3, 16)])
def test_the_grid_of_latents(name, downsamplings, side):
  config = get_config(name)
  assert config.network.num_downsamplings == 2
  config.network.num_downsamplings = downsamplings
  config_checks.validate_data(config, (128, 128, 3), 4000, num_devices=1)
  model = build.build_model(config, build.numbers_of(config), 3)

  def reconstruct(key):
    images = jnp.zeros((2, 128, 128, 3))
    return model.reconstruct(model.init(key, images.shape[1:]), images)

  images, quantized = jax.eval_shape(reconstruct, jax.random.key(0))
  assert images.shape == (2, 128, 128, 3)
  assert quantized.codes.shape == (2, side, side)
  assert quantized.z.shape == (2, side, side, 64)


# The images.


@pytest.fixture
def prepared(tmp_path, monkeypatch, rng):
  """`celeb_a` as TFDS prepares it, labels and all, of images of noise."""
  builder = pytest.importorskip(
      'tensorflow_datasets.datasets.celeb_a.celeb_a_dataset_builder'
  )
  import tensorflow_datasets as tfds

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  labels = {
      'landmarks': (builder.LANDMARK_HEADINGS, np.int64),
      'attributes': (builder.ATTR_HEADINGS, np.bool_),
      'identity': (builder.IDENTITY_HEADINGS, np.int64),
  }
  features = {
      kind: {name: dtype for name in names}
      for kind, (names, dtype) in labels.items()
  }
  features['image'] = tfds.features.Image(
      shape=(218, 178, 3), encoding_format='jpeg'
  )
  numbers = {
      f'{kind}/{name}': 1 for kind, (names, _) in labels.items()
      for name in names
  }
  # Large spots, of which JPEG leaves something.
  noise = rng.integers(0, 256, (17, 28, 23, 3), np.uint8)
  images = iter(noise.repeat(8, axis=1).repeat(8, axis=2)[:, :218, :178])
  splits = {
      split: [
          tfds_files.example(image, 'jpeg', **numbers)
          for image in itertools.islice(images, count)
      ]
      for split, count in SPLITS.items()
  }
  tfds_files.write(tmp_path / 'tfds', 'celeb_a', '2.1.0', features, splits)
  return tfds.builder('celeb_a', data_dir=tmp_path / 'tfds')


def expected(builder, split):
  """What TFDS decodes, cropped by hand and resized by Pillow."""
  images = []
  for example in builder.as_data_source(split=split):
    assert example['image'].shape == (218, 178, 3)
    image = Image.fromarray(np.array(example['image'][39:179, 19:159]))
    resized = image.resize((128, 128), Image.Resampling.BILINEAR)
    images.append(np.asarray(resized))
  return np.stack(images)


@pytest.mark.parametrize('keep', ['memory', 'stream'])
def test_images_are_cropped_and_resized(prepared, keep):
  splits, _ = data.load(**data_fields('celeba', keep=keep))
  for name, images in splits._asdict().items():
    assert len(images) == SPLITS[name]
    np.testing.assert_array_equal(images[:], expected(prepared, name))


def test_labels_are_not_decoded(prepared, monkeypatch):
  """There are 51 of them, which would take as long as the image."""
  from tensorflow_datasets.core import features

  def fail(*_, **__):
    raise AssertionError('a label was decoded')

  monkeypatch.setattr(features.Tensor, 'decode_example_np', fail)
  with pytest.raises(AssertionError):
    prepared.as_data_source(split='train')[0]
  splits, _ = data.load(**data_fields('celeba', keep='stream'))
  assert splits.train[:].shape == (9, 128, 128, 3)


def take(fields, batch_size, count):
  splits, on_device = data.load(**fields)
  batches = data.batches(
      splits.train,
      batch_size,
      distributed.data_mesh(),
      seed=0,
      on_device=on_device,
  )
  taken = np.stack([np.asarray(next(batches)) for _ in range(count)])
  batches.close()
  return taken


def test_batches_are_the_same_whatever_the_cores(prepared, monkeypatch):
  fields = data_fields('celeba', keep='stream')
  made = []
  for cores in (1, 2, 3, 16):
    monkeypatch.setattr(images_lib, '_cores', lambda cores=cores: cores)
    images_lib._pool.cache_clear()
    made.append(take(fields, 8, 4))
  images_lib._pool.cache_clear()
  for other in made[1:]:
    np.testing.assert_array_equal(made[0], other)


@needs_subset
def test_the_subset_streamed_is_that_in_memory(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  fields = data_fields(
      'celeba_subset',
      dir=str(SUBSET),
      # Less to decode; and batches of more than one epoch.
      train='train[:100]',
      validation='validation[:10]',
      test='test[:10]',
  )
  streamed, in_memory, on_device = (
      take(fields | {'keep': keep}, 32, 5)
      for keep in ('stream', 'memory', 'device')
  )
  assert streamed.shape == (5, 32, 128, 128, 3)
  np.testing.assert_array_equal(streamed, in_memory)
  np.testing.assert_array_equal(streamed, on_device)


@needs_subset
def test_images_of_the_subset():
  import tensorflow_datasets as tfds

  splits, _ = data.load(
      **data_fields('celeba_subset', dir=str(SUBSET), keep='stream')
  )
  assert [len(images) for images in splits] == [4000, 500, 500]
  builder = tfds.builder('celeb_a_subset', data_dir=SUBSET)
  few = expected(builder, 'test[:8]')
  np.testing.assert_array_equal(splits.test[:8], few)


@pytest.mark.parametrize('name', ['celeba', 'celeba_subset'])
@pytest.mark.parametrize('folder', ['empty', 'missing'])
def test_a_wrong_directory_is_named(name, folder, tmp_path, monkeypatch):
  (tmp_path / 'empty').mkdir()
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / folder))
  config = get_config(name)
  with pytest.raises(errors.UserError) as caught:
    data.load(**config.data)
  message = str(caught.value)
  assert '\n' not in message
  assert config.data.name in message
  assert '--config.data.dir or TFDS_DATA_DIR' in message


# Threads.


def test_threads_keep_the_order():
  for count in (0, 1, 2, 5, 1000):
    items = list(range(count))
    assert images_lib.in_threads(str, items) == [str(i) for i in items]


def test_what_a_thread_raises_is_raised():
  def invert(x):
    return 1 / x

  with pytest.raises(ZeroDivisionError):
    images_lib.in_threads(invert, [2, 1, 0, 1])
  assert images_lib.in_threads(invert, [2, 1]) == [0.5, 1.0]


# What is published.


def test_no_picture_of_celeba_is_published():
  """Its terms forbid it: its page shows curves at most, drawn as SVG."""
  command = ['git', 'ls-files', '--cached', '--others', '--exclude-standard']
  listed = subprocess.run(command, capture_output=True, text=True, check=False)
  if listed.returncode:
    pytest.skip('this is no repository')
  for name in filter(lambda name: 'celeb' in name.lower(),
                     listed.stdout.splitlines()):
    assert pathlib.Path(name).suffix in ('.py', '.md', '.json', '.svg'), name
  for page in pathlib.Path('docs').rglob('*celeb*'):
    assert '<image' not in page.read_text(), f'{page} holds pixels'
    assert not any(
        raster in page.read_text()
        for raster in ('.png', '.jpg', '.jpeg', '.gif', '.webp', 'data:image')
    ), page
