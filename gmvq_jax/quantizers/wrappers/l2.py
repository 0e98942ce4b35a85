"""Search on the unit sphere."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.wrappers import checks


def with_l2_normalization(inner: base.Quantizer) -> base.Quantizer:
  """Searches on the unit sphere (Yu 2021, https://arxiv.org/abs/2110.04627).

  Latents and codewords are divided by their norms before anything else sees
  them: distances, losses and the decoder. Other heads are not changed. A row
  that is written keeps the norm of the parameter that it replaces, which the
  search does not see.

  Parameters, state and metrics are those of `inner`.

  Args:
    inner: what searches the codebook.

  Raises:
    ValueError: if `inner` compares no latents with codewords, is simvq, or has
      a wrapper that goes outside of this one.
  """
  inner_read, inner_write = checks.codebook_of('l2', inner)
  wrappers = checks.wrap('l2', inner, 'map')
  dim = inner.heads[0]

  def read(params: base.Params, state: base.State) -> jax.Array:
    return numerics.normalize(inner_read(params, state))

  def write(
      params: base.Params, state: base.State, rows: jax.Array, where: jax.Array
  ) -> tuple[base.Params, base.State]:
    # Rows that are there keep their norm, so that to write what was read
    # changes nothing.
    new = jnp.any(rows != read(params, state), axis=-1)
    return inner_write(params, state, rows, where & new)

  def on_sphere(
      params: base.Params, state: base.State
  ) -> tuple[base.Params, base.State]:
    """Returns params and state of `inner` with the normalised codebook."""
    rows = read(params, state)
    return inner_write(params, state, rows, checks.everywhere(rows))

  def normalised(h: jax.Array) -> jax.Array:
    """Returns `h` with its first head on the sphere."""
    (h,) = numerics.promote(h)
    z_hat, rest = h[..., :dim], h[..., dim:]
    return jnp.concatenate([numerics.normalize(z_hat), rest], axis=-1)

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    call = call._replace(h=normalised(call.h))
    return call.apply(inner, *on_sphere(params, state))

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    return inner.embed(*on_sphere(params, state), codes)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    return inner.logits(*on_sphere(params, state), normalised(h))

  return inner._replace(
      apply=common.as_apply('l2', inner.heads, quantize),
      embed=embed,
      read=read,
      write=write,
      logits=logits,
      wrappers=wrappers,
  )
