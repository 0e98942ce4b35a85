"""BSQ: binary spherical quantization, signs on the unit sphere."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
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
  radius = bits**-0.5

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
    h, mask = base.apply_mask(h, mask, (bits,))
    u = numerics.normalize(h)
    corner = binary.corner(u)
    point = radius * corner

    def mean(values):
      return numerics.masked_mean(values, mask, axis_name=axis_name)

    log_odds = 4 * radius / entropy_temperature * u
    entropy = mean(jnp.sum(binary.bit_entropy(log_odds), axis=-1))
    of_bits = _entropy(mean(jax.nn.sigmoid(log_odds)))
    error = jnp.mean(jnp.square(u - point), axis=-1)
    loss = entropy_weight * (entropy - diversity * of_bits)
    loss += commitment * mean(error)
    metrics = {
        'posterior_entropy': entropy,
        'bit_entropy': of_bits,
        **base.latent_metrics(u, error, mean),
    }
    quantized = base.result(
        numerics.straight_through(point, u) if train else point,
        binary.codes_of(corner),
        loss,
        metrics,
        num_codes,
        mask,
        axis_name,
    )
    return quantized, state

  def embed(params, state, codes):
    del params, state
    return radius * binary.corners_of(codes, bits)

  def logits(params, state, h):
    points = embed(params, state, jnp.arange(num_codes))
    return base.distance_logits(numerics.normalize(h), points) / (
        entropy_temperature
    )

  return base.Quantizer(
      heads=(bits,),
      num_codes=num_codes,
      apply=apply,
      embed=embed,
      logits=logits,
      **base.no_codebook(),
  )


def _entropy(probs):
  """Returns the sum of the entropies of bits, of their probabilities `[L]`."""
  tiny = jnp.finfo(probs.dtype).tiny
  both = jnp.stack([probs, 1 - probs])
  return -jnp.sum(both * jnp.log(jnp.maximum(both, tiny)))
