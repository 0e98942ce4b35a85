"""Eight devices on one CPU, and one compilation cache for all tests."""

import os
import pathlib
import tempfile

_CACHE = pathlib.Path(tempfile.gettempdir()) / f'gmvq_jax-tests-{os.getuid()}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Nobody's own cache is read or written.
os.environ['XDG_CACHE_HOME'] = str(_CACHE / 'data')
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')
# Eight devices on a busy machine may keep each other waiting for long.
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_cpu_collective_call_terminate_timeout_seconds=600'
)

import jax  # noqa: E402  (reads the environment)
import numpy as np  # noqa: E402
import pytest  # noqa: E402


def pytest_addoption(parser):
  parser.addoption('--all', action='store_true', help='run slow tests too')


def pytest_collection_modifyitems(config, items):
  if config.getoption('--all'):
    return
  slow = [item for item in items if 'slow' in item.keywords]
  config.hook.pytest_deselected(items=slow)
  items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True, scope='module')
def compiled():
  """Forgets the programs of a file, of which all together fill the memory."""
  yield
  jax.clear_caches()


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
  """Images that can be learnt in seconds, uint8 [600, 16, 16, 3].

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
  """The work directory of a tiny run, and its test images."""
  import tiny

  from gmvq_jax import train

  path = tmp_path_factory.mktemp('trained')
  name = tiny.save_images(path, photographs)
  fields = {'quantizer__num_codes': 24, 'network__decoder_blocks': 1}
  train.run(tiny.config(name, **fields), str(path / 'run'), test=False)
  return path / 'run', photographs[540:600]
