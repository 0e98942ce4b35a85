"""VQ-VAE: the nearest codeword, passed straight through."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import clustering
from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common


def vqvae(
    num_codes: int, dim: int, *, alpha: float = 5.0, beta: float = 0.9
) -> base.Quantizer:
  """Vector quantization (van den Oord 2017, https://arxiv.org/abs/1711.00937).

  With z the latents, e the nearest codeword and sg the stopped gradient, the
  decoder sees `z + sg(e - z)`, and the loss, in the form of Huh et al. 2023
  (https://arxiv.org/abs/2305.08842), is

      alpha (beta |sg(z) - e|^2 + (1 - beta) |z - sg(e)|^2),

  means over positions and channels, added to the mean squared error. Van den
  Oord's form, `|sg(z) - e|^2 + 0.25 |z - sg(e)|^2`, is alpha = 1.25, beta =
  0.8.

  Parameters: `{'codebook': [C, L]}`. State: none. Metrics: `quantization_error`
  and `latent_variance`. A temperature, and a key, are not used.

  Args:
    num_codes: C.
    dim: L.
    alpha: weight of the loss.
    beta: share of it that moves the codebook; the rest is the commitment.
  """
  common.check_sizes('vqvae', num_codes=num_codes, dim=dim)
  common.check_range('vqvae', 'at least 0', alpha=alpha)
  common.check_range('vqvae', 'from 0 to 1', beta=beta)

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    return {'codebook': jax.random.normal(key, (num_codes, dim))}, {}

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    z_hat, rows = numerics.promote(call.h, params['codebook'])
    codes = clustering.nearest_codes(jax.lax.stop_gradient(z_hat), rows)
    codewords = rows[codes]
    pulled = call.mean_square(jax.lax.stop_gradient(z_hat) - codewords)
    committed = call.mean_square(z_hat - jax.lax.stop_gradient(codewords))
    loss = alpha * (beta * pulled + (1 - beta) * committed)
    z = codewords
    if call.train:
      z = numerics.straight_through(codewords, z_hat)
    return call.nearest(z, codes, z_hat, codewords, loss, num_codes), state

  return base.Quantizer(
      heads=(dim,),
      num_codes=num_codes,
      init=init,
      apply=common.as_apply('vqvae', (dim,), quantize),
      objective=common.mean_objective,
      logits=lambda params, state, h: common.distance_logits(
          h, params['codebook']
      ),
      straight_through=True,
      **common.plain_codebook(),
  )


def vqvae_ema(
    num_codes: int,
    dim: int,
    *,
    commitment: float = 0.25,
    decay: float = 0.99,
    epsilon: float = 1e-5,
) -> base.Quantizer:
  """Vector quantization whose codewords are moving averages of their latents.

  Van den Oord 2017, appendix A.1; with n_c latents of sum s_c at code c,

      N_c <- decay N_c + (1 - decay) n_c,   M_c <- decay M_c + (1 - decay) s_c,
      e_c = M_c / N_c,

  N smoothed by `epsilon` so that no codeword is divided by 0. The gradient
  reaches the latents only: the loss is `commitment |z - sg(e)|^2`, a mean.

  Parameters: none. State: `{'codebook': [C, L], 'counts': [C], 'sums': [C,
  L]}`. A row that is written counts as one latent at itself, so that it moves
  at the pace of its new latents, whatever the old row had seen.

  Args:
    num_codes: C.
    dim: L.
    commitment: weight of the loss.
    decay: of the averages, for each training step.
    epsilon: of the smoothing.
  """
  common.check_sizes('vqvae_ema', num_codes=num_codes, dim=dim)
  common.check_range('vqvae_ema', 'at least 0', commitment=commitment)
  common.check_range('vqvae_ema', 'at least 0 and less than 1', decay=decay)
  common.check_range('vqvae_ema', 'greater than 0', epsilon=epsilon)

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    rows = jax.random.normal(key, (num_codes, dim))
    return {}, {'codebook': rows, 'counts': jnp.ones(num_codes), 'sums': rows}

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    del params
    z_hat, rows = numerics.promote(call.h, state['codebook'])
    rows = jax.lax.stop_gradient(rows)
    codes = clustering.nearest_codes(jax.lax.stop_gradient(z_hat), rows)
    codewords = rows[codes]
    loss = commitment * call.mean_square(z_hat - codewords)
    z = codewords
    if call.train:
      z = numerics.straight_through(codewords, z_hat)
      state = move(state, jax.lax.stop_gradient(z_hat), codes, call)
    return call.nearest(z, codes, z_hat, codewords, loss, num_codes), state

  def move(
      state: base.State, z_hat: jax.Array, codes: jax.Array, call: common.Call
  ) -> base.State:
    """Returns the state after one step of the moving averages."""
    counts, sums = call.sums(z_hat, codes, num_codes)
    counts = decay * state['counts'] + (1 - decay) * counts
    sums = decay * state['sums'] + (1 - decay) * sums
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + num_codes * epsilon) * total
    return {
        'codebook': sums / smoothed[:, None],
        'counts': counts,
        'sums': sums,
    }

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    del params
    return common.look_up(state['codebook'], codes)

  def read(params: base.Params, state: base.State) -> jax.Array:
    del params
    rows: jax.Array = state['codebook']
    return rows

  def write(
      params: base.Params, state: base.State, rows: jax.Array, where: jax.Array
  ) -> tuple[base.Params, base.State]:
    # To write all rows is to change coordinates; to write some, to start anew.
    counts = jnp.where(where & ~jnp.all(where), 1.0, state['counts'])
    return params, {
        'codebook': jnp.where(where[:, None], rows, state['codebook']),
        'counts': counts,
        'sums': jnp.where(
            where[:, None], counts[:, None] * rows, state['sums']
        ),
    }

  return base.Quantizer(
      heads=(dim,),
      num_codes=num_codes,
      init=init,
      apply=common.as_apply('vqvae_ema', (dim,), quantize),
      embed=embed,
      objective=common.mean_objective,
      read=read,
      write=write,
      finish=common.nothing_to_finish,
      logits=lambda params, state, h: common.distance_logits(
          h, state['codebook']
      ),
      updates='average',
      straight_through=True,
  )
