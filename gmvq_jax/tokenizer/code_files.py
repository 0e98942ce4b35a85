"""Codes of sets of images, as files: what a prior learns from.

    codes.json                         what they are; see `Description`
    codes-00000-of-00003.array_record  the codes of `shard_size` images each

A record is the length of an image's name (2 bytes, big-endian), the name in
UTF-8, and its codes in rows, packed by `bits.pack`. Small sets can be a `.npz`
instead: `names [N]`, `codes [N, h, w]` unsigned (or, packed into fewer bits,
`packed [N, bytes]` uint8), and `description`, the JSON.

    codes = gmvq_jax.codes.open('codes/train')
    dataset = grain.MapDataset.source(codes).seed(0).shuffle().repeat()
    batches = iter(dataset.map(lambda example: example[1]).batch(64))
"""

from collections.abc import Sequence
import io
import json
import operator
import os
import pathlib
import struct
from typing import Any
from typing import NamedTuple

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np

from gmvq_jax.ops import bits as bits_lib
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files as files_lib

DESCRIPTION = 'codes.json'
# Random access wants a group for each record; packed codes hardly shrink.
_OPTIONS = 'group_size:1,uncompressed'
_LENGTH = struct.Struct('>H')
_CODES_AT_ONCE = 2**20


class Description(NamedTuple):
  """What a set of codes is.

  Attributes:
    tokenizer: hash of the one that made them, and can decode them.
    num_codes: C.
    grid: `(h, w)` of every image.
    image_shape: `(H, W, channels)` of every image.
    bits: of a stored code.
    count: of the images.
    images: what they were, for the user.
    identity: of the images, which changes when they do.
    shard_size: images in a file; the last may have fewer.
  """

  tokenizer: str
  num_codes: int
  grid: tuple[int, int]
  image_shape: tuple[int, int, int]
  bits: int
  count: int  # type: ignore[assignment]  # Not the method of tuples.
  images: str
  identity: str
  shard_size: int

  @property
  def num_shards(self) -> int:
    """How many files there are."""
    return -(-self.count // self.shard_size)

  def shard_name(self, shard: int) -> str:
    """Returns the name of a file."""
    return f'codes-{shard:05}-of-{self.num_shards:05}.array_record'


class Codes:
  """Random access to codes, as Grain wants of a source.

  `codes[i]` is `(name, codes)`, a string and an int32 array `[h, w]`;
  `codes[i:j]` is `(names, codes)`, a list and an array `[n, h, w]`.

  Attributes:
    description: what they are.
  """

  def __init__(self, description: Description, reader: Any):
    """Wraps a reader; see `open`."""
    self.description = description
    self._reader = reader

  def __len__(self) -> int:
    return self.description.count

  def __getitem__(
      self, index: int | slice
  ) -> tuple[str, np.ndarray] | tuple[list[str], np.ndarray]:
    if isinstance(index, slice):
      return self._read(list(range(len(self))[index]))
    names, codes = self._read([self._within(index)])
    return names[0], codes[0]

  def __getitems__(
      self, indices: Sequence[int]
  ) -> list[tuple[str, np.ndarray]]:
    """Returns several at once."""
    indices = [self._within(index) for index in indices]
    return list(zip(*self._read(indices), strict=True))

  def __repr__(self) -> str:
    return f'Codes({self.description})'

  @property
  def num_codes(self) -> int:
    """C."""
    return self.description.num_codes

  @property
  def grid(self) -> tuple[int, int]:
    """`(h, w)`."""
    return self.description.grid

  def counts(self) -> np.ndarray:
    """Returns how often each code occurs, `[C]`."""
    total = np.zeros(self.num_codes, np.int64)
    at_once = max(_CODES_AT_ONCE // (self.grid[0] * self.grid[1]), 1)
    for start in range(0, len(self), at_once):
      _, codes = self[start : start + at_once]
      total += np.bincount(codes.ravel(), minlength=self.num_codes)
    return total

  def _within(self, index):
    index = operator.index(index)
    if not -len(self) <= index < len(self):
      raise IndexError(f'codes[{index}]: there are {len(self)} images')
    return index % len(self)

  def _read(self, indices):
    """Returns names, and codes `[n, h, w]`."""
    if not indices:
      return [], np.zeros((0, *self.grid), np.int32)
    names, codes = self._reader.read(self.description, indices)
    if codes.min() < 0 or codes.max() >= self.num_codes:
      raise errors.UserError(
          f'codes: there is a code of {codes.max()} where there are'
          f' {self.num_codes}; the files are damaged'
      )
    return names, codes


def open(path: str | os.PathLike) -> Codes:  # noqa: A001
  """Opens codes that `--mode=encode` wrote.

  Args:
    path: of a folder, or of a `.npz` file.

  Raises:
    errors.UserError: (a ValueError) when there are none, or not yet all, or
      they are damaged.
  """
  path = files_lib.expand(path)
  if path.suffix == '.npz' and not path.is_dir():
    return _open_npz(path)
  described = read_description(path) if path.is_dir() else None
  if described is None:
    raise errors.UserError(
        f'{path}: holds no {DESCRIPTION}; give a folder or a .npz file that'
        ' --mode=encode wrote'
    )
  there = {file.name for file in path.iterdir()}
  for shard in range(described.num_shards):
    if described.shard_name(shard) not in there:
      raise errors.UserError(
          f'{path}: {described.shard_name(shard)} is not there (yet); the'
          ' command that encodes the images continues'
      )
  return Codes(described, _Files(path, described))


def read_description(path: pathlib.Path) -> Description | None:
  """Returns what the codes in a folder are; None if there are none.

  Raises:
    errors.UserError: when that is damaged.
  """
  file = path / DESCRIPTION
  fields = files_lib.read_json(file)
  return None if fields is None else _description(fields, file)


def write_description(path: pathlib.Path, description: Description) -> None:
  """Writes what the codes in a folder will be, before they are there."""
  files_lib.write_json(path / DESCRIPTION, description._asdict())


def write_shard(
    path: pathlib.Path,
    description: Description,
    shard: int,
    names: list[str],
    codes: np.ndarray,
) -> None:
  """Writes a file of codes, whole or not at all.

  Args:
    path: of the folder.
    description: that was written to it.
    shard: the number of the file.
    names: of its images.
    codes: `[n, h, w]`, of its images.

  Raises:
    OSError: when it cannot be written.
  """
  file = path / description.shard_name(shard)
  temporary = file.with_name(file.name + '.tmp')
  packed = bits_lib.pack(codes.reshape(len(codes), -1), description.bits)
  try:
    try:
      writer = array_record_module.ArrayRecordWriter(str(temporary), _OPTIONS)
      for name, row in zip(names, packed, strict=True):
        encoded = os.fsencode(name)
        writer.write(_LENGTH.pack(len(encoded)) + encoded + row.tobytes())
      writer.close()
    except RuntimeError as error:
      reason = ' '.join(str(error).split())[:200]
      raise OSError(f'{file}: cannot be written ({reason})') from error
    os.replace(temporary, file)
  finally:
    temporary.unlink(missing_ok=True)


def write_npz(
    path: pathlib.Path,
    description: Description,
    names: list[str],
    codes: np.ndarray,
) -> None:
  """Writes all codes as one `.npz`, whole or not at all; see `write_shard`."""
  arrays: dict[str, Any]
  if description.bits == bits_lib.whole_bytes(description.num_codes):
    arrays = {'codes': codes.astype(f'u{description.bits // 8}')}
  else:
    flat = codes.reshape(len(codes), -1)
    arrays = {'packed': bits_lib.pack(flat, description.bits)}
  buffer = io.BytesIO()
  np.savez_compressed(
      buffer,
      names=np.array(names),
      description=np.array(json.dumps(description._asdict())),
      **arrays,
  )
  files_lib.write_bytes(path, buffer.getvalue(), replace=False)


class _Files:
  """Reads the files of a folder."""

  def __init__(self, path, description):
    self._path = path
    self._files = [
        str(path / description.shard_name(i))
        for i in range(description.num_shards)
    ]
    self._records = None
    try:
      self._records = _open_records(self._files)
      if len(self._records) != description.count:
        raise ValueError(f'there are {len(self._records)} images')
    except Exception as error:  # array_record raises what it likes.
      raise self._damaged(description, error) from error

  def read(self, description, indices):
    try:
      return _parse(self._records.__getitems__(indices), description)
    except Exception as error:
      raise self._damaged(description, error) from error

  def _damaged(self, description, error):
    """Names the first file that is not as it was written."""
    for shard, file in enumerate(self._files):
      start = shard * description.shard_size
      size = min(description.shard_size, description.count - start)
      try:
        records = _open_records([file])
        if len(records) != size:
          raise ValueError(f'{len(records)} images instead of {size}')
        _parse(records.__getitems__(range(size)), description)
      except Exception as reason:
        text = ' '.join(str(reason).split())[:200]
        return errors.UserError(
            f'{file}: is damaged ({text}); delete it, and the command that'
            ' encoded the images makes it anew'
        )
    return errors.UserError(f'{self._path}: cannot be read ({error})')


class _Arrays(NamedTuple):
  """The arrays of a `.npz`."""

  names: list[str]
  codes: np.ndarray

  def read(self, description, indices):
    del description
    return [self.names[i] for i in indices], self.codes[indices]


def _open_npz(path):
  try:
    with np.load(path, allow_pickle=False) as file:
      described = _description(json.loads(str(file['description'])), path)
      height, width = described.grid
      if 'codes' in file:
        codes = file['codes'].astype(np.int32)
      else:
        codes = bits_lib.unpack(
            file['packed'], height * width, described.bits
        )
      names = file['names'].tolist()
      codes = codes.reshape(described.count, height, width)
    if len(names) != described.count:
      raise ValueError(f'{len(names)} names of {described.count} images')
  except Exception as error:
    raise errors.UserError(
        f'{path}: cannot be read as codes ({" ".join(str(error).split())});'
        ' give a folder or a .npz file that --mode=encode wrote'
    ) from error
  return Codes(described, _Arrays(names, codes))


def _open_records(files):
  return array_record_data_source.ArrayRecordDataSource(files)


def _parse(records, description):
  """Returns the names and the codes `[n, h, w]` of records."""
  height, width = description.grid
  size = -(-height * width * description.bits // 8)
  names, packed = [], []
  for record in records:
    end = _LENGTH.size + _LENGTH.unpack_from(record)[0]
    if len(record) != end + size:
      raise ValueError(f'a record of {len(record)} bytes instead of {end+size}')
    names.append(os.fsdecode(record[_LENGTH.size : end]))
    packed.append(np.frombuffer(record, np.uint8, offset=end))
  codes = bits_lib.unpack(np.stack(packed), height * width, description.bits)
  return names, codes.reshape(-1, height, width)


def _description(fields: dict[str, Any], where: object) -> Description:
  """Returns a description from JSON."""
  try:
    grid = tuple(map(int, fields['grid']))
    image_shape = tuple(map(int, fields['image_shape']))
    names = ('num_codes', 'bits', 'count', 'shard_size')
    numbers = {name: int(fields[name]) for name in names}
    sizes = (*grid, *image_shape, *(fields[name] for name in names))
    fits = numbers['num_codes'] <= 2 ** numbers['bits'] <= 2**32
    fits = fits and min(sizes) >= 1
    if not fits or len(grid) != 2 or len(image_shape) != 3:
      raise ValueError(f'its numbers are {sizes}')
    return Description(
        tokenizer=str(fields['tokenizer']),
        grid=grid,
        image_shape=image_shape,
        images=str(fields['images']),
        identity=str(fields['identity']),
        **numbers,
    )
  except Exception as error:
    raise errors.UserError(
        f'{where}: does not describe codes ({type(error).__name__}: {error})'
    ) from error
