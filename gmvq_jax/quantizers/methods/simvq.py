"""SimVQ: a fixed codebook under a learnt linear map."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.methods import vqvae


def simvq(
    num_codes: int, dim: int, *, alpha: float = 1.25, beta: float = 0.8
) -> base.Quantizer:
  """Vector quantization by one linear layer (https://arxiv.org/abs/2411.02038).

  The codebook is `F W`, with F `[C, L]` drawn once and never trained, and W
  `[L, L]` learnt, so that all codewords move when any is chosen. Search, loss
  and gradients are those of `vqvae`, here with van den Oord's weights.

  W starts as the identity, so that a k-means start is kept as it is; the
  authors' starts at random. To `write` rows is to write `rows W^-1` in F.

  Parameters: `{'transform': [L, L]}`. State: `{'codebook': [C, L]}`, F. Metrics
  are those of `vqvae`.

  Args:
    num_codes: C.
    dim: L.
    alpha: weight of the loss.
    beta: share of it that moves the codebook; the rest is the commitment.
  """
  common.check_sizes('simvq', num_codes=num_codes, dim=dim)
  common.check_range('simvq', 'at least 0', alpha=alpha)
  common.check_range('simvq', 'from 0 to 1', beta=beta)
  inner = vqvae.vqvae(num_codes, dim, alpha=alpha, beta=beta)

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    fixed = dim**-0.5 * jax.random.normal(key, (num_codes, dim))
    return {'transform': jnp.eye(dim)}, {'codebook': fixed}

  def read(params: base.Params, state: base.State) -> jax.Array:
    fixed, transform = numerics.promote(state['codebook'], params['transform'])
    fixed = jax.lax.stop_gradient(fixed)
    return jnp.matmul(fixed, transform, precision=numerics.PRECISION)

  def mapped(
      params: base.Params, state: base.State
  ) -> tuple[base.Params, base.State]:
    """Returns params and state of a `vqvae` with the mapped codebook."""
    return {'codebook': read(params, state)}, {}

  def write(
      params: base.Params, state: base.State, rows: jax.Array, where: jax.Array
  ) -> tuple[base.Params, base.State]:
    rows = jnp.linalg.solve(params['transform'].T, rows.T).T
    fixed = jnp.where(where[:, None], rows, state['codebook'])
    return params, {'codebook': fixed}

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    quantized, _ = call.apply(inner, *mapped(params, state))
    return quantized, state

  return inner._replace(
      init=init,
      apply=common.as_apply('simvq', inner.heads, quantize),
      embed=lambda params, state, codes: inner.embed(
          *mapped(params, state), codes
      ),
      read=read,
      write=write,
      logits=lambda params, state, h: inner.logits(*mapped(params, state), h),
      updates='map',
  )
