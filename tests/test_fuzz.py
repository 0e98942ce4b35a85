"""Whatever is given, it runs or one line says what is wrong."""

import copy
import os
import sys
from unittest import mock

from absl import app
from absl import flags
from absl.testing import flagsaver
import hypothesis
from hypothesis import strategies as st
from ml_collections import ConfigDict
import pytest
import tiny

from gmvq_jax import main  # noqa: F401  (defines the flags)
from gmvq_jax import quantizers
from gmvq_jax.runtime import errors
from gmvq_jax.training import build
from gmvq_jax.training import command_line
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import config_checks

CIFAR10 = 'configs/cifar10.py'
METHODS = (
    'gmvq',
    'vqvae+affine+opt+replace+l2',
    'vqvae+ema+replace',
    'sqvae+l2',
    'gumbel+frozen',
    'fsq',
    'lfq',
    'simvq+rotation',
    'diveq',
)
# Most characters in a line, beside what was given.
LINE = 2500


ALL = os.environ.get('GMVQ_JAX_TESTS') == 'all'


def fuzz(cases):
  """Runs a test on so many cases, the same each time."""
  return hypothesis.settings(
      max_examples=cases,
      deadline=None,
      derandomize=True,
      database=None,
      suppress_health_check=list(hypothesis.HealthCheck),
  )


def check_line(error, *names, given=''):
  """A message is one line, not too long, and has one of the names."""
  message = str(error)
  assert message.isprintable()
  assert 0 < len(message) < LINE + 2 * len(given)
  assert any(name in message for name in names) or not names, message


# Values of any kind, the likely ones first.
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, -1, 16, 0.5, 1.0, 0.9, -0.5, 1e30, 1e-30]),
    st.integers(-3, 70),
    st.floats(0, 2),
    st.floats(),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**64, 10**30, 10**400, 10**5000, 1e300]),
)
TEXTS = st.one_of(
    st.sampled_from(['', 'x', 'mse', 'l1', 'os:getcwd', 'a\nb', '\x1b[31m']),
    st.sampled_from(['linear', 'expected', 'batch', 'tiled', 'bfloat16']),
    st.text(max_size=50),
)
NAMES = st.lists(
    st.sampled_from(
        [*quantizers.FACTORIES, *quantizers.WRAPPERS, 'ema', '', 'typo']
    ),
    max_size=5,
).map('+'.join)
LEAVES = st.one_of(NUMBERS, TEXTS, NAMES, st.booleans(), st.none())
VALUES = st.one_of(
    LEAVES,
    LEAVES,
    st.lists(NUMBERS, max_size=4),
    st.lists(LEAVES, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(['name', 'dim', 'x']), LEAVES, max_size=3),
    st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple),
)

FITTING = {
    bool: st.booleans(),
    int: st.sampled_from([1, 1, 2, 4, 8, 16, 32, 480]),
    float: st.floats(0, 1, exclude_min=True, exclude_max=True),
    str: TEXTS,
    tuple: st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple),
}
MISSING = object()
OTHERS = ('data', 'network', 'quantizer', 'typo', 'data.typo', 'quantizer.typo')


def valid(method):
  """Returns the tiny configuration of a method."""
  config = tiny.config('array:x.npy').to_dict()
  quantizer = config_lib.quantizer_config(method).to_dict()
  sizes = {'num_codes': 16, 'dim': 4}
  config['quantizer'] = quantizer | {
      k: v for k, v in sizes.items() if k in quantizer
  }
  return config


VALID = {method: valid(method) for method in METHODS}


@st.composite
def changes(draw):
  """Returns a method, and a few fields with what is put there."""
  method = draw(st.sampled_from(METHODS))
  fields = config_lib.flatten(VALID[method])
  changes = {}
  for _ in range(draw(st.integers(1, 3))):
    field = draw(st.sampled_from([*fields, *OTHERS]))
    values = VALUES | st.just(MISSING)
    if field in fields and draw(st.integers(0, 4)):
      # More often what may pass.
      same = fields[field]
      values = FITTING[type(same)]
      values = values | st.just(same) if isinstance(same, str) else values
    changes[field] = draw(values)
  return method, changes


def changed(method, mutations):
  """Returns the tiny configuration of a method with some fields changed."""
  config = copy.deepcopy(VALID[method])
  for field, value in mutations.items():
    *path, last = field.split('.')
    inner = config
    for name in path:
      inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
      continue
    if value is MISSING:
      inner.pop(last, None)
    else:
      inner[last] = copy.deepcopy(value)
  return ConfigDict(config)


