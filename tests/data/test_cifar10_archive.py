"""CIFAR10 from its archive; here a small one, from a server on this machine."""

import functools
import hashlib
import http.server
import io
import logging
import socket
import struct
import tarfile
import threading
import types

import numpy as np
import pytest

from gmvq_jax import data
from gmvq_jax.data.sources import cifar10
from gmvq_jax.runtime import errors

PER_FILE = 4
NUM_TRAIN, NUM_TEST = 5 * PER_FILE, PER_FILE


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('no_proxy', '*')
  return tmp_path / 'cache' / 'gmvq_jax'


@pytest.fixture(scope='module')
def images():
  """Those of the archive, train and test."""
  rng = np.random.default_rng(0)
  return {
      'train': rng.integers(0, 256, (NUM_TRAIN, 32, 32, 3), np.uint8),
      'test': rng.integers(0, 256, (NUM_TEST, 32, 32, 3), np.uint8),
  }


@pytest.fixture(scope='module')
def archive(images):
  """Bytes laid out as https://www.cs.toronto.edu/~kriz/cifar.html says."""

  def records(images):
    """A label, 1024 bytes of red, 1024 of green and of blue; row by row."""
    result = b''
    for label, image in enumerate(images):
      red, green, blue = (image[..., c].tobytes() for c in range(3))
      result += bytes([label % 10]) + red + green + blue
    return result

  files = {'batches.meta.txt': b'airplane\nautomobile\n', 'readme.html': b'<p>'}
  for i, part in enumerate(np.split(images['train'], 5), 1):
    files[f'data_batch_{i}.bin'] = records(part)
  files['test_batch.bin'] = records(images['test'])
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode='w:gz') as tar:
    folder = tarfile.TarInfo('cifar-10-batches-bin')
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
    for name in sorted(files, reverse=True):  # In no helpful order.
      member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      member.size = len(files[name])
      tar.addfile(member, io.BytesIO(files[name]))
  return content.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers as `server.behaviour` says."""

  def do_GET(self):  # noqa: N802  (the name is the server's)
    server = self.server
    server.requests.append(self.path)
    if server.behaviour == 'missing':
      self.send_error(404)
      return
    if server.behaviour == 'hangs up':
      self.hang_up()
      return
    self.send_response(200)
    if 'no length' not in server.behaviour:
      self.send_header('Content-Length', str(len(server.content)))
    self.end_headers()
    half = server.content[: len(server.content) // 2]
    if server.behaviour.startswith('whole'):
      self.wfile.write(server.content)
      return
    self.wfile.write(half)
    self.wfile.flush()
    if server.behaviour == 'falls silent':
      server.over.wait(10)
    if server.behaviour == 'resets':
      self.hang_up()

  def hang_up(self):
    # Without lingering, closing resets the connection.
    option = struct.pack('ii', 1, 0)
    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
    self.connection.close()

  def log_message(self, *args):
    pass


@pytest.fixture
def server(archive):
  """Serves the archive at `server.url`, and counts requests."""
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.handle_error = lambda *args: None
  server.content, server.behaviour = archive, 'whole'
  server.requests, server.over = [], threading.Event()
  server.url = f'http://127.0.0.1:{server.server_port}/cifar.tar.gz'
  thread = threading.Thread(target=server.serve_forever, args=[0.01])
  thread.start()
  yield server
  server.over.set()
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def load(server, archive):
  """Loads splits from that server."""

  def load(*splits, **changed):
    md5 = hashlib.md5(archive).hexdigest()
    return cifar10.load(splits, **{'url': server.url, 'md5': md5} | changed)

  return load


def refused(load, message, *args, **kwargs):
  with pytest.raises(errors.UserError, match=message) as caught:
    load(*args, **kwargs)
  line = str(caught.value)
  assert '\n' not in line
  return line


def files_in(directory):
  return [path for path in directory.rglob('*') if path.is_file()]


def test_images_are_those_of_the_archive_in_its_order(load, images):
  train, test = load('train', 'test')
  np.testing.assert_array_equal(train, images['train'])
  np.testing.assert_array_equal(test, images['test'])


def test_an_archive_of_many_pieces_is_put_together(load, images, monkeypatch):
  monkeypatch.setattr(cifar10, '_CHUNK', 1000)
  np.testing.assert_array_equal(load('train')[0], images['train'])


@pytest.mark.parametrize('split', [
    'train[:90%]',
    'train[90%:]',
    'train[10:20]',
    'train[10:]',
    'train[:3]',
    'train[-3:]',
    'train[:-3]',
    'train[-10%:]',
    'train[:-10%]',
    'train[33%:67%]',
    'train[2%:99%]',
    'train[0%:100%]',
    'test',
    'test[:50%]',
    'test[1:4]',
])
def test_slices_are_those_of_tensorflow_datasets(load, images, split):
  tfds = pytest.importorskip('tensorflow_datasets')
  sizes = {
      name: types.SimpleNamespace(num_examples=len(images[name]))
      for name in images
  }
  (due,) = tfds.core.ReadInstruction.from_spec(split).to_absolute(sizes)
  expected = images[due.splitname][due.from_ : due.to]
  assert len(expected)
  np.testing.assert_array_equal(load(split)[0], expected)


@pytest.mark.parametrize('split', [
    'validation',
    'trian',
    'train[',
    'train[5]',
    'train[10%]',
    'train[a:b]',
    'train[:90%]+test',
    'test[5:',
    '',
])
def test_splits_that_do_not_exist_are_named(load, server, split):
  line = refused(load, 'it has test, train, and slices', 'train', split)
  assert f"'cifar10' has no split {split!r}" in line
  assert not server.requests


def test_it_is_downloaded_once(load, server, caplog):
  caplog.set_level(logging.INFO, 'gmvq_jax')
  first = load('train', 'test')
  assert 'Downloading CIFAR10 (0 MB) from http://127' in caplog.text
  for one, other in zip(first, load('train', 'test'), strict=True):
    np.testing.assert_array_equal(one, other)
  assert len(server.requests) == 1


def test_another_archive_is_refused(load, archive, cache):
  found = hashlib.md5(archive).hexdigest()
  line = refused(load, 'has the md5', 'train', md5='0' * 32)
  assert f'has the md5 {found}, which must be {"0" * 32}' in line
  assert not files_in(cache)


FAILURES = {
    'breaks off': r'the connection broke after \d+ of \d+ bytes',
    'resets': 'reset by peer',
    'hangs up': 'reset by peer|closed connection',
    'falls silent': 'timed out',
    'missing': 'HTTP Error 404',
    'no length': 'cannot be downloaded',
    'refuses': 'Connection refused',
}


@pytest.mark.parametrize('behaviour', FAILURES)
def test_a_failed_download_says_what_can_be_done(
    load, server, cache, monkeypatch, behaviour
):
  server.behaviour = behaviour
  url = server.url
  if behaviour == 'refuses':
    with socket.socket() as unused:
      unused.bind(('127.0.0.1', 0))
      url = f'http://127.0.0.1:{unused.getsockname()[1]}/cifar.tar.gz'
  with monkeypatch.context() as patch:
    if behaviour == 'falls silent':
      patch.setattr(cifar10, '_TIMEOUT', 0.3)
    line = refused(load, FAILURES[behaviour], 'train', url=url)
  assert line.startswith('CIFAR10 is not on this machine and cannot be downlo')
  assert url in line
  assert 'connect to the network and try again' in line
  assert f'put cifar-10-binary.tar.gz into {cache}' in line
  assert 'set TFDS_DATA_DIR to a directory that holds cifar10' in line
  assert not files_in(cache)
  # And it can be tried again.
  server.behaviour = 'whole'
  assert len(load('train')[0]) == NUM_TRAIN


def test_a_server_need_not_say_the_length(load, server, images):
  server.behaviour = 'whole, no length'
  np.testing.assert_array_equal(load('test')[0], images['test'])


def test_an_archive_placed_by_hand_is_used(
    load, server, archive, images, cache
):
  cache.mkdir(parents=True)
  placed = cache / 'cifar-10-binary.tar.gz'
  placed.write_bytes(archive)
  np.testing.assert_array_equal(load('test')[0], images['test'])
  assert not server.requests


def test_another_archive_placed_by_hand_is_not_in_the_way(
    load, server, archive, images, cache, caplog
):
  cache.mkdir(parents=True)
  placed = cache / 'cifar-10-binary.tar.gz'
  placed.write_bytes(archive[:1000])
  np.testing.assert_array_equal(load('test')[0], images['test'])
  assert len(server.requests) == 1
  assert f'{placed} is not the archive expected' in caplog.text


@pytest.mark.parametrize('keep_bytes', [0, 100, 40_000])
def test_a_damaged_cache_is_made_anew(
    load, server, images, cache, caplog, keep_bytes
):
  load('train')
  (cached,) = files_in(cache)
  cached.write_bytes(cached.read_bytes()[:keep_bytes])
  np.testing.assert_array_equal(load('train')[0], images['train'])
  assert 'damaged' in caplog.text
  load('train')
  assert len(server.requests) == 2


@pytest.mark.parametrize('configured, environment, prepared, wanted', [
    (False, False, None, True),
    (False, False, 'default', False),
    (True, False, None, False),
    (True, False, 'default', False),
    (False, True, None, True),
    (False, True, 'default', True),
    (False, True, 'environment', False),
    (True, True, None, False),
])
def test_it_is_wanted_where_no_prepared_copy_is(
    tmp_path, monkeypatch, configured, environment, prepared, wanted
):
  directories = {
      'default': tmp_path / 'tensorflow_datasets',
      'environment': tmp_path / 'set',
  }
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv(
      'TFDS_DATA_DIR', str(directories['environment']) if environment else ''
  )
  directories['environment'].mkdir()
  if prepared:
    (directories[prepared] / 'cifar10').mkdir(parents=True)
  assert cifar10.wanted('somewhere' if configured else '') == wanted
  if not environment:
    monkeypatch.delenv('TFDS_DATA_DIR')
    assert cifar10.wanted('somewhere' if configured else '') == wanted


def test_a_directory_that_does_not_exist_is_named(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/no/where')
  with pytest.raises(errors.UserError, match="'/no/where': there is no such"):
    data.load('cifar10')


def test_cifar10_by_name_is_the_archive(
    load, server, images, monkeypatch, tmp_path
):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  by_default = functools.partial(
      cifar10.load, url=server.url, md5=hashlib.md5(server.content).hexdigest()
  )
  monkeypatch.setattr(cifar10, 'load', by_default)
  for field in ('crop', 'size'):
    with pytest.raises(errors.UserError, match=f'data.{field}=8: cifar10 is'):
      data.load('cifar10', **{field: 8})
  assert not server.requests
  splits, on_device = data.load('cifar10')
  np.testing.assert_array_equal(
      np.concatenate(splits), np.concatenate([images['train'], images['test']])
  )
  assert [len(part) for part in splits] == [18, 2, NUM_TEST]
  assert on_device
