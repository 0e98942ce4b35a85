"""The configuration: what may stand in it, and what is said of the rest."""

import importlib.util
import json
import pathlib
import random

from ml_collections import ConfigDict
import pytest
import tiny

from gmvq_jax.runtime import errors
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import config_checks

CONFIGS = sorted(pathlib.Path('configs').glob('*.py'))


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def changed(field, value):
  config = tiny.config('array:x.npy')
  with config.unlocked(), config.ignore_type():
    config.update_from_flattened_dict({field: value})
  return config


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_every_config_of_every_method_is_valid(path):
  module = load(path)
  config = module.get_config()
  if 'compare' in config:
    del config['compare']  # See experiments/comparison.py.
  config_checks.validate(config)
  for method in getattr(module, 'METHODS', ()):
    config_checks.validate(module.get_config(method))


def test_an_unknown_method_is_refused():
  with pytest.raises(errors.UserError, match="'typo' is unknown"):
    load(pathlib.Path('configs/cifar10.py')).get_config('typo')


def test_cifar10_is_the_papers_setting():
  module = load(pathlib.Path('configs/cifar10.py'))
  config, paper = map(module.get_config, ('gmvq+entropy', 'gmvq'))
  assert module.get_config() == module.get_config('gmvq+annealed')
  assert paper.quantizer.beta == 1 < config.quantizer.beta
  paper.quantizer.beta = config.quantizer.beta
  assert config == paper
  assert (config.num_epochs, config.batch_size) == (100, 256)
  assert (config.learning_rate, config.warmup_factor) == (1e-2, 0.2)
  assert config.temperature.to_dict() == dict(
      start=2.0, end=0.1, shape='exponential'
  )
  assert (config.quantizer.num_codes, config.quantizer.dim) == (1024, 64)
  assert config_lib.num_steps(config, 45_000) == 17_578


BAD = {
    'batch_size': (0, -1, 2.5, '16', None),
    'seed': (-1, 2**32),
    'num_steps': (-1, 0.5),
    'learning_rate': (0.0, -1.0, float('nan'), float('inf'), 'fast'),
    'warmup_fraction': (1.0, -0.1),
    'weight_decay': (-1e-4,),
    'temperature.start': (0.0,),
    'temperature.shape': ('step', ''),
    'calibration_images': (-1,),
    'data.name': ('',),
    'network.dtype': ('float16', 'int8'),
    'network.batch_norm': ('yes', 1),
    'network.width': (0,),
    'quantizer.name': ('vq', ''),
    'quantizer.num_codes': (1, 0, 4.0),
    'quantizer.gamma': (-0.1, float('nan')),
    'quantizer.two_sigma2': (0.0,),
    'quantizer.latent': ('typo',),
    'quantizer.typo': (1,),
    'typo': (1,),
    'data.typo': ('x',),
}


@pytest.mark.parametrize(
    'field, value', [(f, v) for f, values in BAD.items() for v in values]
)
def test_one_line_names_the_field_and_what_was_given(field, value):
  with pytest.raises(errors.UserError) as caught:
    config_checks.validate(changed(field, value))
  message = str(caught.value)
  assert f'config.{field}' in message
  assert repr(value) in message
  assert '\n' not in message


def test_whatever_is_given_validate_passes_or_says_why():
  """Hundreds of configurations with a few fields at random."""
  random.seed(0)
  values = [0, 1, -1, 7, 0.5, -0.5, 1e30, float('nan'), '', 'x', True, None, []]
  fields = list(config_lib.flatten(tiny.config('array:x.npy')))
  refused = 0
  for _ in range(500):
    config = tiny.config('array:x.npy')
    with config.unlocked(), config.ignore_type():
      for field in random.sample(fields, 2):
        config.update_from_flattened_dict({field: random.choice(values)})
    try:
      config_checks.validate(config)
    except errors.UserError:
      refused += 1
  assert 250 < refused < 500


def test_missing_fields_are_named():
  for field in ('batch_size', 'quantizer'):
    config = tiny.config('array:x.npy')
    with config.unlocked():
      del config[field]
    with pytest.raises(errors.UserError, match=f'config.{field}.* is missing'):
      config_checks.validate(config)
  config = tiny.config('array:x.npy')
  with config.unlocked():
    del config.quantizer.gamma
  with pytest.raises(errors.UserError, match='quantizer.gamma is missing'):
    config_checks.validate(config)


@pytest.mark.parametrize(
    'fields, shape, images, devices, message',
    [
        ({}, (16, 16, 3), 480, 3, 'batch_size=16: not divisible by the 3 dev'),
        (
            {'eval_batch_size': 20},
            (16, 16, 3),
            480,
            8,
            'eval_batch_size=20: not divisible',
        ),
        ({}, (16, 16, 3), 12, 1, 'batch_size=16: more than the 12 training'),
        ({}, (16, 16, 3), 20, 1, 'kmeans.images=32: more than the 20'),
        (
            {'calibration_images': 20},
            (16, 16, 3),
            480,
            1,
            'calibration_images=20: with 480 training images, less than one',
        ),
        (
            {'num_steps': 0, 'num_epochs': 10**9},
            (16, 16, 3),
            480,
            1,
            'num_epochs=1000000000: makes 30000000000 steps',
        ),
        ({}, (16, 18, 3), 480, 1, 'images of 16 x 18 cannot be halved'),
        (
            {'quantizer__num_codes': 513},
            (16, 16, 3),
            480,
            1,
            'num_codes=513: more than the 512 latents',
        ),
    ],
)
def test_what_does_not_fit_the_data(fields, shape, images, devices, message):
  config = tiny.config('array:x.npy', **fields)
  with pytest.raises(errors.UserError, match=message):
    config_checks.validate_data(config, shape, images, devices)


def test_a_digest_is_of_what_changes_a_run():
  config = tiny.config('array:x.npy')
  expected = config_lib.digest(config)
  stored = json.loads(json.dumps(config.to_dict()))
  assert config_lib.digest(ConfigDict(stored)) == expected
  stored['quantizer']['beta'] = 10
  assert config_lib.digest(ConfigDict(stored)) == expected
  for fields, same in (
      ({'log_every_steps': 1}, True),
      ({'seed': 1}, False),
      ({'quantizer__beta': 10.5}, False),
  ):
    other = tiny.config('array:x.npy', **fields)
    assert (config_lib.digest(other) == expected) == same


def test_another_configuration_is_refused_field_by_field():
  stored = tiny.config('array:x.npy').to_dict()
  same = tiny.config('array:x.npy', log_every_steps=1)
  config_checks.check_same_run(same, stored)
  other = tiny.config('array:x.npy', batch_size=32, quantizer__beta=1.0)
  with pytest.raises(errors.UserError) as caught:
    config_checks.check_same_run(other, stored)
  assert 'batch_size is 16, given 32' in str(caught.value)
  assert 'quantizer.beta is 10.0, given 1.0' in str(caught.value)
