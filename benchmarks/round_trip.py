"""Encodes and decodes a run's test split, and compares with its evaluation.

    python benchmarks/round_trip.py --workdir=RUN --input=cifar10:test
        [--output=FILE.json]
"""

import tempfile

from absl import app
from absl import flags
import numpy as np
import timing

from gmvq_jax.tokenizer import code_files
from gmvq_jax.tokenizer import encode
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib
from gmvq_jax.training import summary as summary_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of a run.', required=True)
_INPUT = flags.DEFINE_string('input', None, 'Its test split.', required=True)
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')

_AT_ONCE = 1000


def _main(_):
  tokenizer = tokenizer_lib.Tokenizer.load(_WORKDIR.value)
  loaded = encode.load_images(tokenizer, _INPUT.value)
  with tempfile.TemporaryDirectory() as folder:
    summary = encode.encode(
        tokenizer, loaded, folder, packed=True
    )
    codes = code_files.open(folder)
    grids = np.stack([grid for _, grid in codes])
  total = 0.0
  for start in range(0, len(grids), _AT_ONCE):
    part = slice(start, start + _AT_ONCE)
    decoded = tokenizer.decode(grids[part]).astype(np.float64)
    images = loaded.images[part]
    total += np.sum(np.mean(np.square(decoded - images / 255), axis=(1, 2, 3)))
  mse = total / len(grids)
  evaluated = summary_lib.evaluate_workdir(_WORKDIR.value)['mse']
  result = {
      'hardware': timing.hardware(),
      'mse': mse,
      'evaluated_mse': evaluated,
      'relative_difference': abs(mse - evaluated) / evaluated,
      **summary,
  }
  timing.report(result, _OUTPUT.value)


if __name__ == '__main__':
  app.run(_main)
