"""Devices and processes: the mesh, where arrays lie on it, and who speaks."""

from collections.abc import Callable
from collections.abc import Sequence
import json
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from gmvq_jax.runtime import errors

AXIS = 'data'


def initialize() -> None:
  """Joins the processes of one run, before anything else is done with JAX.

  Where they are is known from the environment: on TPU pods, under Slurm, MPI or
  Kubernetes as JAX does, elsewhere from `JAX_COORDINATOR_ADDRESS`,
  `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

  Raises:
    errors.UserError: when that is not known, or they do not find each other.
  """
  try:
    numbers: dict[str, Any] = {
        argument: int(os.environ[name])
        for argument, name in (
            ('num_processes', 'JAX_NUM_PROCESSES'),
            ('process_id', 'JAX_PROCESS_ID'),
        )
        if name in os.environ
    }
    jax.distributed.initialize(**numbers)
  except (ValueError, RuntimeError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
        f'--distributed: the processes of the run are not found ({reason}); use'
        ' a launcher of launch/, or set JAX_COORDINATOR_ADDRESS,'
        ' JAX_NUM_PROCESSES and JAX_PROCESS_ID'
    ) from error


def is_first() -> bool:
  """Whether this process is the one that writes and speaks."""
  return jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
  """Returns what a function returns on the first process, on all.

  Args:
    function: what only the first process calls. It returns a JSON value.

  Raises:
    errors.UserError: on all processes, when anything is raised on the first.
  """
  if jax.process_count() == 1:
    return function()
  message = {}
  if is_first():
    try:
      message = {'value': function()}
    except Exception as error:  # The others must not wait for ever.
      message = {'error': str(error) or repr(error)}
  data = np.frombuffer(json.dumps(message).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  if not is_first():
    data = np.zeros(size, np.uint8)
  message = json.loads(bytes(multihost_utils.broadcast_one_to_all(data)))
  if 'error' in message:
    raise errors.UserError(message['error'])
  return message['value']


def on_all(flag: bool) -> bool:
  """Returns whether a flag is true on every process."""
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def wait_for_all(what: str) -> None:
  """Waits until every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def data_mesh(num_devices: int | None = None) -> Mesh:
  """Returns the first devices along one axis, over which batches are divided.

  Args:
    num_devices: how many; all by default.
  """
  return mesh_of(jax.devices()[:num_devices])


def local_mesh() -> Mesh:
  """Returns the devices of this process, for what each process does alone."""
  return mesh_of(jax.local_devices())


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays divided along their first dimension."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a pytree of arrays whole on every device."""
  return jax.device_put(tree, replicated(mesh))


def pad(array: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns `[size, ...]`, the last entry repeated, and a mask `[size]`."""
  missing = size - len(array)
  mask = np.arange(size) < len(array)
  return np.concatenate([array, array[-1:].repeat(missing, axis=0)]), mask


def divide(tree: Any, mesh: Mesh) -> Any:
  """Divides a pytree of arrays, which every process holds, over the devices."""
  sharding = batched(mesh)
  return jax.tree.map(
      lambda x: jax.make_array_from_callback(
          x.shape, sharding, lambda index: x[index]
      ),
      tree,
  )


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
  """Returns devices along one axis, of this machine or described ones."""
  # Under the default, Explicit, the networks' layers would have to say how
  # their results are sharded.
  return jax.make_mesh(
      (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
  )
