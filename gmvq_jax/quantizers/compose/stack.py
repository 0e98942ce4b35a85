"""Several quantizers of a kind, their params and state stacked."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gmvq_jax.quantizers import base


def init_all(inner: base.Quantizer, count: int) -> Callable:
  """Returns the `init` of so many."""
  return lambda key: jax.vmap(inner.init)(jax.random.split(key, count))


def finish_all(inner: base.Quantizer, count: int) -> Callable:
  """Returns the `finish` of so many."""

  def finish(params, state):
    finished, state, fresh = inner.finish(params, state)
    # A scalar for all of an entry would be none once they are stacked.
    fresh = jax.tree.map(
        lambda f, p: jnp.broadcast_to(f, p.shape), fresh, finished
    )
    return finished, state, fresh

  # There may be neither params nor state.
  return jax.vmap(finish, axis_size=count)
