"""SimVQ: a fixed codebook under a learnt linear map."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
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
  inner = vqvae.vqvae(num_codes, dim, alpha=alpha, beta=beta)

  def init(key):
    fixed = dim**-0.5 * jax.random.normal(key, (num_codes, dim))
    return {'transform': jnp.eye(dim)}, {'codebook': fixed}

  def read(params, state):
    fixed, transform = numerics.promote(state['codebook'], params['transform'])
    fixed = jax.lax.stop_gradient(fixed)
    return jnp.matmul(fixed, transform, precision=numerics.PRECISION)

  def within(params, state):
    return {'codebook': read(params, state)}, {}

  def write(params, state, rows, where):
    rows = jnp.linalg.solve(params['transform'].T, rows.T).T
    fixed = jnp.where(where[:, None], rows, state['codebook'])
    return params, {'codebook': fixed}

  def apply(params, state, h, **kwargs):
    return inner.apply(*within(params, state), h, **kwargs)[0], state

  return inner._replace(
      init=init,
      apply=apply,
      embed=lambda params, state, codes: inner.embed(
          *within(params, state), codes
      ),
      read=read,
      write=write,
      logits=lambda params, state, h: inner.logits(*within(params, state), h),
  )
