"""Several quantizers of one kind: their parameters and state are stacked."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.quantizers import base


def init_all(inner: base.Quantizer, count: int) -> base.InitFn:
  """Returns the `init` of `count` quantizers."""

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    both: tuple[base.Params, base.State] = jax.vmap(inner.init)(
        jax.random.split(key, count)
    )
    return both

  return init


def finish_all(inner: base.Quantizer, count: int) -> base.FinishFn:
  """Returns the `finish` of `count` quantizers."""

  def finish_one(
      params: base.Params, state: base.State
  ) -> tuple[base.Params, base.State, base.Params]:
    finished, state, fresh = inner.finish(params, state)
    # A scalar for a whole entry could not be broadcast once it is stacked.
    fresh = jax.tree.map(
        lambda f, p: jnp.broadcast_to(f, p.shape), fresh, finished
    )
    return finished, state, fresh

  def finish(
      params: base.Params, state: base.State
  ) -> tuple[base.Params, base.State, base.Params]:
    # There may be neither params nor state, so the size is given.
    finished: tuple[base.Params, base.State, base.Params] = jax.vmap(
        finish_one, axis_size=count
    )(params, state)
    return finished

  return finish
