"""Alternate optimisation: the codebook moves first, by itself."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.wrappers import checks


def with_alternate_optimization(
    inner: base.Quantizer,
    *,
    opt_learning_rate: float = 50.0,
    opt_momentum: float = 0.9,
    opt_steps: int = 1,
) -> base.Quantizer:
  """Moves the codebook first, by itself (Huh 2023, alternate optimisation).

  In each training step, with the codes k of the codebook as it is,

      m <- momentum m + gradient of mean (e_k - sg(z))^2,  e <- e - rate m

  (a mean over positions and channels, `opt_steps` times), and then the decoder
  sees `z + sg(e_k - z)` of the new e, with the same codes. No gradient of the
  task reaches the codebook, and there is no commitment: `loss` is the mean of
  `(e_k - sg(z))^2`, whose gradient reaches only what has mapped the codebook
  before it came here (`with_affine`). All other wrappers go around this one.

  Parameters: none. State: `{'inner': ..., 'params': those of inner, 'momentum':
  [C, L]}`.

  Args:
    inner: `vqvae`, or another that searches the nearest codeword.
    opt_learning_rate: of the inner steps. Large, as the gradient of a mean over
      all positions is small.
    opt_momentum: of the inner steps.
    opt_steps: how many.

  Raises:
    ValueError: if `inner` has a posterior, a codebook that is not trained by
      gradients, or a wrapper.
  """
  inner_read, inner_write = checks.codebook_of('opt', inner)
  wrappers = checks.wrap('opt', inner, 'map')
  if not inner.straight_through or inner.updates != 'gradient':
    raise ValueError(
        'opt: goes with vqvae alone, whose codewords are passed straight'
        ' through and trained by gradients'
    )
  common.check_range(
      'opt', 'greater than 0', opt_learning_rate=opt_learning_rate
  )
  common.check_range(
      'opt', 'at least 0 and less than 1', opt_momentum=opt_momentum
  )
  common.check_sizes('opt', opt_steps=opt_steps)
  num_codes = inner.num_codes

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    params, state = inner.init(key)
    momentum = jnp.zeros_like(inner_read(params, state))
    return {}, {'inner': state, 'params': params, 'momentum': momentum}

  def read(params: base.Params, state: base.State) -> jax.Array:
    del params
    return inner_read(state['params'], state['inner'])

  def write(
      params: base.Params, state: base.State, rows: jax.Array, where: jax.Array
  ) -> tuple[base.Params, base.State]:
    written, inner_state = inner_write(
        state['params'], state['inner'], rows, where
    )
    # To write all rows is to change coordinates; to write some, to start anew.
    anew = where & ~jnp.all(where)
    momentum = jnp.where(anew[:, None], 0, state['momentum'])
    return params, {
        'inner': inner_state,
        'params': written,
        'momentum': momentum,
    }

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    still = call._replace(train=False)
    quantized, _ = still.apply(inner, state['params'], state['inner'])
    z_hat, rows = numerics.promote(call.h, read(params, state))
    codes = jnp.maximum(quantized.codes, 0)
    fixed = jax.lax.stop_gradient(z_hat)

    def error(rows: jax.Array) -> jax.Array:
      return call.mean_square(rows[codes] - fixed)

    if not call.train:
      return quantized._replace(loss=error(rows)), state
    counts, sums = call.sums(fixed, codes, num_codes)
    values = jnp.maximum(counts.sum(), 1) * rows.shape[-1]
    momentum, moved = state['momentum'], jax.lax.stop_gradient(rows)
    for _ in range(opt_steps):
      gradient = 2 * (counts[:, None] * moved - sums) / values
      momentum = opt_momentum * momentum + gradient
      moved = moved - opt_learning_rate * momentum
    codewords = moved[codes]
    result = call.nearest(
        numerics.straight_through(codewords, z_hat),
        codes,
        z_hat,
        codewords,
        # The value at the new rows, the gradient through the given ones.
        error(numerics.straight_through(moved, rows)),
        num_codes,
    )
    _, state = write(params, state, moved, checks.everywhere(moved))
    return result, {**state, 'momentum': momentum}

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    del params
    return inner.embed(state['params'], state['inner'], codes)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    del params
    return inner.logits(state['params'], state['inner'], h)

  return inner._replace(
      init=init,
      apply=common.as_apply('opt', inner.heads, quantize),
      embed=embed,
      read=read,
      write=write,
      finish=common.nothing_to_finish,
      logits=logits,
      updates='alternate',
      wrappers=wrappers,
  )
