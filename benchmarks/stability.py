"""Counts the codes that change with the batch or the number of devices.

    python benchmarks/stability.py --workdir=RUN [--input=cifar10:test]
        [--output=FILE.json]

Every image is encoded with batches of 1, 7 and 256 on 1, 2 and 8 (virtual)
devices, in float32 and, but for batches of 1, in bfloat16, each number of
devices in a process of its own. For comparison also in float32 as one would
without a tokenizer: the same function, compiled for batches of these sizes.

A code that flips is one that is not what a batch of 256 on one device gave. Its
margin is what the logit of the best code is above the next, in nats, computed
in float64 (of GM-VQ alone).
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl import app
from absl import flags
import jax
import numpy as np
import timing

from gmvq_jax.nn import autoencoder
from gmvq_jax.ops import posterior
from gmvq_jax.runtime import progress
from gmvq_jax.tokenizer import encode as encode_lib
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of a run.', required=True)
_INPUT = flags.DEFINE_string('input', 'cifar10:test', 'The images.')
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')
_CODES = flags.DEFINE_string('codes', '', 'For itself: where to write codes.')

_DEVICES = (1, 2, 8)
_BATCHES = {'float32': (256, 7, 1), 'bfloat16': (256, 7)}
_SHOWN = 20


def _tokenizer(dtype):
  loaded = tokenizer_lib.Tokenizer.load(_WORKDIR.value)
  config = loaded.stored.config.copy_and_resolve_references()
  config.network.dtype = dtype
  return tokenizer_lib.Tokenizer(loaded.stored._replace(config=config))


def _in_batches(encode, images, size):
  starts = range(0, len(images), size)
  what = f'Batches of {size} on {jax.device_count()}'
  parts = [
      np.asarray(encode(images[i : i + size]))
      for i in progress.track(starts, what)
  ]
  return np.concatenate(parts)


def _write_codes(path):
  """Encodes in all ways that this number of devices allows."""
  codes = {}
  for dtype, sizes in _BATCHES.items():
    tokenizer = _tokenizer(dtype)
    images = encode_lib.load_images(tokenizer, _INPUT.value).images[:]
    for size in sizes:
      codes[f'{dtype} {size}'] = _in_batches(tokenizer.encode, images, size)
    if jax.device_count() == 1 and dtype == 'float32':
      plain = jax.jit(tokenizer.encode_unit)
      variables = jax.device_get(tokenizer.variables)
      for size in sizes:
        codes[f'without {size}'] = _in_batches(
            lambda x, plain=plain, v=variables: plain(v, x), images, size
        )
  np.savez(path, **codes)


def _margins():
  """Returns how far the best code of each position is ahead, `[n, h, w]`."""
  tokenizer = _tokenizer('float32')
  quantizer = tokenizer.stored.config.quantizer
  if not quantizer.name.startswith('gmvq'):
    return None
  images = encode_lib.load_images(tokenizer, _INPUT.value).images
  variables = jax.device_get(tokenizer.variables)

  @jax.jit
  def latents(images):
    unit = autoencoder.to_unit(images)
    return tokenizer.model.encode(variables, unit)[0]

  codebook = tokenizer.codebook.astype(np.float64)
  centre = codebook.mean(axis=0)
  with jax.enable_x64(True):
    keys = np.asarray(posterior.keys(codebook, centre))
  parts = []
  for i in progress.track(range(0, len(images), 256), 'Margins'):
    z_hat, raw = np.split(np.float64(latents(images[i : i + 256])), 2, axis=-1)
    precision = quantizer.weight_scale * np.logaddexp(raw, 0)
    with jax.enable_x64(True):
      queries = np.asarray(posterior.queries(z_hat, precision, centre))
    logits = queries @ keys.T
    best = np.partition(logits, -2, axis=-1)[..., -2:]
    parts.append(best[..., 1] - best[..., 0])
  return np.concatenate(parts)


def _compare(one, other, margins):
  flipped = one != other
  result = {'flips': int(flipped.sum()), 'share': float(flipped.mean())}
  if margins is not None and flipped.any():
    result['margins_of_flips'] = sorted(margins[flipped].tolist())[-_SHOWN:]
  return result


def _main(_):
  if _CODES.value:
    _write_codes(_CODES.value)
    return
  margins = _margins()
  with tempfile.TemporaryDirectory() as folder:
    codes = {}
    for count in _DEVICES:
      path = pathlib.Path(folder) / f'{count}.npz'
      command = [sys.executable, *sys.argv, f'--codes={path}']
      environment = {'JAX_NUM_CPU_DEVICES': str(count)}
      subprocess.run(command, env=os.environ | environment, check=True)
      codes[count] = dict(np.load(path))
  truth = codes[1]['float32 256']
  result = {'hardware': timing.hardware(), 'tokens': truth.size}
  if margins is not None:
    result['margins'] = {
        'least': float(margins.min()),
        'below_1e-4': int((margins < 1e-4).sum()),
        'below_1e-3': int((margins < 1e-3).sum()),
        'median': float(np.median(margins)),
    }
  for dtype, sizes in _BATCHES.items():
    reference = codes[1][f'{dtype} 256']
    result[dtype] = {
        f'{count} devices, batches of {size}': _compare(
            codes[count][f'{dtype} {size}'], reference, margins
        )
        for count in _DEVICES
        for size in sizes
    }
  result['bfloat16 against float32'] = _compare(
      codes[1]['bfloat16 256'], truth, None
  )
  result['without units'] = {
      f'batches of {size}': _compare(
          codes[1][f'without {size}'], codes[1]['without 256'], margins
      )
      for size in _BATCHES['float32']
  }
  timing.report(result, _OUTPUT.value)


if __name__ == '__main__':
  app.run(_main)
