"""Quantization of groups of channels, each by itself."""

import itertools

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers import initialization
from gmvq_jax.quantizers.compose import stack


def grouped(
    inner: base.Quantizer, groups: int, *, shared: bool = False
) -> base.Quantizer:
  """Quantizes groups of channels apart; also known as several heads.

  As in product quantization (Jegou 2011). Each head of `inner` is `groups`
  times as wide, and so is z; codes are `[..., groups]`. `loss` and metrics are
  means over groups, and the objective counts each group as a position. An inner
  residual with dropout draws its depths for each group.

  Parameters and state are those of `inner`, stacked, or once if `shared`, and
  so is `q_c`.

  Args:
    inner: of each group.
    groups: how many.
    shared: whether there is one codebook for all groups.

  Raises:
    ValueError: for less than one group.
  """
  common.check_sizes('grouped', groups=groups)
  code_axis = -1 - len(inner.code_shape)
  heads = tuple(groups * k for k in inner.heads)

  def split(h: jax.Array) -> jax.Array:
    """Returns the channels of each group, `[..., groups, sum(heads)]`."""
    parts = jnp.split(h, list(itertools.accumulate(heads))[:-1], axis=-1)
    # Not -1, of which there is none where there are no positions.
    return jnp.concatenate(
        [
            x.reshape(*x.shape[:-1], groups, k)
            for x, k in zip(parts, inner.heads, strict=True)
        ],
        axis=-1,
    )

  def join(z: jax.Array) -> jax.Array:
    return z.reshape(*z.shape[:-2], groups * z.shape[-1])

  def mask_of_groups(mask: jax.Array) -> jax.Array:
    return jnp.broadcast_to(mask[..., None], (*mask.shape, groups))

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    if shared:
      call = call._replace(h=split(call.h), mask=mask_of_groups(call.mask))
      quantized, state = call.apply(inner, params, state)
      return quantized._replace(z=join(quantized.z)), state

    def of_group(
        params: base.Params,
        state: base.State,
        h: jax.Array,
        key: chex.PRNGKey | None,
    ) -> tuple[base.Quantized, base.State]:
      return call._replace(h=h, key=key).apply(inner, params, state)

    keys = None if call.key is None else jax.random.split(call.key, groups)
    quantized, state = jax.vmap(of_group, (0, 0, -2, 0))(
        params, state, split(call.h), keys
    )
    return base.Quantized(
        z=join(jnp.moveaxis(quantized.z, 0, -2)),
        codes=jnp.moveaxis(quantized.codes, 0, call.mask.ndim),
        q_c=quantized.q_c,
        loss=jnp.mean(quantized.loss),
        metrics={k: jnp.mean(v) for k, v in quantized.metrics.items()},
    ), state

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    if shared:
      return join(inner.embed(params, state, codes))
    z = jax.vmap(inner.embed, (0, 0, code_axis))(params, state, codes)
    return join(jnp.moveaxis(z, 0, -2))

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    if shared:
      return inner.logits(params, state, split(h))
    values = jax.vmap(inner.logits, (0, 0, -2))(params, state, split(h))
    return jnp.moveaxis(values, 0, code_axis - 1)

  def initialize(
      key: chex.PRNGKey,
      params: base.Params,
      state: base.State,
      h: jax.Array,
      *,
      mask: jax.Array | None = None,
      num_iterations: int = 10,
  ) -> tuple[base.Params, base.State]:
    h, mask = common.apply_mask(h, mask, heads)
    if shared:
      mask = mask_of_groups(mask)

    def of_group(
        key: chex.PRNGKey,
        params: base.Params,
        state: base.State,
        h: jax.Array,
    ) -> tuple[base.Params, base.State]:
      return initialization.kmeans_start(
          key, inner, params, state, h, mask=mask, num_iterations=num_iterations
      )

    if shared:
      return of_group(key, params, state, split(h))
    keys = jax.random.split(key, groups)
    both: tuple[base.Params, base.State] = jax.vmap(of_group, (0, 0, 0, -2))(
        keys, params, state, split(h)
    )
    return both

  return inner._replace(
      heads=heads,
      init=inner.init if shared else stack.init_all(inner, groups),
      apply=common.as_apply('grouped', heads, quantize),
      embed=embed,
      read=None,
      write=None,
      finish=inner.finish if shared else stack.finish_all(inner, groups),
      logits=logits,
      code_shape=(groups, *inner.code_shape),
      initialize=initialize,
      wrappers=(),
  )
