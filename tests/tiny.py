"""A run small enough for tests: images of 16 x 16, 16 codes, 4 channels."""

import numpy as np

from gmvq_jax import config as config_lib
from gmvq_jax import experiment

FIELDS = {
    'batch_size': 16,
    'num_steps': 12,
    'learning_rate': 3e-3,
    'log_every_steps': 4,
    'eval_every_steps': 8,
    'checkpoint_every_steps': 4,
    'eval_batch_size': 32,
    'calibration_images': 64,
    'kmeans.images': 32,
    'network.width': 8,
    'network.encoder_blocks': 0,
    'network.decoder_blocks': 0,
    'quantizer.num_codes': 16,
    'quantizer.dim': 4,
    'quantizer.beta': 10.0,
}


def save_images(directory, images):
  """Writes images where `config` looks for them."""
  splits = np.split(images[:600], [480, 540])
  np.savez(
      directory / 'images.npz',
      **dict(zip(('train', 'validation', 'test'), splits, strict=True)),
  )
  return f'array:{directory}/images.npz'


def config(data_name, **fields):
  """Returns the tiny configuration, with other fields as given."""
  result = config_lib.default_config()
  result.quantizer = config_lib.quantizer_config('gmvq')
  result.data.name = data_name
  result.update_from_flattened_dict(
      FIELDS | {k.replace('__', '.'): v for k, v in fields.items()}
  )
  return result


def method_config(name):
  """Returns the tiny configuration of a method, without data."""
  result = config_lib.default_config()
  result.quantizer = config_lib.quantizer_config(name)
  fields = {
      field: value
      for field, value in FIELDS.items()
      if not field.startswith('quantizer.')
      or field.removeprefix('quantizer.') in result.quantizer
  }
  result.update_from_flattened_dict(fields)
  return result


def flags(data_name, **fields):
  """Returns the same as flags of the command line."""
  fields = FIELDS | {k.replace('__', '.'): v for k, v in fields.items()}
  fields['data.name'] = data_name
  return [f'--config.{k}={v}' for k, v in fields.items()]


def make(data_name, **fields):
  """Returns the experiment of the tiny configuration."""
  return experiment.Experiment(config(data_name, **fields))
