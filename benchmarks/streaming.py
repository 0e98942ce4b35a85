"""Measures the memory and the rate of encoding more images than fit into it.

    python benchmarks/streaming.py --workdir=RUN --folder=SCRATCH
        [--input=cifar10:train] [--gigabytes=2] [--output=FILE.json]

The images of the input, again and again, are written as one array to SCRATCH
and encoded from there; then the input itself, as often decoded from its files.
Memory is what the process holds besides pages of files, which the system takes
back when it needs them, at each tenth of the way. Run it where less memory is
allowed than the array is large, such as in a container, to see that it is.
"""

import pathlib
import re
import tempfile

from absl import app
from absl import flags
import numpy as np
import timing

from gmvq_jax.runtime import progress
from gmvq_jax.tokenizer import encode
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of a run.', required=True)
_FOLDER = flags.DEFINE_string('folder', None, 'For files.', required=True)
_INPUT = flags.DEFINE_string('input', 'cifar10:train', 'The images.')
_GIGABYTES = flags.DEFINE_float('gigabytes', 2.0, 'Of the array, in GiB.')
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')

_STATUS = pathlib.Path('/proc/self/status')
# Where the kernel says how much memory this process may have.
_LIMITS = ('memory/memory.limit_in_bytes', 'memory.max')


class _Watched:
  """Images, and the memory at each tenth of the way through them."""

  def __init__(self, images):
    self._images = images
    self.shape = images.shape
    self.mebibytes = {}

  def __len__(self):
    return len(self._images)

  def __getitem__(self, index):
    if isinstance(index, slice):
      tenth = 10 * index.start // len(self)
      self.mebibytes.setdefault(f'{10 * tenth} %', _memory())
    return self._images[index]


def _memory():
  kibibytes = re.search(r'RssAnon:\s*(\d+)', _STATUS.read_text())[1]
  return round(int(kibibytes) / 1024)


def _write_array(path, images):
  """Writes images in turn until there are enough."""
  each = int(np.prod(images.shape[1:]))
  count = int(_GIGABYTES.value * 2**30 / each)
  array = np.lib.format.open_memmap(
      path, 'w+', dtype=np.uint8, shape=(count, *images.shape[1:])
  )
  for start in progress.track(range(0, count, 1000), 'Writing the array'):
    stop = min(start + 1000, count)
    array[start:stop] = images[np.arange(start, stop) % len(images)]
    array.flush()


def _encode(tokenizer, name, folder):
  loaded = encode.load_images(tokenizer, name)
  watched = _Watched(loaded.images)
  before = _memory()
  with tempfile.TemporaryDirectory(dir=folder) as output:
    summary = encode.encode(
        tokenizer, loaded._replace(images=watched), output
    )
  return {
      'images': summary['images'],
      'gibibytes': int(np.prod(watched.shape, dtype=np.int64)) / 2**30,
      'images_per_second': summary['images_per_second'],
      'device_busy': summary['device_busy'],
      'mebibytes_before': before,
      'mebibytes': watched.mebibytes,
  }


def _limit():
  """Returns the memory allowed, in MiB; None where there is no limit."""
  for name in _LIMITS:
    for group in pathlib.Path('/proc/self/cgroup').read_text().splitlines():
      path = pathlib.Path('/sys/fs/cgroup') / name
      within = path.parent / group.rpartition(':')[2].lstrip('/') / path.name
      if within.exists() and within.read_text().strip().isdecimal():
        mebibytes = int(within.read_text()) // 2**20
        if mebibytes < 2**24:
          return mebibytes
  return None


def _main(_):
  tokenizer = tokenizer_lib.Tokenizer.load(_WORKDIR.value)
  result = {'hardware': timing.hardware(), 'mebibytes_allowed': _limit()}
  with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
    array = f'{folder}/images.npy'
    images = encode.load_images(tokenizer, _INPUT.value).images
    _write_array(array, images)
    result['array'] = _encode(tokenizer, f'array:{array}', folder)
    result[_INPUT.value] = _encode(tokenizer, _INPUT.value, folder)
  timing.report(result, _OUTPUT.value)


if __name__ == '__main__':
  app.run(_main)
