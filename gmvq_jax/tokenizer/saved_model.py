"""What is stored of a trained model: in its work directory, or exported."""

import pathlib
from typing import Any
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.tokenizer import weights
from gmvq_jax.training import build
from gmvq_jax.training import checkpoint
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import config_checks


class Stored(NamedTuple):
  """A trained model.

  Attributes:
    config: of its run; of an exported one, what matters to its use.
    tensors: of `weights.of_model`.
    image_shape: `(H, W, channels)` of the images it was trained on.
  """

  config: ConfigDict
  tensors: weights.Tensors
  image_shape: tuple[int, int, int]

  @property
  def hash(self) -> str:
    """SHA-256 of the weights, the network and the quantizer."""
    return weights.digest(self.tensors, _structure(self.config))


def read(path: pathlib.Path) -> Stored:
  """Reads the best checkpoint of a run, or an exported model.

  Args:
    path: of the work directory, or of the folder.

  Raises:
    errors.UserError: when there is none, or it is damaged.
  """
  return _exported(path) if files.is_exported(path) else _checkpoint(path)


def describe(model: Stored) -> dict[str, Any]:
  """Returns what `config.json` of an exported model needs to hold."""
  data = model.config.data
  return {
      'tokenizer': model.hash,
      'image_shape': list(model.image_shape),
      'data': {'crop': data.crop, 'size': data.size},
      **_structure(model.config),
  }


def _structure(config):
  """Returns what the meaning of weights depends on, as JSON has it."""
  fields = config.to_dict()
  fields['quantizer'] = {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in fields['quantizer'].items()
  }
  return {name: fields[name] for name in ('network', 'quantizer')}


def _checkpoint(path):
  if not path.is_dir():
    raise errors.UserError(
        f'{path}: there is no such directory; give the work directory of a run,'
        ' or an exported tokenizer'
    )
  config = files.read_config(path)
  config_checks.validate(config)
  checkpoints = checkpoint.Checkpoints(path)
  image_shape = checkpoints.some_place()['origin'].get('image_shape')
  if image_shape is None:
    raise errors.UserError(
        f'{path}: was trained by an earlier version, which did not keep the'
        ' shape of images; train it again, or from it by --config.init_from'
    )
  sharding = distributed.replicated(distributed.data_mesh())
  like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      build.abstract_state(config, image_shape[-1]),
  )
  state, place, _ = checkpoints.restore_best(like)
  if place['origin']['config'] != config_lib.digest(config):
    raise errors.UserError(
        f'{path / files.CONFIG}: is not the configuration that the checkpoints'
        ' beside it come from; put that back'
    )
  numbers = build.numbers_of(config)
  model = build.build_model(config, numbers, image_shape[-1])
  variables = jax.device_get(state.eval_variables)
  return Stored(config, weights.of_model(model, variables), tuple(image_shape))


def _exported(path):
  described = files.read_json(path / files.CONFIG)
  if described is None:
    raise errors.UserError(
        f'{path / files.CONFIG}: is missing; export the tokenizer again'
    )
  try:
    config = config_lib.default_config()
    for name in ('network', 'quantizer'):
      config[name] = ConfigDict(described[name])
    height, width, channels = described['image_shape']
    if not all(type(n) is int and n > 0 for n in (height, width, channels)):
      raise ValueError(f'image_shape is {described["image_shape"]}')
    # Which data there were does not matter any more.
    config.data.update(described['data'], name=str(path), channels=channels)
    known = described['tokenizer']
  except Exception as error:  # Whatever it holds.
    raise errors.UserError(
        f'{path / files.CONFIG}: is not that of an exported tokenizer'
        f' ({type(error).__name__}: {error})'
    ) from error
  config_checks.validate(config)
  tensors = weights.read(path / files.WEIGHTS)
  model = Stored(config, tensors, (height, width, channels))
  like = build.abstract_state(config, channels).variables
  weights.to_variables(tensors, like, path / files.WEIGHTS)
  if model.hash != known:
    raise errors.UserError(
        f'{path}: is damaged: {files.WEIGHTS} or {files.CONFIG} has changed'
        ' since it was exported; export the tokenizer again'
    )
  return model
