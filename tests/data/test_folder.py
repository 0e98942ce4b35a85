"""Folders of image files."""

import contextlib
import io
import logging
import os
import pathlib

import numpy as np
from PIL import Image
import pytest

from gmvq_jax import data
from gmvq_jax.data.sources import folder as folder_lib
from gmvq_jax.runtime import cache as cache_lib
from gmvq_jax.runtime import errors

SPLITS = ('train', 'validation', 'test')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'images').mkdir()
  return tmp_path / 'images'


def noise(seed, height=4, width=6):
  """An image that no other seed gives."""
  shape = (height, width, 3)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(path, **options)


def write_splits(folder, image=None, suffix='.png', **options):
  """One plain image for each split, but the given one to train on."""
  plain = noise(0)
  image = plain if image is None else image
  write(folder / 'train' / f'given{suffix}', image, **options)
  write(folder / 'validation' / 'plain.png', plain)
  write(folder / 'test' / 'plain.png', plain)


def load(folder, keep='memory', **fields):
  splits, _ = data.load(f'folder:{folder}', keep=keep, **fields)
  return splits


def refused(message, folder, **fields):
  """Returns the one line that refuses a folder."""
  with pytest.raises(errors.UserError, match=message) as caught:
    load(folder, **fields)
  line = str(caught.value)
  assert '\n' not in line
  assert str(folder) in line
  return line


def said(caplog):
  return [record.getMessage() for record in caplog.records]


# Where images are, and their splits.


def test_sub_folders_are_the_splits_at_any_depth(folder):
  places = {
      'train': ['a.png', 'deep/b.png', 'deep/er/c.png'],
      'validation': ['v.png'],
      'test': ['one/t.png', 'two/t.png'],
  }
  expected = {split: [] for split in places}
  for split, names in places.items():
    for name in names:
      image = noise(sum(map(len, expected.values())))
      write(folder / split / name, image)
      expected[split].append(image)
  write(folder / 'elsewhere' / 'not.png', noise(9))
  for keep in ('memory', 'stream'):
    splits = load(folder, keep)
    for split, images in expected.items():
      np.testing.assert_array_equal(getattr(splits, split)[:], images)


def test_links_to_folders_are_followed(folder, tmp_path):
  write_splits(tmp_path / 'elsewhere')
  for split in SPLITS:
    (folder / split).symlink_to(tmp_path / 'elsewhere' / split)
  assert [len(images) for images in load(folder)] == [1, 1, 1]


def split_of_each(folder):
  """Returns which split each image is in, by its content."""
  return {
      image.tobytes(): split
      for split, images in load(folder)._asdict().items()
      for image in images
  }


def test_an_image_stays_in_its_split_whatever_is_added_or_moved(folder):
  for i in range(40):
    write(folder / f'{i}.png', noise(i))
  before = split_of_each(folder)
  assert len(before) == 40
  for i in range(0, 40, 2):
    (folder / 'some' / 'where').mkdir(parents=True, exist_ok=True)
    (folder / f'{i}.png').rename(folder / 'some' / 'where' / f'{i}.png')
  for i in range(40, 60):
    write(folder / f'{i}.png', noise(i))
  after = split_of_each(folder)
  assert len(after) == 60
  assert {image: after[image] for image in before} == before


def test_about_a_tenth_is_validation_and_a_tenth_test():
  parts = [folder_lib._split_of(f'{i:06}.jpg') for i in range(20_000)]
  shares = [parts.count(split) / len(parts) for split in SPLITS]
  assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_the_division_is_the_same_in_every_version():
  """Else a model that is continued trains on what it was not to see."""
  found = {split: [] for split in SPLITS}
  for i in range(60):
    found[folder_lib._split_of(f'{i}.png')].append(i)
  assert found['validation'] == [9, 32, 35, 52, 55]
  assert found['test'] == [5, 23, 27, 31, 41, 49, 59]


def test_names_of_all_kinds(folder):
  names = [
      'UPPER.PNG',
      'Mixed.JpEg',
      'with space (1).png',
      'été à la plage.png',
      '画像.webp',
      'two.dots.png',
      os.fsdecode(b'latin-1 \xe9.png'),
  ]
  for i in range(30):
    write(folder / f'{i}.png', noise(i))
  for name in names:
    write(folder / name, noise(0))
  assert sum(len(images) for images in load(folder)) == 30 + len(names)


