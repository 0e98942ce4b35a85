"""Sets of images to files of codes, as `--mode=encode` does it."""

from collections.abc import Iterator
import contextlib
import math
import pathlib
import threading
import time
from typing import Any

import grain
import jax
import numpy as np

from gmvq_jax.data import named_images
from gmvq_jax.data import preprocess
from gmvq_jax.ops import bits as bits_lib
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.runtime import progress
from gmvq_jax.tokenizer import code_files
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib

_SHARD_IMAGES = 2**12
_SHARD_CODES = 2**20
_THREADS = 4
_AHEAD = 4  # Batches.


def load_images(
    tokenizer: tokenizer_lib.Tokenizer,
    name: str,
    *,
    crop: int | None = None,
    size: int | None = None,
    skip_bad: bool = True,
) -> named_images.NamedImages:
  """Opens images that a tokenizer can encode.

  Args:
    tokenizer: it.
    name: of the images; see `named_images.load`.
    crop: see `preprocess.Shape`; as in training by default.
    size: the same.
    skip_bad: see `folder.load_whole`.

  Raises:
    errors.UserError: for what cannot be found, read or encoded.
  """
  trained = tokenizer.stored.config.data
  shape = preprocess.Shape(
      crop=trained.crop if crop is None else crop,
      size=trained.size if size is None else size,
      channels=tokenizer.channels,
  )
  loaded = named_images.load(
      name, shape, data_dir=trained.dir, skip_bad=skip_bad
  )
  height, width, channels = loaded.images.shape[1:]
  if channels != tokenizer.channels:
    raise errors.UserError(
        f'{name}: images have {channels} channels; those of the tokenizer have'
        f' {tokenizer.channels}'
    )
  tokenizer.grid(height, width)
  return loaded


def encode(
    tokenizer: tokenizer_lib.Tokenizer,
    loaded: named_images.NamedImages,
    output: str,
    *,
    packed: bool = False,
    shard_size: int = 0,
) -> dict[str, Any]:
  """Writes the codes of images, or those that are not there yet.

  Several processes share the work, each writing files of its own.

  Args:
    tokenizer: what encodes them.
    loaded: of `load_images`.
    output: a folder, or a `.npz` file for a small set; see code_files.py.
    packed: whether codes take log2(C) bits, rounded up, or 8, 16 or 32.
    shard_size: images in a file of a folder; 0: 4,096, or fewer where these
      would hold more than 2^20 codes.

  Returns:
    A summary: sizes in bytes, `entropy` in bits per code, and what was achieved
    now, by all processes. Empty but on the first of them.

  Raises:
    errors.UserError: when the output cannot be written, or is something else.
  """
  images = loaded.images
  height, width = images.shape[1:3]
  needed = bits_lib.needed(tokenizer.num_codes)
  small = output.endswith('.npz')
  grid = tokenizer.grid(height, width)
  described = code_files.Description(
      tokenizer=tokenizer.hash,
      num_codes=tokenizer.num_codes,
      grid=grid,
      image_shape=tuple(images.shape[1:]),
      bits=needed if packed else bits_lib.whole_bytes(tokenizer.num_codes),
      count=len(images),
      images=loaded.source,
      identity=loaded.identity,
      shard_size=len(images) if small else shard_size or _shard_size(grid),
  )
  meter = _Meter()
  write = _encode_npz if small else _encode_folder
  count = write(tokenizer, loaded, described, output, meter)
  rates = meter.rates(count)
  if not distributed.is_first():
    return {}
  codes = code_files.open(output)
  return {'output': output} | _summary(codes, tokenizer) | rates


