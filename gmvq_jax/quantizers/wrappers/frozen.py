"""A codebook that is not trained."""

import chex
import jax

from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.wrappers import checks


def with_frozen_codebook(inner: base.Quantizer) -> base.Quantizer:
  """Leaves a quantizer as it was initialised: a baseline.

  Parameters: none, so that no optimiser and no weight decay moves them. State:
  `{'params': ..., 'state': ...}` of `inner`.

  Args:
    inner: any quantizer.

  Raises:
    ValueError: if it is frozen already.
  """
  wrappers = checks.wrap('frozen', inner)
  inner_read, inner_write = inner.read, inner.write
  inner_initialize = inner.initialize

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    params, state = inner.init(key)
    return {}, {'params': params, 'state': state}

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    del params
    frozen = jax.lax.stop_gradient(state)
    quantized, _ = call.apply(inner, frozen['params'], frozen['state'])
    return quantized, state

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    del params
    return inner.embed(state['params'], state['state'], codes)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    del params
    return inner.logits(state['params'], state['state'], h)

  def read(params: base.Params, state: base.State) -> jax.Array:
    del params
    assert inner_read is not None
    return inner_read(state['params'], state['state'])

  def write(
      params: base.Params, state: base.State, rows: jax.Array, where: jax.Array
  ) -> tuple[base.Params, base.State]:
    assert inner_write is not None
    written, inner_state = inner_write(
        state['params'], state['state'], rows, where
    )
    return params, {'params': written, 'state': inner_state}

  def initialize(
      key: chex.PRNGKey,
      params: base.Params,
      state: base.State,
      h: jax.Array,
      *,
      mask: jax.Array | None = None,
      num_iterations: int = 10,
  ) -> tuple[base.Params, base.State]:
    assert inner_initialize is not None
    initialized, inner_state = inner_initialize(
        key,
        state['params'],
        state['state'],
        h,
        mask=mask,
        num_iterations=num_iterations,
    )
    return params, {'params': initialized, 'state': inner_state}

  return inner._replace(
      init=init,
      apply=common.as_apply('frozen', inner.heads, quantize),
      embed=embed,
      read=inner_read and read,
      write=inner_write and write,
      finish=common.nothing_to_finish,
      logits=logits,
      updates='frozen',
      initialize=inner_initialize and initialize,
      wrappers=wrappers,
  )
