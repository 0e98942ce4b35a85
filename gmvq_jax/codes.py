"""Codes of sets of images, as files: what a prior learns from.

    codes.json                         what they are; see `Description`
    codes-00000-of-00003.array_record  the codes of `shard_size` images each

A record is the length of an image's name (2 bytes, big-endian), the name in
UTF-8, and its codes in rows, packed by `bits.pack`. Small sets can be a `.npz`
instead: `names`, `codes` (packed, `[N, bytes]`) and `description`, as JSON.

    codes = gmvq_jax.codes.open('codes/train')
    dataset = grain.MapDataset.source(codes).seed(0).shuffle().repeat()
    batches = iter(dataset.map(lambda example: example[1]).batch(64))
"""

from collections.abc import Sequence
import json
import os
import pathlib
import struct
from typing import Any
from typing import NamedTuple

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np

from gmvq_jax import bits as bits_lib
from gmvq_jax import errors
from gmvq_jax import workdir

DESCRIPTION = 'codes.json'
# Random access wants a group for each record; packed codes hardly shrink.
_OPTIONS = 'group_size:1,uncompressed'
_LENGTH = struct.Struct('>H')
_READ_AT_ONCE = 4096


class Description(NamedTuple):
  """What a set of codes is.

  Attributes:
    tokenizer: hash of the one that made them, and can decode them.
    num_codes: C.
    grid: `(h, w)` of every image.
    image_shape: `(H, W, channels)` of every image.
    bits: of a stored code.
    count: of the images.
    images: what they were, for the user, with a digest of some of them.
    shard_size: images in a file; the last may have fewer.
  """

  tokenizer: str
  num_codes: int
  grid: tuple[int, int]
  image_shape: tuple[int, int, int]
  bits: int
  count: int
  images: str
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

  `codes[i]` is `(name, codes)`, a string and an int32 array `[h, w]`.

  Attributes:
    description: what they are.
  """

  def __init__(self, description: Description, records: Sequence[bytes]):
    """Wraps records; see `open`."""
    self.description = description
    self._records = records

  def __len__(self) -> int:
    return self.description.count

  def __getitem__(self, index: int) -> tuple[str, np.ndarray]:
    names, codes = self._read([range(len(self))[index]])
    return names[0], codes[0]

  def __getitems__(
      self, indices: Sequence[int]
  ) -> list[tuple[str, np.ndarray]]:
    """Returns several at once."""
    indices = [range(len(self))[i] for i in indices]
    return list(zip(*self._read(indices), strict=True)) if indices else []

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
    for start in range(0, len(self), _READ_AT_ONCE):
      stop = min(start + _READ_AT_ONCE, len(self))
      _, codes = self._read(list(range(start, stop)))
      total += np.bincount(codes.ravel(), minlength=self.num_codes)
    return total

  def _read(self, indices):
    """Returns names, and codes `[n, h, w]`."""
    try:
      records = self._records.__getitems__(indices)
      return _parse(records, self.description)
    except Exception as error:  # array_record raises what it likes.
      reason = ' '.join(str(error).split())[:200]
      raise errors.UserError(
          f'codes: images {indices[0]} to {indices[-1]} cannot be read'
          f' ({reason}); the files may be damaged: encode the images again'
      ) from error


def open(path: str | os.PathLike) -> Codes:  # noqa: A001
  """Opens codes that `--mode=encode` wrote.

  Args:
    path: of a folder, or of a `.npz` file.

  Raises:
    errors.UserError: (a ValueError) when there are none, or not yet all, or
      they are damaged.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix == '.npz' and not path.is_dir():
    return _open_npz(path)
  described = read_description(path)
  if described is None:
    raise errors.UserError(
        f'{path}: holds no {DESCRIPTION}; give a folder or a .npz file that'
        ' --mode=encode wrote'
    )
  shards = [described.shard_name(i) for i in range(described.num_shards)]
  missing = [shard for shard in shards if not (path / shard).exists()]
  if missing:
    raise errors.UserError(
        f'{path}: {len(missing)} of its {len(shards)} files are not there, such'
        f' as {missing[0]}; the command that encodes them continues'
    )
  try:
    records = array_record_data_source.ArrayRecordDataSource(
        [str(path / shard) for shard in shards]
    )
    if len(records) != described.count:
      raise ValueError(f'{len(records)} images instead of {described.count}')
  except Exception as error:
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
        f'{path}: cannot be read ({reason}); encode the images again'
    ) from error
  return Codes(described, records)


def read_description(path: pathlib.Path) -> Description | None:
  """Returns what the codes in a folder are; None if there are none.

  Raises:
    errors.UserError: when that is damaged.
  """
  file = path / DESCRIPTION
  fields = workdir.read_json(file)
  return None if fields is None else _description(fields, file)


def write_description(path: pathlib.Path, description: Description) -> None:
  """Writes what the codes in a folder will be, before they are there."""
  workdir.write_json(path / DESCRIPTION, description._asdict())


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
  temporary = path.with_name(path.name + '.tmp')
  try:
    with temporary.open('wb') as file:
      np.savez_compressed(
          file,
          names=np.array(names),
          codes=bits_lib.pack(codes.reshape(len(codes), -1), description.bits),
          description=np.array(json.dumps(description._asdict())),
      )
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _open_npz(path):
  try:
    with np.load(path, allow_pickle=False) as file:
      names, packed = file['names'], file['codes']
      fields = json.loads(str(file['description']))
  except Exception as error:
    raise errors.UserError(
        f'{path}: cannot be read as codes ({" ".join(str(error).split())});'
        ' give a folder or a .npz file that --mode=encode wrote'
    ) from error
  described = _description(fields, path)
  if not described.count == len(names) == len(packed):
    raise errors.UserError(
        f'{path}: is damaged: it holds {len(names)} names and {len(packed)}'
        f' codes of {described.count} images'
    )
  return Codes(described, _Packed(names, packed))


class _Packed(NamedTuple):
  """The records of a `.npz`."""

  names: np.ndarray
  packed: np.ndarray

  def __getitems__(self, indices):
    return [
        _LENGTH.pack(len(name)) + name + self.packed[i].tobytes()
        for i in indices
        for name in [os.fsencode(str(self.names[i]))]
    ]


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
  if codes.min() < 0 or codes.max() >= description.num_codes:
    raise ValueError(f'a code of {codes.max()} of {description.num_codes}')
  return names, codes.reshape(-1, height, width)


def _description(fields: dict[str, Any], where: object) -> Description:
  """Returns a description from JSON."""
  try:
    numbers = ('num_codes', 'bits', 'count', 'shard_size')
    made = Description(
        tokenizer=str(fields['tokenizer']),
        grid=tuple(map(int, fields['grid'])),
        image_shape=tuple(map(int, fields['image_shape'])),
        images=str(fields['images']),
        **{name: int(fields[name]) for name in numbers},
    )
    sizes = (*made.grid, *made.image_shape, *(fields[n] for n in numbers))
    fits = len(made.grid) == 2 and len(made.image_shape) == 3
    if not fits or min(sizes) < 1 or made.bits > 32:
      raise ValueError(f'its numbers are {sizes}')
    return made
  except Exception as error:
    raise errors.UserError(
        f'{where}: does not describe codes ({type(error).__name__}: {error})'
    ) from error
