"""DiVeQ: a differentiable error vector in the place of quantization."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import clustering
from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common


def diveq(
    num_codes: int, dim: int, *, noise_variance: float = 1e-3
) -> base.Quantizer:
  """Differentiable vector quantization (https://arxiv.org/abs/2509.26469).

  With z the latents and e the nearest codeword the decoder sees in training

      z + |e - z| sg(d / |d|),  d = e - z + v,  v ~ N(0, noise_variance I),

  as far from z as e is, and nearly there. Its gradient reaches the latents and
  the codeword that was chosen, by the length of the error, so there is no loss
  but the task's. At evaluation the decoder sees e.

  The paper's other variant, which takes points of the lines between codewords,
  is not here. Codes that nobody chooses have no gradient: `with_replacement`.

  Parameters: `{'codebook': [C, L]}`. State and loss: none. Metrics:
  `quantization_error` and `latent_variance`. Training needs a key, but no
  temperature.

  Args:
    num_codes: C.
    dim: L.
    noise_variance: of v, in each channel.
  """

  common.check_sizes('diveq', num_codes=num_codes, dim=dim)
  common.check_range('diveq', 'at least 0', noise_variance=noise_variance)

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    return {'codebook': jax.random.normal(key, (num_codes, dim))}, {}

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    z_hat, rows = numerics.promote(call.h, params['codebook'])
    codes = clustering.nearest_codes(z_hat, rows)
    z = codewords = rows[codes]
    if call.train:
      assert call.key is not None
      seeds = counter_rng.row_seeds(
          call.key, codes.size, axis_name=call.axis_name
      )
      noise = counter_rng.normal(seeds, dim, dtype=z_hat.dtype)
      error = codewords - z_hat
      towards = numerics.normalize(
          error + noise_variance**0.5 * noise.reshape(z_hat.shape)
      )
      z = z_hat + numerics.norm(error) * jax.lax.stop_gradient(towards)
    loss = jnp.zeros(())
    return call.nearest(z, codes, z_hat, codewords, loss, num_codes), state

  return base.Quantizer(
      heads=(dim,),
      num_codes=num_codes,
      init=init,
      apply=common.as_apply('diveq', (dim,), quantize, needs=('key',)),
      objective=common.mean_objective,
      logits=lambda params, state, h: common.distance_logits(
          h, params['codebook']
      ),
      **common.plain_codebook(),
  )
