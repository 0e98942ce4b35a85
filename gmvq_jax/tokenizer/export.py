"""A trained model as a folder that runs without this package.

    encode.stablehlo, decode.stablehlo   programs, of jax.export
    weights.safetensors                  see weights.py
    config.json                          network, quantizer, hash, metrics
    README.md                            the model card
"""

import functools
import pathlib
import shutil
import tempfile
from typing import Any

import jax
from jax import export as export_lib
import jax.numpy as jnp

from gmvq_jax.reporting import pages
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files as files_lib
from gmvq_jax.tokenizer import saved_model
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib
from gmvq_jax.tokenizer import weights
from gmvq_jax.training import summary

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(workdir: str, output: str) -> dict[str, Any]:
  """Exports the best checkpoint of a run.

  Args:
    workdir: of the run.
    output: the folder to write, whole or not at all.

  Returns:
    A summary: `output`, the folder; `tokenizer`, the hash; `bytes`.

  Raises:
    errors.UserError: when there is no such run, or the output is not free.
  """
  files_lib.require_run(workdir)
  if jax.process_count() > 1:
    raise errors.UserError('--distributed: one process exports; leave it out')
  path = files_lib.expand(output).resolve()
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise errors.UserError(
        f'--output={output}: is there already; give a folder of its own'
    )
  tokenizer = tokenizer_lib.Tokenizer.load(workdir)
  try:
    known = summary.assess_workdir(workdir)
    unknown = ''
  except errors.UserError as error:  # Its images may be on another machine.
    known, unknown = {}, str(error)
  described = {
      **saved_model.describe(tokenizer.stored),
      'num_codes': tokenizer.num_codes,
      'grid': tokenizer.grid(*tokenizer.image_shape[:2]),
      **known,
  }
  files = {
      'README.md': _card(tokenizer, known, unknown).encode(),
      files_lib.WEIGHTS: weights.to_bytes(tokenizer.stored.tensors),
      **{f'{k}.stablehlo': v for k, v in programs(tokenizer).items()},
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export') as folder:
    made = pathlib.Path(folder) / path.name
    made.mkdir()
    for name, content in files.items():
      (made / name).write_bytes(content)
    files_lib.write_json(made / files_lib.CONFIG, described)
    if path.exists():
      path.rmdir()
    shutil.move(made, path)
  return {
      'output': str(path),
      'tokenizer': tokenizer.hash,
      'bytes': sum(file.stat().st_size for file in path.iterdir()),
  }


def programs(tokenizer: tokenizer_lib.Tokenizer) -> dict[str, bytes]:
  """Returns `encode` and `decode` as serialized StableHLO, with the weights.

  They take any number of images of the shape the tokenizer was trained on, and
  compute them in the units in which the tokenizer does.
  """
  height, width, _ = tokenizer.image_shape
  variables = jax.tree.map(jnp.asarray, jax.device_get(tokenizer.variables))
  (batch,) = export_lib.symbolic_shape('b')

  def serialize(function, shape, dtype):
    def in_units(platform):
      size = tokenizer_lib.unit_size(height, width, platform)
      # As arguments would be: what XLA computes beforehand it rounds otherwise.
      known = jax.tree.map(jax.lax.optimization_barrier, variables)
      of_unit = functools.partial(function, known)
      return functools.partial(_in_units, of_unit, size)

    def of_batch(x):
      return jax.lax.platform_dependent(
          x, cpu=in_units('cpu'), default=in_units('accelerator')
      )

    with jax.enable_x64(False):
      exported = export_lib.export(jax.jit(of_batch), platforms=PLATFORMS)(
          jax.ShapeDtypeStruct((batch, *shape), dtype)
      )
    return bytes(exported.serialize())

  grid = tokenizer.grid(height, width)
  return {
      'encode': serialize(
          tokenizer.encode_unit, tokenizer.image_shape, jnp.uint8
      ),
      'decode': serialize(tokenizer.decode_unit, grid, jnp.int32),
  }


def _in_units(function, size, batch):
  """Computes a function of as many as `size` at a time, padded with zeros."""
  count = batch.shape[0]
  units = -(-count // size)
  missing = [(0, units * size - count)] + [(0, 0)] * (batch.ndim - 1)
  parts = jnp.pad(batch, missing).reshape(units, size, *batch.shape[1:])
  computed = jax.lax.map(function, parts)
  return computed.reshape(units * size, *computed.shape[2:])[:count]


def _card(tokenizer, known, unknown):
  config = tokenizer.stored.config
  return pages.template('model_card.md').render(
      tokenizer=tokenizer,
      quantizer=config.quantizer.name,
      data=config.data.name,
      split=config.data.test,
      image_shape=tokenizer.image_shape,
      grid=tokenizer.grid(*tokenizer.image_shape[:2]),
      metrics=known.get('metrics'),
      anchors=known.get('anchors'),
      unknown=unknown,
      versions=pages.versions(),
  )
