"""Quantization in fewer dimensions than those of the latents."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import initialization


def projected(inner: base.Quantizer, dim: int) -> base.Quantizer:
  """Quantizes a learnt projection to fewer channels, and projects z back.

  A smaller dimension of codes (Yu 2021, https://arxiv.org/abs/2110.04627) is
  searched faster, and more of them are used. Both maps are affine; `loss` and
  metrics are those of `inner`, of the projected latents.

  Parameters: `{'inner': ..., 'project_in': {'kernel': [dim, sum(heads)],
  'bias'}, 'project_out': {'kernel': [L, dim], 'bias'}}`. State is that of
  `inner`.

  Args:
    inner: what quantizes.
    dim: channels of the latents, and of z.

  Raises:
    ValueError: for less than one channel.
  """
  base.check_sizes('projected', dim=dim)

  def init(key):
    keys = jax.random.split(key, 3)
    params, state = inner.init(keys[0])
    z = jax.eval_shape(
        inner.embed, params, state, jnp.zeros(inner.code_shape, jnp.int32)
    )
    return {
        'inner': params,
        'project_in': _affine_map(keys[1], dim, sum(inner.heads)),
        'project_out': _affine_map(keys[2], z.shape[-1], dim),
    }, state

  def project(params, x):
    kernel, bias, x = numerics.promote(params['kernel'], params['bias'], x)
    return jnp.matmul(x, kernel, precision=numerics.PRECISION) + bias

  def apply(params, state, h, *, mask=None, **kwargs):
    h, mask = base.apply_mask(h, mask, (dim,))
    quantized, state = inner.apply(
        params['inner'],
        state,
        project(params['project_in'], h),
        mask=mask,
        **kwargs,
    )
    z = project(params['project_out'], quantized.z)
    return quantized._replace(z=base.zero_unless(mask, z)), state

  def embed(params, state, codes):
    z = project(
        params['project_out'], inner.embed(params['inner'], state, codes)
    )
    axes = tuple(range(-len(inner.code_shape), 0))
    return base.zero_unless(jnp.any(codes >= 0, axis=axes), z)

  def logits(params, state, h):
    h = project(params['project_in'], h)
    return inner.logits(params['inner'], state, h)

  def start(key, params, state, h, *, mask=None, **kwargs):
    h, mask = base.apply_mask(h, mask, (dim,))
    h = project(params['project_in'], h)
    started, state = initialization.kmeans_start(
        key, inner, params['inner'], state, h, mask=mask, **kwargs
    )
    return {**params, 'inner': started}, state

  def finish(params, state):
    finished, state, fresh = inner.finish(params['inner'], state)
    still = jax.tree.map(lambda _: jnp.zeros((), bool), params)
    return {**params, 'inner': finished}, state, {**still, 'inner': fresh}

  return inner._replace(
      heads=(dim,),
      init=init,
      apply=apply,
      embed=embed,
      read=None,
      write=None,
      finish=finish,
      logits=logits,
      straight_through=False,
      start=start,
  )


def _affine_map(key, inputs, outputs):
  kernel = jax.random.normal(key, (inputs, outputs)) * inputs**-0.5
  return {'kernel': kernel, 'bias': jnp.zeros(outputs)}
