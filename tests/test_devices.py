"""From one state, every method does the same on any number of devices."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import steps

from gmvq_jax import distributed


def check(actual, expected, tolerance):
  """Compares metrics, gradients (in the optimiser's state) and states.

  One other code would be seen in each of them.
  """
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(
        actual[name], value, rtol=tolerance, atol=tolerance, err_msg=name
    )


@pytest.mark.parametrize('method', steps.METHODS)
@pytest.mark.parametrize(
    'count', [*(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 8]
)
def test_one_step(method, count):
  one, more = (
      steps.flat(steps.one(method, distributed.data_mesh(n)))
      for n in (1, count)
  )
  check(more, one, 1e-5)


@pytest.mark.parametrize('method', steps.METHODS)
def test_one_and_twenty_steps_in_float64(method):
  expected = steps.flat(steps.many(method, distributed.data_mesh(1)))
  for count in (2, 4, 8):
    actual = steps.flat(steps.many(method, distributed.data_mesh(count)))
    check(actual, expected, 1e-6)


@pytest.mark.parametrize(
    'take, tolerance',
    [
        pytest.param(steps.one, 1e-5, marks=pytest.mark.slow),
        (steps.many, 1e-6),
    ],
)
def test_two_processes_of_two_devices(tmp_path, take, tolerance):
  """Of all methods, against four devices of this one."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  script = pathlib.Path(__file__).parent / 'steps.py'
  started = [
      subprocess.Popen(
          [sys.executable, script, tmp_path / 'steps.npz', take.__name__],
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
  mesh = distributed.data_mesh(4)
  for method in steps.METHODS:
    expected = {
        f'{method}: {name}': value
        for name, value in steps.flat(take(method, mesh)).items()
    }
    check({name: actual[name] for name in expected}, expected, tolerance)
