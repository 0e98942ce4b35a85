"""Where positions lie: the mesh that the type of an array names.

Nothing here asks for the devices of this process, so that a program can be
compiled for devices that are not here.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any
from typing import ParamSpec
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import PartitionSpec

_Args = ParamSpec('_Args')
_Result = TypeVar('_Result')

WHOLE = PartitionSpec()  # Of what every device holds.


def num_devices(x: jax.Array) -> int:
  """Returns over how many devices an array may be divided by the compiler.

  Those of its mesh, but for axes that are mapped by `shard_map`; 1 where no
  mesh is known: `jit(f, in_shardings=...)` of arrays that lie on none.
  """
  mesh = _mesh(x)
  sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
  count = 1
  for size, kind in sizes:
    count *= 1 if kind == AxisType.Manual else size
  return count


def automatic(
    positions: str,
    outputs: Callable[[PartitionSpec, dict[str, Any]], Any],
) -> Callable[[Callable[_Args, _Result]], Callable[_Args, _Result]]:
  """Returns a decorator: the compiler divides what the function computes.

  The axes of `jax.make_mesh` are Explicit by default: each operation must say
  how its result is divided, where that does not follow from its operands.
  Inside the function they are Auto. Where no axis is Explicit nothing changes.

  Args:
    positions: the argument whose leading dimensions are positions.
    outputs: `(spec, arguments) -> specs`, like the results of the function or a
      prefix of them; `spec` is that of all dimensions of `positions`.
  """

  def decorate(
      function: Callable[_Args, _Result],
  ) -> Callable[_Args, _Result]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def divided(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
      arguments = signature.bind(*args, **kwargs).arguments
      like = arguments[positions]
      mesh = _mesh(like)
      if not mesh.explicit_axes:
        return function(*args, **kwargs)
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
            out_sharding=outputs(spec_of(like), arguments),
        )(arrays)
      return result

    return divided

  return decorate


def leading(spec: PartitionSpec) -> PartitionSpec:
  """Returns the spec of all dimensions but the last."""
  return PartitionSpec(*spec[:-1])


def spec_of(x: jax.Array) -> PartitionSpec:
  """Returns how an array is divided, as far as its type says so."""
  spec = jax.typeof(x).sharding.spec
  return PartitionSpec(*spec, *[None] * (jnp.ndim(x) - len(spec)))


def _mesh(x: jax.Array) -> AbstractMesh:
  """Returns the mesh of an array, or that of the context."""
  mesh = jax.typeof(x).sharding.mesh
  return jax.sharding.get_abstract_mesh() if mesh.empty else mesh
