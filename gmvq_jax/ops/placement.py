"""Sharding of positions, read from the mesh in an array's type.

No function here asks for the devices of this process, so programs can be
compiled for devices of another machine.
"""

from collections.abc import Callable
import functools
import inspect
import math
from typing import Any
from typing import ParamSpec
from typing import TypeVar

import jax
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import PartitionSpec

_Args = ParamSpec('_Args')
_Result = TypeVar('_Result')

REPLICATED = PartitionSpec()


def num_devices(x: jax.Array) -> int:
  """Returns the number of devices that the compiler may shard an array over.

  This is the size of its mesh without the axes that `shard_map` maps. It is 1
  if no mesh is known. `jit(f, in_shardings=...)` does not tell `f` the mesh:
  the arguments must be on it, or `jax.set_mesh` be used.

  Args:
    x: an array, traced or not.
  """
  mesh = _mesh(x)
  axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
  return math.prod(size for size, kind in axes if kind != AxisType.Manual)


def with_auto_axes(
    positions: str,
    out_specs: Callable[[PartitionSpec, dict[str, Any]], Any],
) -> Callable[[Callable[_Args, _Result]], Callable[_Args, _Result]]:
  """Returns a decorator that runs a function with Auto mesh axes.

  The axes of `jax.make_mesh` are Explicit by default. On those, JAX raises for
  operations whose output sharding is ambiguous, such as indexing a codebook by
  sharded codes. The decorated function converts Explicit axes to Auto and
  constrains its results to `out_specs`. Without Explicit axes it is unchanged.

  Args:
    positions: name of the argument whose leading dimensions are positions.
    out_specs: `(spec, arguments) -> specs`. `spec` is that of the argument
      `positions`; the result is a prefix of the function's result as a pytree.
  """

  def decorate(
      function: Callable[_Args, _Result],
  ) -> Callable[_Args, _Result]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
      arguments = signature.bind(*args, **kwargs).arguments
      mesh = _mesh(arguments[positions])
      if not mesh.explicit_axes:
        return function(*args, **kwargs)
      # `auto_axes` takes arrays alone; other arguments are constants.
      leaves, tree = jax.tree.flatten((args, kwargs))
      arrays = {
          i: x for i, x in enumerate(leaves) if isinstance(x, jax.Array)
      }

      def inside(arrays: dict[int, jax.Array]) -> _Result:
        both = [arrays.get(i, x) for i, x in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(tree, both)
        return function(*args, **kwargs)

      with jax.sharding.use_abstract_mesh(mesh):
        result: _Result = jax.sharding.auto_axes(
            inside,
            axes=mesh.explicit_axes,
            out_sharding=out_specs(spec_of(arguments[positions]), arguments),
        )(arrays)
      return result

    return wrapper

  return decorate


def leading(spec: PartitionSpec) -> PartitionSpec:
  """Returns the spec of all dimensions but the last."""
  return PartitionSpec(*spec[:-1])


def spec_of(x: jax.Array) -> PartitionSpec:
  """Returns the partition spec in an array's type; Auto axes are not in it."""
  spec: PartitionSpec = jax.typeof(x).sharding.spec
  return spec


def _mesh(x: jax.Array) -> AbstractMesh:
  """Returns the mesh of an array, or else that of the context."""
  mesh = jax.typeof(x).sharding.mesh
  return jax.sharding.get_abstract_mesh() if mesh.empty else mesh
