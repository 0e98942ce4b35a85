"""The configuration of a run: every field with its default."""

import json
from typing import Any

from ml_collections import ConfigDict

from gmvq_jax import quantizers
from gmvq_jax.runtime import digests
from gmvq_jax.runtime import errors

# May differ between the start of a run and its continuation: they change what
# is looked at, not what is computed.
FREE_TO_CHANGE = (
    'log_every_steps',
    'checkpoint_every_steps',
    'data.dir',
    'data.keep',
)


def default_config() -> ConfigDict:
  """Returns the paper's setting, less the data set and the quantizer."""
  return ConfigDict({
      'seed': 0,
      # Steps. `num_steps=0` takes them from the epochs.
      'batch_size': 256,
      'num_epochs': 100,
      'num_steps': 0,
      # AdamW; linear warm-up from a factor of the maximum, then cosine to 0.
      'learning_rate': 1e-2,
      'warmup_fraction': 0.1,
      'warmup_factor': 0.2,
      'weight_decay': 1e-4,
      'adam_b1': 0.9,
      'adam_b2': 0.95,
      # Shorten gradients to this norm (0: never).
      'clip_norm': 0.0,
      # Leave out so many updates in a row whose gradient is not finite, before
      # the run stops.
      'skip_nonfinite': 0,
      # Augmentation: mirror half of the training images, at random.
      'random_flip': False,
      # mse, l1, or MODULE:FUNCTION; see nn/losses.py.
      'reconstruction_loss': 'mse',
      # Evaluate with a moving average of the parameters (0: with the last). A
      # codebook that is state, as of vqvae+ema, is not averaged.
      'ema_decay': 0.0,
      'temperature': {'start': 2.0, 'end': 0.1, 'shape': 'exponential'},
      # Where a run starts: the best parameters of another work directory, or
      # k-means of the latents of this many images (0: a random codebook).
      'init_from': '',
      'kmeans': {'images': 256, 'iterations': 10},
      'log_every_steps': 50,
      'eval_every_steps': 500,
      'checkpoint_every_steps': 500,
      'eval_batch_size': 256,
      # Before each evaluation the statistics of the batch norms are gathered
      # anew from this many training images, without noise (0: never).
      'calibration_images': 4096,
      'data': {
          'name': '',
          'dir': '',
          'train': 'train[:90%]',
          'validation': 'train[90%:]',
          'test': 'test',
          # See `data.load`; 0 leaves images as they are.
          'crop': 0,
          'size': 0,
          'channels': 3,
          'bad_images': 'skip',
          'keep': 'auto',
      },
      'network': {
          'width': 64,
          'encoder_blocks': 2,
          'decoder_blocks': 2,
          'num_downsamplings': 2,
          'batch_norm': True,
          'dtype': 'float32',
          # Compute layers again in the backward pass, for less memory. Exact,
          # as gradients added up over small batches would not be: q(c) and the
          # batch norms are those of a batch.
          'remat': False,
      },
      'quantizer': {'name': ''},
  })


# What configurations take as `:METHOD`; other compositions of parts do as well.
METHODS = (
    # The paper's Table 1.
    'gmvq',
    'gmvq+entropy',
    'vqvae',
    'vqvae+l2',
    'vqvae+replace',
    'vqvae+l2+replace',
    'vqvae+affine',
    'vqvae+opt',
    'vqvae+affine+opt',
    'sqvae',
    'gumbel',
    # What it leaves out.
    'vqvae+affine+opt+replace+l2',
    'vqvae+ema',
    'vqvae+ema+replace',
    'fsq',
    'frozen',
    # Ours.
    'gmvq+annealed',
    # Later ones.
    'vqvae+rotation',
    'simvq',
    'diveq',
    'lfq',
    'bsq',
)

# What has no default of its own: the codebook's size, and GM-VQ's weights.
_GIVEN = {'num_codes': 1024, 'dim': 64, 'gamma': 0.01, 'beta': 10.0}
# Methods that are a quantizer with values of their own.
_NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    'gmvq': ('gmvq', {'beta': 1.0}),
    'gmvq+entropy': ('gmvq', {}),
    'gmvq+annealed': (
        'gmvq+replace',
        {
            'hard': False,
            'gaussian_noise': False,
            'weight_scale': 2.0,
            'sharpening': 1.0,
            'identity': 1.0,
        },
    ),
}


def quantizer_config(name: str) -> ConfigDict:
  """Returns the `quantizer` fields of a method, at their defaults.

  Args:
    name: such as `gmvq` or `vqvae+l2+replace`; see `quantizers.make`.

  Raises:
    errors.UserError: for an unknown name.
  """
  try:
    parameters = quantizers.fields(name)
  except ValueError as error:
    raise errors.UserError(str(error)) from error
  fields = {
      key: _GIVEN[key] if parameter.default is parameter.empty
      else parameter.default
      for key, parameter in parameters.items()
  }
  return ConfigDict({'name': name} | fields)


def method_config(method: str) -> ConfigDict:
  """Returns the `quantizer` fields of a method, as `quantizer_config`.

  Args:
    method: such a name too, or one of three with values of their own. `gmvq` is
      the paper's GM-VQ, with beta = 1, and `gmvq+entropy` has a larger beta.
      `gmvq+annealed` is ours: its decoder is trained on the relaxed mixture,
      which hardens as the temperature falls; see docs/annealed.md.

  Raises:
    errors.UserError: for an unknown name.
  """
  name, values = _NAMED.get(method, (method, {}))
  fields = quantizer_config(name)
  fields.update(values)
  return fields


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns a nested configuration as `{'data.name': 'cifar10', ...}`."""
  flat: dict[str, Any] = {}
  for name, value in dict(config).items():
    field = f'{prefix}{name}'
    if hasattr(value, 'items'):
      flat |= flatten(value, f'{field}.')
    else:
      # JSON knows no tuples.
      flat[field] = tuple(value) if isinstance(value, list) else value
  return flat


def digest(config: ConfigDict) -> str:
  """Returns a digest of all that changes what a run computes."""
  fields = {
      # 1 and 1.0 are the same.
      field: float(value) if type(value) is int else value
      for field, value in sorted(flatten(config).items())
      if field not in FREE_TO_CHANGE
  }
  return digests.sha256(json.dumps(fields))


def num_steps(config: ConfigDict, num_images: int) -> int:
  """Returns the steps of a run on `num_images` training images."""
  whole = config.num_epochs * num_images // config.batch_size
  return config.num_steps or max(whole, 1)
