"""Quantization in fewer dimensions than those of the latents."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
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
  common.check_sizes('projected', dim=dim)

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
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

  def project(params: base.Params, x: jax.Array) -> jax.Array:
    kernel, bias, x = numerics.promote(params['kernel'], params['bias'], x)
    return jnp.matmul(x, kernel, precision=numerics.PRECISION) + bias

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    inside = call._replace(h=project(params['project_in'], call.h))
    quantized, state = inside.apply(inner, params['inner'], state)
    z = project(params['project_out'], quantized.z)
    return quantized._replace(z=common.zero_unless(call.mask, z)), state

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    z = project(
        params['project_out'], inner.embed(params['inner'], state, codes)
    )
    axes = tuple(range(-len(inner.code_shape), 0))
    return common.zero_unless(jnp.any(codes >= 0, axis=axes), z)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    h = project(params['project_in'], h)
    return inner.logits(params['inner'], state, h)

  def initialize(
      key: chex.PRNGKey,
      params: base.Params,
      state: base.State,
      h: jax.Array,
      *,
      mask: jax.Array | None = None,
      num_iterations: int = 10,
  ) -> tuple[base.Params, base.State]:
    h, mask = common.apply_mask(h, mask, (dim,))
    initialized, state = initialization.kmeans_start(
        key,
        inner,
        params['inner'],
        state,
        project(params['project_in'], h),
        mask=mask,
        num_iterations=num_iterations,
    )
    return {**params, 'inner': initialized}, state

  def finish(
      params: base.Params, state: base.State
  ) -> tuple[base.Params, base.State, base.Params]:
    finished, state, fresh = inner.finish(params['inner'], state)
    never = jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params)
    return {**params, 'inner': finished}, state, {**never, 'inner': fresh}

  return inner._replace(
      heads=(dim,),
      init=init,
      apply=common.as_apply('projected', (dim,), quantize),
      embed=embed,
      read=None,
      write=None,
      finish=finish,
      logits=logits,
      straight_through=False,
      initialize=initialize,
      wrappers=(),
  )


def _affine_map(
    key: chex.PRNGKey, inputs: int, outputs: int
) -> dict[str, jax.Array]:
  kernel = jax.random.normal(key, (inputs, outputs)) * inputs**-0.5
  return {'kernel': kernel, 'bias': jnp.zeros(outputs)}