def _shard_size(grid):
  return max(min(_SHARD_IMAGES, _SHARD_CODES // (grid[0] * grid[1])), 1)


def _encode_npz(tokenizer, loaded, described, output, meter):
  """Writes a file, unless it is there; returns how many images that were."""
  if jax.process_count() > 1:
    raise errors.UserError(
        f'--output={output}: a .npz is written by one process; give a folder'
    )
  path = files.expand(output).resolve()
  if path.exists():
    try:
      known = code_files.open(path).description
    except errors.UserError as error:
      raise errors.UserError(
          f'--output={output}: is there, and holds no codes; give another'
      ) from error
    _check_same(described, known, output)
    return 0
  files.create(str(path.parent), 'output')
  ((_, names, codes),) = _shards(tokenizer, loaded, described, [0], meter)
  code_files.write_npz(path, described, names, codes)
  return described.count


def _encode_folder(tokenizer, loaded, described, output, meter):
  """Writes what is missing; returns how many images that were."""
  files.check_folder(output, 'FILE.npz')
  first = distributed.from_first
  path = pathlib.Path(first(lambda: str(files.create(output, 'output'))))
  with contextlib.ExitStack() as stack:
    first(lambda: stack.enter_context(files.lock(path)))

    def missing():
      known = code_files.read_description(path)
      if known is None:
        others = [x.name for x in path.iterdir() if not x.name.startswith('.')]
        if others:
          raise errors.UserError(
              f'--output={output}: holds {min(others)}, and no codes; give a'
              ' folder of its own'
          )
        code_files.write_description(path, described)
      else:
        _check_same(described, known, output)
      return [
          shard
          for shard in range(described.num_shards)
          if not (path / described.shard_name(shard)).exists()
      ]

    shards = first(missing)
    mine = shards[jax.process_index() :: jax.process_count()]
    for shard, names, codes in _shards(
        tokenizer, loaded, described, mine, meter
    ):
      code_files.write_shard(path, described, shard, names, codes)
    distributed.wait_for_all('encoded')
  size = described.shard_size
  return sum(min(size, described.count - shard * size) for shard in shards)


def _shards(tokenizer, loaded, described, shards, meter):
  """Yields `(shard, names, codes)` as they become complete."""
  size = described.shard_size
  height, width, _ = described.image_shape
  batch_size = min(tokenizer.batch_size(height, width), size)
  per_shard = -(-size // batch_size)

  def end_of(shard):
    return min((shard + 1) * size, described.count)

  def encode_batch(index):
    place, batch = divmod(index, per_shard)
    shard = shards[place]
    start = shard * size + batch * batch_size
    stop = min(start + batch_size, end_of(shard))
    if start >= stop:  # The last file has fewer.
      return shard, start, None
    images = loaded.images[start:stop]
    with meter.busy():
      return shard, start, tokenizer.encode(images)

  ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
  dataset = grain.MapDataset.range(len(shards) * per_shard).map(encode_batch)
  parts = []
  with contextlib.closing(iter(dataset.to_iter_dataset(ahead))) as batches:
    shown = batches
    if distributed.is_first():
      shown = progress.track(
          batches,
          f'Encoding {described.count} images',
          total=len(dataset),
          images_per_item=batch_size * jax.process_count(),
      )
    for shard, start, codes in shown:
      if codes is None:
        continue
      parts.append(codes)
      if start + len(codes) == end_of(shard):
        names = [loaded.name(i) for i in range(shard * size, end_of(shard))]
        yield shard, names, np.concatenate(parts)
        parts.clear()


def _check_same(described, known, output):
  """Checks that codes which are there already are those to be written."""
  if described.identity != known.identity:
    raise errors.UserError(
        f'--output={output}: holds codes of {known.images}, and these are other'
        ' images, or have changed since; give another'
    )
  for field, wanted in described._asdict().items():
    # The same images may be given by another name.
    if field != 'images' and getattr(known, field) != wanted:
      raise errors.UserError(
          f'--output={output}: holds codes of which {field} is'
          f' {getattr(known, field)!r}, not {wanted!r}; give another, or the'
          ' flags it was made with'
      )


def _summary(codes, tokenizer):
  described, counts = codes.description, codes.counts()
  positions = described.grid[0] * described.grid[1]
  pixels_of_image = described.image_shape[0] * described.image_shape[1]
  total = int(counts.sum())
  entropy = bits_lib.entropy(counts)

  def size(bits):
    return described.count * -(-positions * bits // 8)

  return {
      'images': described.count,
      'grid': list(described.grid),
      'tokenizer': described.tokenizer,
      'bits_per_code': described.bits,
      'bits_per_pixel': tokenizer.bits_per_pixel,
      'entropy': entropy,
      'entropy_bits_per_pixel': entropy * positions / pixels_of_image,
      'perplexity': 2**entropy,
      'codes_used': float(np.mean(counts > 0)),
      'codes': total,
      'bytes': size(described.bits),
      'bytes_packed': size(bits_lib.needed(described.num_codes)),
      'bytes_entropy_coded': math.ceil(bits_lib.adaptive_length(counts) / 8),
  }


class _Meter:
  """Measures the time in which the devices have something to do."""

  def __init__(self):
    self._lock = threading.Lock()
    self._running = 0
    self._start = self._since = self._seconds = 0.0

  @contextlib.contextmanager
  def busy(self) -> Iterator[None]:
    """Is entered while the devices have images."""
    self._add(1)
    try:
      yield
    finally:
      self._add(-1)

  def _add(self, change):
    now = time.perf_counter()
    with self._lock:
      self._start = self._start or now
      if self._running:
        self._seconds += now - self._since
      self._since = now
      self._running += change

  def rates(self, images: int) -> dict[str, float]:
    """Returns images per second, and the share of time in which they had."""
    if not images:
      return {}
    wall = time.perf_counter() - self._start
    return {
        'images_per_second': images / wall,
        'device_busy': self._seconds / wall,
    }
