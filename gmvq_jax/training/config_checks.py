"""Checks of a configuration: by itself, and against its data and a run."""

import math
from typing import Any
from typing import get_origin

from ml_collections import ConfigDict
import numpy as np

from gmvq_jax import quantizers
from gmvq_jax.ops import soft_assignment
from gmvq_jax.runtime import errors
from gmvq_jax.training import schedules
from gmvq_jax.training.config import FREE_TO_CHANGE
from gmvq_jax.training.config import default_config
from gmvq_jax.training.config import flatten
from gmvq_jax.training.config import num_steps

DTYPES = ('float32', 'bfloat16')
_LARGEST = float(np.finfo(np.float32).max)

_AT_LEAST_0 = (lambda x: x >= 0, 'at least 0')
_AT_LEAST_1 = (lambda x: x >= 1, 'at least 1')
_POSITIVE = (lambda x: x > 0, 'greater than 0')
_SHARE = (lambda x: 0 <= x < 1, 'at least 0 and less than 1')
# What is built one by one.
_FEW = (lambda x: 0 <= x <= 1000, 'from 0 to 1000')
_CHANNELS = (lambda x: 1 <= x <= 2**16, 'at least 1 and at most 2^16')

_RULES = {
    'seed': (lambda x: 0 <= x < 2**32, 'at least 0 and less than 2^32'),
    'batch_size': _AT_LEAST_1,
    'num_epochs': _AT_LEAST_1,
    'num_steps': (lambda x: 0 <= x < 2**31, 'from 0 to 2^31 - 1'),
    'learning_rate': _POSITIVE,
    'warmup_fraction': _SHARE,
    'warmup_factor': (lambda x: 0 <= x <= 1, 'from 0 to 1'),
    'weight_decay': _AT_LEAST_0,
    'adam_b1': _SHARE,
    'adam_b2': _SHARE,
    'clip_norm': _AT_LEAST_0,
    'skip_nonfinite': (lambda x: 0 <= x < 2**31, 'from 0 to 2^31 - 1'),
    'temperature.start': _POSITIVE,
    'temperature.end': _POSITIVE,
    'temperature.shape': schedules.TEMPERATURE_SHAPES,
    'ema_decay': _SHARE,
    'reconstruction_loss': (bool, 'mse, l1 or MODULE:FUNCTION'),
    'kmeans.images': _AT_LEAST_0,
    'kmeans.iterations': _AT_LEAST_0,
    'log_every_steps': _AT_LEAST_1,
    'eval_every_steps': _AT_LEAST_1,
    'checkpoint_every_steps': _AT_LEAST_1,
    'eval_batch_size': _AT_LEAST_1,
    'calibration_images': _AT_LEAST_0,
    'data.name': (bool, 'a data set, such as cifar10 or folder:PATH'),
    'data.crop': _AT_LEAST_0,
    'data.size': _AT_LEAST_0,
    'data.channels': (lambda x: x in (1, 3), '1 or 3'),
    'data.bad_images': ('skip', 'fail'),
    'data.keep': ('auto', 'device', 'memory', 'stream'),
    'network.width': _CHANNELS,
    'network.encoder_blocks': _FEW,
    'network.decoder_blocks': _FEW,
    'network.num_downsamplings': (lambda x: 0 <= x <= 16, 'from 0 to 16'),
    'network.dtype': DTYPES,
    'quantizer.num_codes': (lambda x: x >= 2, 'at least 2'),
    'quantizer.dim': _CHANNELS,
    'quantizer.gamma': _AT_LEAST_0,
    'quantizer.beta': _AT_LEAST_0,
    'quantizer.two_sigma2': _POSITIVE,
    'quantizer.weight_scale': _POSITIVE,
    'quantizer.entropy_temperature': _POSITIVE,
    'quantizer.noise_variance': _AT_LEAST_0,
    'quantizer.latent': quantizers.LATENT_TERMS,
    'quantizer.aggregate': quantizers.AGGREGATES,
    'quantizer.assignment': soft_assignment.METHODS,
    'quantizer.opt_steps': _FEW,
    'quantizer.levels': (
        lambda x: all(type(n) is int and n > 1 for n in x)
        and math.prod(x) < 2**31,
        'integers of at least 2 whose product is less than 2^31',
    ),
}


def validate(config: ConfigDict) -> None:
  """Checks a configuration by itself, before anything is loaded.

  Raises:
    errors.UserError: for the first field that is missing, unknown, of a wrong
      type or out of range.
  """
  given = flatten(config)
  default = flatten(default_config())
  for field, value in default.items():
    if field not in given:
      raise errors.UserError(f'config.{field} is missing; such as {value!r}')
  for field, value in given.items():
    if field in default:
      _check_type(field, value, type(default[field]))
    elif not field.startswith('quantizer.'):
      raise errors.UserError(
          f'config.{field}={_shown(value)}: there is no such field; there are'
          f' {", ".join(sorted(default))}'
      )
  _check_quantizer(config['quantizer'])
  for field, value in given.items():
    if field in _RULES:
      _check_rule(field, value)
    if type(value) is int and value >= 2**31 and field != 'seed':
      raise errors.UserError(
          f'config.{field}={_shown(value)}: must be less than 2^31'
      )
  try:
    quantizers.make(**config['quantizer'])
  except ValueError as error:
    raise errors.UserError(f'config.quantizer: {error}') from error