@pytest.mark.parametrize('method, field, value', [
    ('gmvq', 'learning_rate', 10**400),
    ('gmvq', 'learning_rate', 1e300),
    ('gmvq', 'batch_size', 10**5000),
    ('gmvq', 'network.num_downsamplings', 10**9),
    ('gmvq', 'network.encoder_blocks', 10**9),
    ('gmvq', 'quantizer.dim', 2**31 - 1),
    ('gmvq', 'quantizer.gamma', {}),
    ('gmvq', 'data.name', {'a\nb': 1}),
    ('fsq', 'quantizer.levels', ('many', 2)),
    ('fsq', 'quantizer.levels', (2.5, 3)),
    ('fsq', 'quantizer.levels', (2**20, 2**20)),
    ('vqvae+affine+opt+replace+l2', 'quantizer.replace_after', 2**31),
    ('vqvae+affine+opt+replace+l2', 'quantizer.opt_steps', 10**9),
], ids=lambda value: value if isinstance(value, str) else '')
def test_what_was_a_trace_a_hang_or_an_abort_is_one_line(method, field, value):
  with pytest.raises(errors.UserError) as caught:
    config = changed(method, {field: value})
    config_checks.validate(config)
    config_checks.validate_data(config, (16, 16, 3), 480, 1)
  check_line(caught.value, f'config.{field}')


def test_a_configuration_is_refused_in_one_line_or_can_be_built():
  counts = {'refused': 0, 'unfit': 0, 'built': 0}

  cases = 4000 if ALL else 400

  @fuzz(cases)
  @hypothesis.given(
      change=changes(),
      shape=st.sampled_from([(16, 16, 3), (32, 16, 1), (18, 7, 3), (1, 1, 1)]),
      num_images=st.sampled_from([480, 50_000, 32, 1]),
      num_devices=st.sampled_from([1, 1, 2, 8]),
  )
  def run(change, shape, num_images, num_devices):
    config = changed(*change)
    try:
      config_checks.validate(config)
    except errors.UserError as error:
      counts['refused'] += 1
      names = [f'config.{field}' for field in change[1]]
      if any(name.startswith('config.quantizer') for name in names):
        names.append('config.quantizer')  # Its parts may not fit each other.
      return check_line(error, *names)
    try:
      config_checks.validate_data(config, shape, num_images, num_devices)
    except errors.UserError as error:
      counts['unfit'] += 1
      return check_line(error, 'config.')
    counts['built'] += 1
    steps = config_lib.num_steps(config, num_images)
    assert 0 < steps < 2**31
    parts = build.build(
        config, build.numbers_of(config), shape[-1], steps
    )
    assert parts.model.quantizer.num_codes > 1

  run()
  assert min(counts.values()) > cases / 14, counts


FLAGS = (
    *('config', 'workdir', 'mode', 'distributed', 'flagfile', 'help', 'typo'),
    *(f'config.{field}' for field in config_lib.flatten(VALID['gmvq'])),
    *('config.data', 'config.', 'config.batch_sise', 'config.quantizer.levels'),
    *("config['seed']", 'config.seed.x', 'config..seed', 'config.data.name.0'),
)
GIVEN = st.one_of(
    st.sampled_from([CIFAR10, f'{CIFAR10}:fsq', f'{CIFAR10}:typo', 'no.py']),
    st.sampled_from(['0', '1', '-1', '2.5', '1e3', '1e999', 'nan', 'true']),
    st.sampled_from(['', '=', '--', '-', 'None', '[]', '(8, 5', '{"a": 1}']),
    st.sampled_from(['a\nb', '\0', '\udcff', '(' * 500, '9' * 5000]),
    TEXTS,
)
ARGUMENTS = st.one_of(
    st.builds('{}{}={}'.format, st.sampled_from(['--'] * 8 + ['-', '', '---']),
              st.sampled_from(FLAGS), GIVEN),
    st.builds('--{}{}'.format, st.sampled_from(['', 'no']),
              st.sampled_from(FLAGS)),
    GIVEN,
)
STARTS = st.sampled_from([
    [],
    [f'--config={CIFAR10}'],
    [f'--config={CIFAR10}:fsq', '--workdir=x'],
    ['--config', CIFAR10],
    ['-config=configs/table1_cifar10.py'],
])


@pytest.mark.filterwarnings('ignore:the load_module')
def test_a_command_line_is_refused_in_one_line_or_parsed(capsys):
  app.define_help_flags()
  counts = {'refused': 0, 'parsed': 0}

  cases = 1500 if ALL else 200

  @fuzz(cases)
  @hypothesis.given(start=STARTS, rest=st.lists(ARGUMENTS, max_size=4))
  @hypothesis.example([], ['--', f'-config={CIFAR10}'])
  def run(start, rest):
    argv = ['main.py', *start, *rest]
    with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv):
      try:
        left = command_line.parse(argv)
        if flags.FLAGS.config is not None:
          config_checks.validate(flags.FLAGS.config)
        assert set(left) <= set(argv)
        counts['parsed'] += 1
      except errors.UserError as error:
        check_line(error, given=''.join(argv))
        counts['refused'] += 1
      except SystemExit:
        assert '--help' in argv or any('--help=' in a for a in argv)
    capsys.readouterr()

  run()
  assert min(counts.values()) > cases / 6, counts
