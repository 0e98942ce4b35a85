"""An Optax transformation that knows of replaced codewords."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gmvq_jax.quantizers import base


class OptimizerState(NamedTuple):
  """State of `optimizer`.

  Attributes:
    inner: state of the wrapped optimiser.
    replaced: like the quantizer's parameters, int32: how often each entry had
      been replaced at the last step.
  """

  inner: Any
  replaced: Any


def optimizer(
    inner: optax.GradientTransformation,
    quantizer: base.Quantizer,
    *,
    path: tuple[str, ...] = (),
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimiser so that replaced codewords start with fresh moments.

  `update` takes the state of the quantizer after the step as another argument,
  `quantizer_state`; without it, it raises a TypeError. For quantizers without
  `with_replacement` it changes nothing.

  Args:
    inner: the optimiser, such as `optax.adamw(1e-3)`.
    quantizer: what is trained.
    path: keys that lead from the parameters of the model to those of the
      quantizer, such as `('quantizer',)`; () where they are the same.

  Raises:
    ValueError: if the path does not lead to parameters of the quantizer.
  """
  key = jax.random.key(0)
  own, _, replaced = jax.eval_shape(
      lambda: quantizer.finish(*quantizer.init(key))
  )

  def init(params: optax.Params) -> OptimizerState:
    _check_names(_at(params, path), own, path)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), replaced)
    return OptimizerState(inner.init(params), zeros)

  def update(
      updates: optax.Updates,
      state: OptimizerState,
      params: optax.Params | None = None,
      *,
      quantizer_state: base.State,
      **extra_args: Any,
  ) -> tuple[optax.Updates, OptimizerState]:
    current = _at(updates if params is None else params, path)
    *_, now = quantizer.finish(current, quantizer_state)
    # After a `finish` of the caller's own, counts are 0 again.
    fresh = jax.tree.map(
        lambda now, before: (now > 0) & (now != before),
        now,
        state.replaced,
    )
    fresh = _like(updates, path, fresh)
    updates, inner_state = optax.with_extra_args_support(inner).update(
        updates, state.inner, params, **extra_args
    )
    # The gradient was that of the codeword before.
    updates = jax.tree.map(_zero_where, fresh, updates)
    inner_state = optax.tree.map_params(
        inner,
        lambda moment, fresh: _zero_where(fresh, moment),
        inner_state,
        fresh,
    )
    return updates, OptimizerState(inner_state, now)

  return optax.GradientTransformationExtraArgs(init, update)


def _zero_where(fresh: jax.Array, array: jax.Array) -> jax.Array:
  return jnp.where(fresh, jnp.zeros((), array.dtype), array)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
  """Returns what a path leads to."""
  for depth, key in enumerate(path):
    if key not in tree:
      raise ValueError(
          f'optimizer: path={path}: there is no {key!r} in the parameters at'
          f' {path[:depth]}, which have {", ".join(map(str, tree))}'
      )
    tree = tree[key]
  return tree


def _check_names(params: Any, own: Any, path: tuple[str, ...]) -> None:
  """Raises unless parameters have the names of `own`."""
  given, right = (
      [jax.tree_util.keystr(name) for name, _ in leaves]
      for leaves in map(jax.tree_util.tree_leaves_with_path, (params, own))
  )
  if given != right:
    raise ValueError(
        f'optimizer: path={path}: it leads to {", ".join(given)}; those of the'
        f' quantizer are {", ".join(right)}'
    )


def _like(tree: Any, path: tuple[str, ...], value: Any) -> Any:
  """Returns a tree of False, with `value` where a path leads to."""
  if not path:
    return value
  never = jax.tree.map(lambda _: jnp.zeros((), bool), tree)
  return {**never, path[0]: _like(tree[path[0]], path[1:], value)}
