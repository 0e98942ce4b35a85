"""BSQ: binary spherical quantization, signs on the unit sphere."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.methods import binary


def bsq(
    num_codes: int,
    *,
    entropy_weight: float = 0.1,
    diversity: float = 1.0,
    commitment: float = 0.0,
    entropy_temperature: float = 1.0,
) -> base.Quantizer:
  """Binary spherical quantization (Zhao 2024, https://arxiv.org/abs/2406.07548).

  The latents of `L = log2(num_codes)` channels are divided by their norm, to u,
  and the decoder sees `sign(u) / sqrt(L)`, on the sphere as well, straight
  through. With the bits of `q(c|x) = softmax(-|u - c|^2 / entropy_temperature)`
  the loss is

      entropy_weight (mean of H(q(c|x)) - diversity sum over bits of H(q(bit)))
      + commitment |u - sg(c)|^2,

  entropies in nats; the last term a mean over positions and channels. The sum
  is the paper's bound from above on the entropy of q(c), which needs nothing of
  the size of C. As the error is bounded the paper needs no commitment.

  Parameters and state: none. Metrics: `posterior_entropy` and `bit_entropy`
  (that sum, nats), `quantization_error` and `latent_variance` (of u).

  Args:
    num_codes: C, a power of two.
    entropy_weight: of the difference of entropies.
    diversity: weight of the second within it.
    commitment: weight of the commitment.
    entropy_temperature: of q(c|x).

  Raises:
    ValueError: for another number of codes.
  """
  bits = binary.num_bits('bsq', num_codes)
  common.check_range(
      'bsq',
      'at least 0',
      entropy_weight=entropy_weight,
      diversity=diversity,
      commitment=commitment,
  )
  common.check_range(
      'bsq', 'greater than 0', entropy_temperature=entropy_temperature
  )
  radius: float = bits**-0.5

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    del params
    u = numerics.normalize(call.h)
    corner = binary.corner(u)
    point = radius * corner
    log_odds = 4 * radius / entropy_temperature * u
    entropy = call.mean(jnp.sum(binary.bit_entropy(log_odds), axis=-1))
    of_bits = _entropy(call.mean(jax.nn.sigmoid(log_odds)))
    error = jnp.mean(jnp.square(u - point), axis=-1)
    loss = entropy_weight * (entropy - diversity * of_bits)
    loss += commitment * call.mean(error)
    quantized = call.quantized(
        numerics.straight_through(point, u) if call.train else point,
        binary.codes_of(corner),
        loss,
        {
            'posterior_entropy': entropy,
            'bit_entropy': of_bits,
            **call.latent_metrics(u, error),
        },
        num_codes,
    )
    return quantized, state

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    del params, state
    return radius * binary.corners_of(codes, bits)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    points = embed(params, state, jnp.arange(num_codes))
    return common.distance_logits(numerics.normalize(h), points) / (
        entropy_temperature
    )

  return base.Quantizer(
      heads=(bits,),
      num_codes=num_codes,
      apply=common.as_apply('bsq', (bits,), quantize),
      embed=embed,
      logits=logits,
      **common.no_codebook(),
  )


def _entropy(probs: jax.Array) -> jax.Array:
  """Returns the sum of the entropies of bits, of their probabilities `[L]`."""
  tiny = jnp.finfo(probs.dtype).tiny
  both = jnp.stack([probs, 1 - probs])
  return -jnp.sum(both * jnp.log(jnp.maximum(both, tiny)))