def test_other_files_and_hidden_ones_are_left_alone(folder, caplog):
  write_splits(folder)
  (folder / 'train' / 'labels.csv').write_text('a,b')
  (folder / 'train' / 'README').write_text('hello')
  (folder / 'train' / 'Thumbs.db').write_bytes(b'\0' * 100)
  (folder / 'train' / '._given.png').write_bytes(b'of macOS')
  write(folder / 'train' / '.hidden' / 'x.png', noise(1))
  assert len(load(folder).train) == 1
  assert not said(caplog)


def test_folders_without_what_is_needed_are_named(folder, tmp_path):
  refused('there is no such folder', tmp_path / 'nowhere')
  (tmp_path / 'file.png').write_text('hello')
  refused('there is no such folder', tmp_path / 'file.png')
  refused('holds no image files', folder)
  (folder / 'notes.txt').write_text('hello')
  refused('holds no image files', folder)
  write(folder / 'one.png', noise(1))
  refused('its 1 images are divided.* leaves none for .*give more', folder)
  write(folder / 'train' / 'two.png', noise(2))
  write(folder / 'test' / 'three.png', noise(3))
  line = 'has sub-folders train, test; it must have all of train, validation, t'
  refused(line, folder)
  (folder / 'validation').mkdir()
  refused('its validation split is empty', folder)


def test_images_of_several_sizes_need_one(folder):
  write_splits(folder, noise(1, 4, 8))
  hint = 'of 2 sizes, such as 4 x 6, 4 x 8; give --config.data.size=SIDE'
  refused(hint, folder)
  assert [i.shape for i in load(folder, size=5)] == [(1, 5, 5, 3)] * 3
  assert [i.shape for i in load(folder, crop=3)] == [(1, 3, 3, 3)] * 3


# What image files hold.


def transparent():
  """Half of a red, half of a clear image, and its pixels on white."""
  image = np.zeros((4, 6, 4), np.uint8)
  image[..., 0], image[:, :3, 3] = 255, 255
  image[0, 0] = 0, 0, 0, 51  # A fifth of black.
  expected = np.full((4, 6, 3), 255, np.uint8)
  expected[:, :3, 1:] = 0
  expected[0, 0] = 204
  return Image.fromarray(image), expected


def palette():
  indices = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
  colours = np.array([[250, 0, 0], [0, 240, 0], [0, 0, 230]], np.uint8)
  image = Image.fromarray(indices).convert('P')
  image.putpalette(colours.tobytes())
  image.putdata(indices.ravel())
  return image, colours[indices]


