"""Options, fixtures and the compilation settings of the tests.

Compiling takes most of the time, so programs are compiled without expensive
optimisations, each once for all processes, and counted (`profiling`). With
`--all` they are optimised as users' programs are.
"""

import fcntl
import importlib.metadata
import os
import pathlib
import random
import sys
import tempfile

_ALL = '--all' in sys.argv or os.environ.get('GMVQ_JAX_TESTS') == 'all'
_CACHE = pathlib.Path(tempfile.gettempdir()) / f'gmvq_jax-tests-{os.getuid()}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The user's own cache of data is neither read nor written.
os.environ['XDG_CACHE_HOME'] = str(_CACHE / 'data')
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
_FLAGS = [
    # Eight devices on a busy machine may keep each other waiting for long.
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',
]
if _ALL:
  # For the workers of pytest-xdist, whose command line is another.
  os.environ['GMVQ_JAX_TESTS'] = 'all'
else:
  _FLAGS += [
      '--xla_backend_optimization_level=0',
      '--xla_llvm_disable_expensive_passes=true',
  ]
  if importlib.metadata.version('jaxlib').startswith('0.10.'):
    # Fusions without MLIR: a third of the time. Unknown to newer versions.
    _FLAGS += ['--xla_cpu_use_fusion_emitters=false']
# Once, though workers inherit them: the flags are part of the cache's keys.
_GIVEN = os.environ.get('XLA_FLAGS', '').split()
os.environ['XLA_FLAGS'] = ' '.join(dict.fromkeys(_GIVEN + _FLAGS))

import jax  # noqa: E402  (reads the environment)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

pytest_plugins = ['profiling']


def pytest_addoption(parser):
  parser.addoption('--all', action='store_true', help='run slow tests too')
  parser.addoption(
      '--shuffle',
      metavar='SEED',
      help='run files, and the tests of each, in a random order',
  )


def pytest_collection_modifyitems(config, items):
  if not config.getoption('--all'):
    slow = [item for item in items if 'slow' in item.keywords]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
  if config.getoption('--shuffle'):
    _shuffle(items, config.getoption('--shuffle'))


def _shuffle(items, seed):
  """Shuffles files, then tests; those of a file stay together."""
  generator = random.Random(seed)
  files = sorted({item.path for item in items})
  place = {path: generator.random() for path in files}
  items.sort(key=lambda item: (place[item.path], generator.random()))


@pytest.fixture
def x64():
  """Float64 within one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture(scope='session')
def photographs():
  """Images that a small model learns in seconds, uint8 [600, 16, 16, 3].

  Each is two colours with a soft edge between them.
  """
  rng = np.random.default_rng(0)
  count, size = 600, 16
  y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
  angle, offset = rng.uniform(0, 2 * np.pi, count), rng.uniform(-1, 1, count)
  edge = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
  blend = 1 / (1 + np.exp(-4 * (edge - offset[:, None, None])))[..., None]
  one, other = rng.uniform(0, 255, (2, count, 1, 1, 3))
  return np.round(one + (other - one) * blend).astype(np.uint8)


@pytest.fixture(scope='session')
def trained(tmp_path_factory, photographs):
  """The work directory of a tiny run, and its test images; not to be changed.

  Trained once for all processes of the tests.
  """
  import tiny

  from gmvq_jax.training import trainer

  shared = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    shared = shared.parent
  path = shared / 'trained'
  with open(shared / 'trained.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    if not path.exists():
      path.mkdir()
      name = tiny.save_images(path, photographs)
      fields = {'quantizer__num_codes': 24, 'network__decoder_blocks': 1}
      trainer.run(tiny.config(name, **fields), str(path / 'run'), test=False)
  return path / 'run', photographs[540:600]
