"""From one state, every method trains alike on any number of devices.

By default there is one method for each mechanism, on 1 and on 8 devices.
"""

import functools
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import steps

from gmvq_jax.runtime import distributed

# Trained by gradients and replaced, without a codebook, and a composition of
# moving averages; `gmvq tiled`, with a posterior, has a test of its own.
SOME = ('vqvae+replace', 'fsq', 'residual shared ema')
ALL = [
    *SOME,
    *(
        pytest.param(method, marks=pytest.mark.slow)
        for method in steps.METHODS
        if method not in SOME
    ),
]


def check(actual, expected, tolerance):
  """Compares metrics, gradients (in the optimizer's state) and states.

  One code that differs changes each of them.
  """
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(
        actual[name], value, rtol=tolerance, atol=tolerance, err_msg=name
    )


@functools.cache
def on_devices(run, method, count):
  """Returns the result of `steps.one` or `steps.many`, flat."""
  return steps.flat(run(method, distributed.data_mesh(count)))


@pytest.mark.parametrize('method', ALL)
@pytest.mark.parametrize(
    'count', [*(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 8]
)
def test_one_step(method, count):
  """Of SGD in float32: metrics, gradients, and the quantizer's state."""
  check(
      on_devices(steps.one, method, count),
      on_devices(steps.one, method, 1),
      1e-5,
  )


def test_twenty_steps_in_float64():
  """Of AdamW, with batch norms, noise, and tiles on each device."""
  check(
      on_devices(steps.many, 'gmvq tiled', 8),
      on_devices(steps.many, 'gmvq tiled', 1),
      1e-6,
  )


@pytest.mark.slow
@pytest.mark.parametrize('method', steps.METHODS)
@pytest.mark.parametrize('count', [2, 4, 8])
def test_twenty_steps_of_every_method_in_float64(method, count):
  check(
      on_devices(steps.many, method, count),
      on_devices(steps.many, method, 1),
      1e-6,
  )


@pytest.mark.slow
@pytest.mark.parametrize('run, tolerance', [
    (steps.one, 1e-5),
    (steps.many, 1e-6),
])
def test_two_processes_of_two_devices(tmp_path, run, tolerance):
  """All methods, compared with four devices of this process.

  `test_distributed.py` has a run of two processes by default.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  script = pathlib.Path(__file__).parents[1] / 'steps.py'
  started = [
      subprocess.Popen(
          [sys.executable, script, tmp_path / 'steps.npz', run.__name__],
          env=os.environ
          | {
              'JAX_NUM_CPU_DEVICES': '2',
              'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
              'JAX_NUM_PROCESSES': '2',
              'JAX_PROCESS_ID': str(index),
          },
          stderr=subprocess.PIPE,
          text=True,
      )
      for index in range(2)
  ]
  for process in started:
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
  actual = np.load(tmp_path / 'steps.npz')
  for method in steps.METHODS:
    expected = {
        f'{method}: {name}': value
        for name, value in on_devices(run, method, 4).items()
    }
    check({name: actual[name] for name in expected}, expected, tolerance)