def validate_data(
    config: ConfigDict,
    image_shape: tuple[int, ...],
    num_images: int,
    num_devices: int,
) -> None:
  """Checks a configuration against its data and the devices.

  Args:
    config: one that `config_checks.validate` passes.
    image_shape: `(H, W, channels)`.
    num_images: in the training split.
    num_devices: that share a batch.

  Raises:
    errors.UserError: for the first thing that does not fit.
  """
  for field in ('batch_size', 'eval_batch_size'):
    if config[field] % num_devices:
      raise errors.UserError(
          f'config.{field}={config[field]}: not divisible by the'
          f' {num_devices} devices; give a multiple of {num_devices}'
      )
  for field in ('batch_size', 'kmeans.images'):
    value = flatten(config)[field]
    if value > num_images:
      raise errors.UserError(
          f'config.{field}={value}: more than the {num_images} training images'
          ' of the data set; give at most that'
      )
  if num_steps(config, num_images) >= 2**31:
    raise errors.UserError(
        f'config.num_epochs={config.num_epochs}: makes'
        f' {num_steps(config, num_images)} steps; give at most 2^31 - 1'
    )
  calibration = min(config.calibration_images, num_images)
  if 0 < calibration < config.eval_batch_size:
    raise errors.UserError(
        f'config.calibration_images={config.calibration_images}: with'
        f' {num_images} training images, less than one batch of'
        f' config.eval_batch_size={config.eval_batch_size}; give a smaller'
        ' eval_batch_size, or calibration_images=0'
    )
  factor = 2**config.network.num_downsamplings
  height, width, _ = image_shape
  if height % factor or width % factor:
    raise errors.UserError(
        f'config.network.num_downsamplings={config.network.num_downsamplings}:'
        f' images of {height} x {width} cannot be halved that often; both must'
        f' be multiples of {factor}'
    )
  latents = config.kmeans.images * (height // factor) * (width // factor)
  quantizer = quantizers.make(**config.quantizer)
  started = config.kmeans.images and quantizer.write is not None
  if started and quantizer.num_codes > latents:
    raise errors.UserError(
        f'config.quantizer.num_codes={quantizer.num_codes}: more than the'
        f' {latents} latents of config.kmeans.images={config.kmeans.images}'
        ' images; give more images or fewer codes'
    )


def check_same_run(config: ConfigDict, stored: dict[str, Any]) -> None:
  """Checks that a run may continue under this configuration.

  Args:
    config: the one given now.
    stored: the one the work directory was started with.

  Raises:
    errors.UserError: naming every field that differs.
  """
  given, stored = flatten(config), flatten(stored)
  differing = [
      f'{field} is {stored.get(field)!r}, given {given.get(field)!r}'
      for field in sorted(given.keys() | stored.keys())
      if given.get(field) != stored.get(field) and field not in FREE_TO_CHANGE
  ]
  if differing:
    raise errors.UserError(
        'the work directory holds a run of another configuration'
        f' ({"; ".join(differing)}); give the same one, or another directory,'
        ' with --config.init_from to start from these parameters'
    )


def _check_type(field, value, wanted):
  # Whole numbers that a float32 holds may stand for floats.
  whole = wanted is float and type(value) is int and abs(value) <= 2**24
  if type(value) is not wanted and not whole:
    raise errors.UserError(
        f'config.{field}={_shown(value)}: is of type {type(value).__name__}; it'
        f' must be of type {wanted.__name__}'
    )
  if wanted is float and not abs(value) <= _LARGEST:
    raise errors.UserError(
        f'config.{field}={value!r}: must be finite, as a float32'
    )


def _check_rule(field, value):
  rule = _RULES[field]
  if callable(rule[0]):
    fits, wanted = rule[0](value), rule[1]
  else:
    fits, wanted = value in rule, f'one of {", ".join(rule)}'
  if not fits:
    raise errors.UserError(f'config.{field}={_shown(value)}: must be {wanted}')


def _shown(value):
  """Returns a value as it is shown; of a long one, how it begins."""
  try:
    text = repr(value)
  except ValueError:  # Python does not write thousands of digits.
    return 'a number of thousands of digits'
  return text if len(text) <= 200 else f'{text[:200]}...'


def _check_quantizer(fields):
  """Checks the fields of a quantizer against the arguments of its parts."""
  try:
    parameters = quantizers.fields(fields['name'])
  except ValueError as error:
    raise errors.UserError(f'config.quantizer.name: {error}') from error
  for name, value in fields.items():
    if name == 'name':
      continue
    if name not in parameters:
      raise errors.UserError(
          f'config.quantizer.{name}={_shown(value)}: {fields["name"]} has no'
          f' such field; it has {", ".join(parameters)}'
      )
    if isinstance(value, list):
      value = tuple(value)
    wanted = parameters[name].annotation
    _check_type(f'quantizer.{name}', value, get_origin(wanted) or wanted)
  for name, parameter in parameters.items():
    if name not in fields and parameter.default is parameter.empty:
      raise errors.UserError(
          f'config.quantizer.{name} is missing; {fields["name"]} needs it'
      )
