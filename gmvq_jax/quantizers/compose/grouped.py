"""Quantization of groups of channels, each by itself."""

import itertools

import jax
import jax.numpy as jnp

from gmvq_jax.quantizers import base
from gmvq_jax.quantizers.compose import stack
from gmvq_jax.quantizers import initialization


def grouped(
    inner: base.Quantizer, groups: int, *, shared: bool = False
) -> base.Quantizer:
  """Quantizes groups of channels apart; also known as several heads.

  As in product quantization (Jegou 2011). Each head of `inner` is `groups`
  times as wide, and so is z; codes are `[..., groups]`. `loss` and metrics are
  means over groups, and the objective counts each as a position. An inner
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
  base.check_sizes('grouped', groups=groups)

  code_axis = -1 - len(inner.code_shape)
  heads = tuple(groups * k for k in inner.heads)

  def split(h):
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

  def join(z):
    return z.reshape(*z.shape[:-2], groups * z.shape[-1])

  def apply(params, state, h, *, key=None, mask=None, **kwargs):
    h, mask = base.apply_mask(h, mask, heads)
    if shared:
      mask = jnp.broadcast_to(mask[..., None], (*mask.shape, groups))
      quantized, state = inner.apply(
          params, state, split(h), key=key, mask=mask, **kwargs
      )
      return quantized._replace(z=join(quantized.z)), state

    def of_group(params, state, h, key):
      return inner.apply(params, state, h, key=key, mask=mask, **kwargs)

    keys = None if key is None else jax.random.split(key, groups)
    quantized, state = jax.vmap(of_group, (0, 0, -2, 0))(
        params, state, split(h), keys
    )
    return base.Quantized(
        z=join(jnp.moveaxis(quantized.z, 0, -2)),
        codes=jnp.moveaxis(quantized.codes, 0, mask.ndim),
        q_c=quantized.q_c,
        loss=jnp.mean(quantized.loss),
        metrics={k: jnp.mean(v) for k, v in quantized.metrics.items()},
    ), state

  def embed(params, state, codes):
    if shared:
      return join(inner.embed(params, state, codes))
    z = jax.vmap(inner.embed, (0, 0, code_axis))(params, state, codes)
    return join(jnp.moveaxis(z, 0, -2))

  def logits(params, state, h):
    if shared:
      return inner.logits(params, state, split(h))
    values = jax.vmap(inner.logits, (0, 0, -2))(params, state, split(h))
    return jnp.moveaxis(values, 0, code_axis - 1)

  def start(key, params, state, h, *, mask=None, **kwargs):
    h, mask = base.apply_mask(h, mask, heads)
    if shared:
      mask = jnp.broadcast_to(mask[..., None], (*mask.shape, groups))
      return initialization.kmeans_start(
          key, inner, params, state, split(h), mask=mask, **kwargs
      )

    def of_group(key, params, state, h):
      return initialization.kmeans_start(
          key, inner, params, state, h, mask=mask, **kwargs
      )

    keys = jax.random.split(key, groups)
    return jax.vmap(of_group, (0, 0, 0, -2))(keys, params, state, split(h))

  def objective(squared_error, quantized, *, data_dim, positions):
    return inner.objective(
        squared_error,
        quantized,
        data_dim=data_dim,
        positions=positions * groups,
    )

  return inner._replace(
      heads=heads,
      init=inner.init if shared else stack.init_all(inner, groups),
      apply=apply,
      embed=embed,
      objective=objective,
      read=None,
      write=None,
      finish=inner.finish if shared else stack.finish_all(inner, groups),
      logits=logits,
      code_shape=(groups, *inner.code_shape),
      start=start,
  )
