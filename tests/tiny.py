"""A run small enough for tests: images of 16 x 16, 16 codes, 4 channels."""

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.nn import losses
from gmvq_jax.runtime import files
from gmvq_jax.training import build
from gmvq_jax.training import checkpoint
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import experiment

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
  if name != 'gmvq':
    fields.pop('quantizer.beta', None)  # Another weight of the same name.
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


def random_arrays(like, seed=0):
  """Returns NumPy arrays of the given shapes and types; compiles nothing.

  Floats: biases, means and matrices are normal; other vectors, such as scales
  and variances, positive. Integers are zero.
  """
  rng = np.random.default_rng(seed)

  def random_array(path, leaf):
    if not np.issubdtype(leaf.dtype, np.floating):
      return np.zeros(leaf.shape, leaf.dtype)
    if jax.tree_util.keystr(path[-1:]) in ("['bias']", "['mean']"):
      array = 0.1 * rng.normal(size=leaf.shape)
    elif len(leaf.shape) < 2:
      array = rng.uniform(0.5, 1.5, leaf.shape)
    else:
      fan_in = np.prod(leaf.shape[:-1])
      array = (4 / fan_in) ** 0.5 * rng.normal(size=leaf.shape)
    return array.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(random_array, like)


def random_model(config, channels=3, seed=0):
  """Returns the model of a configuration, and `random_arrays` for it."""
  model = build.build_model(config, build.numbers_of(config), channels)
  like = jax.eval_shape(
      lambda: model.init(jax.random.key(0), (16, 16, channels))
  )
  return model, random_arrays(like, seed)


def save_checkpoints(exp, path, errors):
  """Writes a work directory with checkpoints of random states.

  Args:
    exp: the experiment of the run.
    path: of the work directory, which must not exist.
    errors: the validation error of each step.

  Returns:
    The state of each step.
  """
  path.mkdir()
  files.write_json(path / 'config.json', exp.config.to_dict())
  checkpoints = checkpoint.Checkpoints(path)
  place = {'origin': exp.origin, 'batches': None}
  states = {}
  for step, mse in errors.items():
    states[step] = random_arrays(exp.abstract_state(), seed=step)
    checkpoints.save(step, states[step], place, {'mse': mse})
  checkpoints.close()
  return states


def like(run, **fields):
  """Returns the configuration of a run, with other fields as given.

  Runs that differ in numbers alone share its compiled programs.
  """
  result = files.read_config(str(run))
  result.update_from_flattened_dict(
      {k.replace('__', '.'): v for k, v in fields.items()}
  )
  return result


def small_config(data_name, **fields):
  """Returns a configuration whose programs compile in half the time."""
  result = method_config('vqvae+ema')
  result.data.name = data_name
  small = {'network.num_downsamplings': 1, 'kmeans.images': 0}
  result.update_from_flattened_dict(
      small | {k.replace('__', '.'): v for k, v in fields.items()}
  )
  return result


# Fields that add to the state of a run. No gradient is clipped.
MORE_STATE = {
    'ema_decay': 0.9,
    'skip_nonfinite': 2,
    'clip_norm': 1e6,
    'reconstruction_loss': 'tiny:nan_if_white',
}


def nan_if_white(decoded, images):
  """A reconstruction loss: the MSE, but NaN for images that are white."""
  white = jnp.min(images, axis=(1, 2, 3)) == 1
  return losses.mse(decoded, images) * jnp.where(white, jnp.nan, 1)
