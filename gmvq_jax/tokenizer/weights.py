"""The arrays of a model under flat names, as safetensors has them.

    encoder.ConvNorm_0.Conv_0.kernel      [height, width, in, out]
    encoder.ConvNorm_0.BatchNorm_0.scale  [channels]; bias, mean and var too
    quantizer.codebook                    whatever the quantizer has
    codebook                              [C, L], what the decoder gets for each

The names are the paths in Flax's trees, parameters and batch statistics side by
side. Nothing is executed by reading them.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.nn import autoencoder
from gmvq_jax.runtime import digests
from gmvq_jax.runtime import errors

Tensors = dict[str, np.ndarray]

CODEBOOK = 'codebook'
_STATE = 'quantizer_state'


def of_model(
    model: autoencoder.Autoencoder, variables: autoencoder.Variables
) -> Tensors:
  """Returns the arrays of a model, the codebook among them."""
  codebook = model.quantizer.embed(
      variables.params['quantizer'],
      variables.quantizer_state,
      jnp.arange(model.quantizer.num_codes),
  )
  tensors = {
      name: np.asarray(leaf)
      for name, leaf in zip(
          _names(variables), jax.tree.leaves(variables), strict=True
      )
  }
  return tensors | {CODEBOOK: np.asarray(codebook, np.float32)}


def to_variables(
    tensors: Tensors, like: autoencoder.Variables, where: object
) -> autoencoder.Variables:
  """Returns the variables of a model, from what `of_model` returned.

  Args:
    tensors: the arrays.
    like: variables, or their shapes and types.
    where: the arrays are from, for the user.

  Raises:
    errors.UserError: for the first array that is missing, of another shape or
      type, or not expected.
  """
  names = _names(like)
  for name, leaf in zip(names, jax.tree.leaves(like), strict=True):
    given = tensors.get(name)
    if given is None:
      raise errors.UserError(f'{where}: {name} is missing')
    if (given.shape, given.dtype) != (leaf.shape, leaf.dtype):
      raise errors.UserError(
          f'{where}: {name} is {given.dtype} {given.shape}; its configuration'
          f' makes it {leaf.dtype} {leaf.shape}'
      )
  for name in tensors:
    if name != CODEBOOK and name not in names:
      raise errors.UserError(f'{where}: its configuration has no {name}')
  leaves = [tensors[name] for name in names]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read(path: pathlib.Path) -> Tensors:
  """Reads a safetensors file.

  Raises:
    errors.UserError: when it cannot be read.
  """
  import safetensors.numpy  # Not needed by a run.

  try:
    return safetensors.numpy.load(path.read_bytes())
  except Exception as error:  # It has an exception type of its own.
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(f'{path}: cannot be read ({reason})') from error


def to_bytes(tensors: Tensors) -> bytes:
  """Returns the contents of a safetensors file."""
  import safetensors.numpy

  return safetensors.numpy.save(tensors)


def digest(tensors: Tensors, structure: dict[str, Any]) -> str:
  """Returns the SHA-256 of arrays and of what else says how they are used.

  Of the structure as JSON with sorted keys, and then, in the order of their
  names, of each array `NAME DTYPE SHAPE` and its bytes, little-endian.
  """
  parts: list[str | np.ndarray] = [json.dumps(structure, sort_keys=True)]
  for name, array in sorted(tensors.items()):
    parts.append(f'{name} {array.dtype} {array.shape}')
    parts.append(array.astype(array.dtype.newbyteorder('<')))
  return digests.sha256(*parts)


def _names(variables):
  """Returns a name for every leaf."""
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
  return [_name(*map(_key, path)) for path in paths]


def _name(field, *keys):
  # `params` and `batch_stats` have dicts of the same names.
  return '.'.join(([_STATE] if field == _STATE else []) + list(keys))


def _key(entry):
  """Returns the text of an entry of a path: a field, a key or an index."""
  for attribute in ('name', 'key', 'idx'):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  return str(entry)
