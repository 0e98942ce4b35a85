"""VQ-VAE: the nearest codeword, passed straight through."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import clustering
from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base


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

  base.check_sizes('vqvae', num_codes=num_codes, dim=dim)

  def init(key):
    return {'codebook': jax.random.normal(key, (num_codes, dim))}, {}

  def apply(
      params,
      state,
      h,
      *,
      key=None,
      temperature=None,
      train=False,
      mask=None,
      axis_name=None,
  ):
    del key, temperature
    h, mask = base.apply_mask(h, mask, (dim,))
    z_hat, rows = numerics.promote(h, params['codebook'])
    codes = clustering.nearest_codes(jax.lax.stop_gradient(z_hat), rows)
    codewords = rows[codes]
    pulled = base.mean_square(
        jax.lax.stop_gradient(z_hat) - codewords, mask, axis_name
    )
    committed = base.mean_square(
        z_hat - jax.lax.stop_gradient(codewords), mask, axis_name
    )
    loss = alpha * (beta * pulled + (1 - beta) * committed)
    z = numerics.straight_through(codewords, z_hat) if train else codewords
    quantized = base.hard(z, codes, z_hat, codewords, loss, num_codes, mask,
                          axis_name)
    return quantized, state

  return base.Quantizer(
      heads=(dim,),
      num_codes=num_codes,
      init=init,
      apply=apply,
      objective=base.mean_objective,
      logits=lambda params, state, h: base.distance_logits(
          h, params['codebook']
      ),
      straight_through=True,
      **base.plain_codebook(),
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

  base.check_sizes('vqvae_ema', num_codes=num_codes, dim=dim)

  def init(key):
    rows = jax.random.normal(key, (num_codes, dim))
    return {}, {'codebook': rows, 'counts': jnp.ones(num_codes), 'sums': rows}

  def apply(
      params,
      state,
      h,
      *,
      key=None,
      temperature=None,
      train=False,
      mask=None,
      axis_name=None,
  ):
    del params, key, temperature
    h, mask = base.apply_mask(h, mask, (dim,))
    z_hat, rows = numerics.promote(h, state['codebook'])
    rows = jax.lax.stop_gradient(rows)
    codes = clustering.nearest_codes(jax.lax.stop_gradient(z_hat), rows)
    codewords = rows[codes]
    loss = commitment * base.mean_square(z_hat - codewords, mask, axis_name)
    z = numerics.straight_through(codewords, z_hat) if train else codewords
    quantized = base.hard(z, codes, z_hat, codewords, loss, num_codes, mask,
                          axis_name)
    if train:
      state = _move(state, jax.lax.stop_gradient(z_hat), codes, mask, axis_name)
    return quantized, state

  def _move(state, z_hat, codes, mask, axis_name):
    counts, sums = base.sums_of_latents(
        z_hat, codes, num_codes, mask, axis_name
    )
    counts = decay * state['counts'] + (1 - decay) * counts
    sums = decay * state['sums'] + (1 - decay) * sums
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + num_codes * epsilon) * total
    return {
        'codebook': sums / smoothed[:, None],
        'counts': counts,
        'sums': sums,
    }

  def embed(params, state, codes):
    del params
    return base.look_up(state['codebook'], codes)

  def read(params, state):
    del params
    return state['codebook']

  def write(params, state, rows, where):
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
      apply=apply,
      embed=embed,
      objective=base.mean_objective,
      read=read,
      write=write,
      finish=base.nothing_to_finish,
      logits=lambda params, state, h: base.distance_logits(
          h, state['codebook']
      ),
      straight_through=True,
  )
