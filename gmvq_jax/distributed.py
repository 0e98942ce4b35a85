"""Devices: the mesh, and where arrays lie on it."""

from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

AXIS = 'data'


def data_mesh() -> Mesh:
  """Returns all devices along one axis, over which batches are divided."""
  # Under the default, Explicit, indexing a codebook by sharded codes raises.
  return jax.make_mesh(
      (jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,)
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays divided along their first dimension."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a pytree of arrays whole on every device."""
  return jax.device_put(tree, replicated(mesh))