def kinds():
  """Yields name, image, suffix, options and the pixels that are due."""
  grey = noise(1)[..., 0]
  yield 'L', Image.fromarray(grey), '.png', {}, np.stack([grey] * 3, -1)

  bits = grey > 127
  white = np.where(bits, 255, 0)[..., None].repeat(3, -1)
  yield '1', Image.fromarray(bits), '.png', {}, white

  image, expected = transparent()
  yield 'RGBA', image, '.png', {}, expected

  image, expected = palette()
  yield 'P', image, '.gif', {}, expected
  green = (expected == [0, 240, 0]).all(-1, keepdims=True)
  yield 'P', image, '.png', {'transparency': 1}, np.where(green, 255, expected)

  deep = np.random.default_rng(2).integers(0, 2**16, (4, 6), np.uint16)
  high = (deep // 256)[..., None].repeat(3, -1)
  yield 'I;16', Image.fromarray(deep), '.png', {}, high
  yield 'I;16', Image.fromarray(deep), '.tif', {}, high

  red = Image.new('CMYK', (6, 4), (0, 255, 255, 0))
  expected = np.full((4, 6, 3), [255, 0, 0])
  yield 'CMYK', red, '.tif', {}, expected
  yield 'CMYK', red, '.jpg', {'quality': 100}, expected


KINDS = list(kinds())


@pytest.mark.parametrize(
    'mode, image, suffix, options, expected',
    KINDS,
    ids=[f'{mode}{suffix}' for mode, _, suffix, *_ in KINDS],
)
def test_files_of_other_modes_are_converted(
    folder, caplog, mode, image, suffix, options, expected
):
  caplog.set_level(logging.INFO, 'gmvq_jax')
  write_splits(folder, image, suffix, **options)
  with Image.open(folder / 'train' / f'given{suffix}') as written:
    assert written.mode == mode
  tolerance = 2 if suffix == '.jpg' else 0
  found = load(folder).train[0].astype(int)
  np.testing.assert_allclose(found, expected, atol=tolerance)
  assert said(caplog)[0] == f'Converted to RGB: 1 of mode {mode}.'


def test_what_was_converted_is_said_in_one_line(folder, caplog):
  caplog.set_level(logging.INFO, 'gmvq_jax')
  write_splits(folder, noise(1)[..., 0])
  for i in range(3):
    write(folder / 'train' / f'{i}.png', transparent()[0])
  for _ in range(2):  # Also when it is known from the last time.
    load(folder)
    (line,) = said(caplog)
    assert line == 'Converted to RGB: 3 of mode RGBA, 1 of mode L.'
    caplog.clear()


def test_one_channel_is_grey(folder, caplog):
  caplog.set_level(logging.INFO, 'gmvq_jax')
  grey = noise(1)[..., 0]
  for split in SPLITS:
    write(folder / split / 'grey.png', grey)
  splits = load(folder, channels=1)
  assert not said(caplog)
  np.testing.assert_array_equal(splits.train[0], grey[..., None])
  write(folder / 'test' / 'grey.png', noise(2))
  luminance = noise(2) @ np.array([0.299, 0.587, 0.114])
  test = load(folder, channels=1).test
  np.testing.assert_allclose(test[0, ..., 0], luminance, atol=1)
  assert said(caplog) == ['Converted to L: 1 of mode RGB.']


def test_photographs_are_turned_as_their_exif_says(folder):
  left_red = np.zeros((16, 32, 3), np.uint8)
  left_red[:, :16, 0] = left_red[:, 16:, 2] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned a quarter clockwise.
  write(folder / 'train' / 'a.jpg', left_red, exif=exif, quality=100)
  for split in ('validation', 'test'):
    write(folder / split / 'plain.png', noise(0, 32, 16))
  (turned,) = load(folder).train.astype(int)
  top_red = left_red.transpose(1, 0, 2)
  np.testing.assert_allclose(turned[:14], top_red[:14], atol=4)
  np.testing.assert_allclose(turned[-14:], top_red[-14:], atol=4)


# Files that cannot be used.


def png(image):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png')
  return buffer.getvalue()


@pytest.fixture
def bad(folder):
  """Files that cannot be used, in a folder of three that can."""
  write_splits(folder)
  content = png(noise(1))
  bad = {
      'truncated.png': content[: len(content) // 2],
      'empty.png': b'',
      'text.png': b'hello',
      'not found.jpg': b'<html>\n404\n</html>\n',
  }
  for name, content in bad.items():
    (folder / 'train' / name).write_bytes(content)
  (folder / 'train' / 'dangling.png').symlink_to(folder / 'nowhere.png')
  write(folder / 'train' / 'range.tif', Image.new('F', (6, 4)))
  names = sorted([*bad, 'dangling.png', 'range.tif'])
  return [folder / 'train' / name for name in names]


def test_bad_files_are_named_skipped_and_counted(folder, bad, caplog):
  caplog.set_level(logging.INFO, 'gmvq_jax')
  for _ in range(2):  # Also when it is known from the last time.
    assert [len(images) for images in load(folder)] == [1, 1, 1]
    lines = said(caplog)
    assert lines.pop() == 'Skipped 6 of 9 images.'
    assert len(lines) == len(bad)
    for line, path in zip(lines, bad, strict=True):
      assert line.startswith(f'Skipped {path}: ')
      assert '\n' not in line
    reasons = ''.join(lines)
    assert "cannot be read (cannot identify image file it)" in reasons
    assert '32 bits per channel (mode F)' in reasons
    caplog.clear()


def test_bad_files_are_fatal_if_that_is_wanted(folder, bad):
  line = refused(
      '6 of 9 images cannot be used.*bad_images=skip', folder, bad_images='fail'
  )
  assert str(bad[0]) in line


def test_a_folder_of_nothing_but_bad_files_is_refused(folder):
  (folder / 'text.png').write_text('hello')
  line = refused('1 of 1 images cannot be used.*cannot be read', folder)
  assert 'bad_images' not in line


def test_only_some_of_many_bad_files_are_named(folder, caplog):
  write_splits(folder)
  for i in range(50):
    (folder / 'train' / f'{i}.png').write_bytes(b'')
  load(folder)
  assert len(said(caplog)) < 20
  assert said(caplog)[-1] == 'Skipped 50 of 53 images.'


def test_images_smaller_than_the_crop_are_named(folder, caplog):
  write_splits(folder, noise(1, 8, 9))
  for split in SPLITS:
    write(folder / split / 'large.png', noise(2, 5, 5))
  splits = load(folder, crop=5)
  assert [len(images) for images in splits] == [2, 1, 1]
  small = folder / 'test' / 'plain.png'
  line = f'Skipped {small}: 4 x 6, smaller than the crop of 5'
  assert said(caplog)[0] == line


# What is known from the last time.


@pytest.fixture
def opened(monkeypatch):
  """The files that were opened, by Pillow."""
  opened = []
  open_image = Image.open

  def spy(file, *args, **kwargs):
    opened.append(pathlib.Path(file).name)
    return open_image(file, *args, **kwargs)

  monkeypatch.setattr(Image, 'open', spy)
  return opened


def fill(folder):
  write_splits(folder)
  for i in range(10):
    write(folder / 'train' / f'{i}.png', noise(i))


@pytest.mark.parametrize('keep', ['memory', 'stream'])
def test_files_are_checked_once(folder, opened, keep):
  fill(folder)
  first = load(folder, keep).train[:]
  assert {f'{i}.png' for i in range(10)} <= set(opened)
  opened.clear()
  splits = load(folder, keep)
  # The first of each split tells the shape.
  assert set(opened) <= {'0.png', 'plain.png'}
  np.testing.assert_array_equal(splits.train[:], first)


@pytest.mark.parametrize('keep', ['memory', 'stream'])
def test_files_are_checked_again_when_one_changes(folder, opened, keep):
  fill(folder)
  load(folder, keep)
  write(folder / 'train' / '7.png', noise(70))
  opened.clear()
  splits = load(folder, keep)
  assert '3.png' in opened
  np.testing.assert_array_equal(splits.train[:][7], noise(70))
  (folder / 'train' / '7.png').write_bytes(b'')
  assert len(load(folder, keep).train) == 10
  (folder / 'train' / '8.png').unlink()
  assert len(load(folder, keep).train) == 9


def test_what_is_cached_is_of_one_shape(folder):
  fill(folder)
  assert load(folder).train.shape == (11, 4, 6, 3)
  assert load(folder, size=3).train.shape == (11, 3, 3, 3)
  assert load(folder, size=3, channels=1).train.shape == (11, 3, 3, 1)
  assert load(folder).train.shape == (11, 4, 6, 3)


def test_a_damaged_cache_is_made_anew(folder, cache, caplog):
  fill(folder)
  expected = load(folder).train
  files = [path for path in cache.rglob('*') if path.is_file()]
  assert len(files) == 4
  for path in files:
    path.write_bytes(path.read_bytes()[:50])
  np.testing.assert_array_equal(load(folder).train, expected)
  assert len([line for line in said(caplog) if 'are damaged' in line]) == 3
  caplog.clear()
  load(folder)
  assert not said(caplog)


def test_a_cache_that_cannot_be_written_costs_only_a_warning(
    folder, cache, caplog, monkeypatch
):
  def read_only(**kwargs):
    raise OSError(30, 'Read-only file system')

  fill(folder)
  with monkeypatch.context() as patch:
    patch.setattr(cache_lib.tempfile, 'NamedTemporaryFile', read_only)
    assert load(folder).train.shape == (11, 4, 6, 3)
  lines = said(caplog)
  assert len(lines) == 4
  assert all('is not cached: [Errno 30] Read-only' in line for line in lines)


@pytest.mark.parametrize('error', [OSError(28, 'No space'), KeyboardInterrupt])
def test_nothing_half_written_stays_in_the_cache(cache, error):
  def write(file):
    file.write(b'half')
    raise error

  path = cache_lib.path_of('name', 'identity', '.npy')
  with contextlib.suppress(KeyboardInterrupt):
    cache_lib.store(path, write)
  assert [p for p in cache.rglob('*') if p.is_file()] == []


def test_what_was_wrong_is_looked_at_again(folder, monkeypatch):
  """A permission or a network may be mended without a change of the file."""
  write_splits(folder)
  write(folder / 'train' / 'other.png', noise(5))
  opened = Image.open

  def fails(path, *args, **kwargs):
    if pathlib.Path(path).name == 'other.png':
      raise PermissionError('not now')
    return opened(path, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(Image, 'open', fails)
    assert len(load(folder).train) == 1
  assert len(load(folder).train) == 2


def test_a_file_that_changes_its_size_while_it_is_streamed(folder):
  write_splits(folder)
  write(folder / 'train' / 'other.png', noise(5))
  images = load(folder, 'stream').train
  write(folder / 'train' / 'other.png', noise(5, 8, 8))
  with pytest.raises(errors.UserError, match='other.png: is of another size'):
    images[:]


def test_links_in_a_circle_are_followed_once(folder):
  write_splits(folder)
  (folder / 'train' / 'loop').symlink_to(folder / 'train')
  assert len(load(folder).train) == 1


def test_images_beside_the_splits_are_not_looked_at(folder, caplog):
  write_splits(folder)
  write(folder / 'cover.png', noise(1, 30, 30))
  (folder / 'broken.png').write_bytes(b'')
  assert len(load(folder).train) == 1
  assert not said(caplog)
