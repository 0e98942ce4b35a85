"""LFQ: lookup-free quantization, the signs of a few channels."""

import jax.numpy as jnp

from gmvq_jax.ops import soft_assignment
from gmvq_jax.ops import numerics
from gmvq_jax.ops.albo import kl_to_uniform
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers.methods import binary


def lfq(
    num_codes: int,
    *,
    entropy_weight: float = 0.1,
    diversity: float = 1.0,
    commitment: float = 0.25,
    entropy_temperature: float = 0.01,
    assignment: str = 'auto',
) -> base.Quantizer:
  """Lookup-free quantization (Yu 2023, https://arxiv.org/abs/2310.05737).

  A code is the signs of `L = log2(num_codes)` channels, and the decoder sees
  them as -1 and 1, straight through. With `q(c|x) = softmax(-|z - c|^2 /
  entropy_temperature)` over all codes, the loss is

      entropy_weight (mean of H(q(c|x)) - diversity H(q(c)))
      + commitment |z - sg(c)|^2,

  entropies in nats; the last term a mean over positions and channels. Both
  entropies are those of whole codes and exact: the first is a sum over bits,
  which are independent given z; the second is not, and is computed from the
  `[C]` of q(c), in tiles.

  Parameters and state: none. Metrics: `posterior_entropy`, `kl` of q(c) to
  uniform (nats), `quantization_error` and `latent_variance`.

  Args:
    num_codes: C, a power of two.
    entropy_weight: of the difference of entropies.
    diversity: weight of the second within it.
    commitment: weight of the commitment.
    entropy_temperature: of q(c|x).
    assignment: how q(c) is computed; see `assignment.plan`.

  Raises:
    ValueError: for another number of codes, or an unknown `assignment`.
  """
  base.check_choice('lfq', 'assignment', assignment, soft_assignment.METHODS)
  bits = binary.num_bits('lfq', num_codes)

  def of_rows(plan, params, h, weights, seeds):
    del seeds
    corners = params['corners']
    assigned = soft_assignment.assign(
        plan, params['sharpness'] * h, corners, corners, weights=weights
    )
    return assigned.posterior, ()

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
    (h,) = numerics.promote(h)
    point = binary.corner(h)
    # -|z - c|^2 is 2 z c and what all codes share.
    sharpness = jnp.asarray(2 / entropy_temperature, h.dtype)
    q_c, _ = soft_assignment.map_positions(
        of_rows,
        {
            'corners': binary.corners_of(jnp.arange(num_codes), bits).astype(
                h.dtype
            ),
            'sharpness': sharpness,
        },
        h,
        num_codes=num_codes,
        mask=mask,
        axis_name=axis_name,
        method=assignment,
    )

    def mean(values):
      return numerics.masked_mean(values, mask, axis_name=axis_name)

    entropy = mean(jnp.sum(binary.bit_entropy(2 * sharpness * h), axis=-1))
    any_left = jnp.any(q_c > 0)
    kl = any_left * kl_to_uniform(q_c)
    error = jnp.mean(jnp.square(h - point), axis=-1)
    aggregated = any_left * jnp.log(num_codes) - kl
    loss = entropy_weight * (entropy - diversity * aggregated)
    loss += commitment * mean(error)
    metrics = {
        'posterior_entropy': entropy,
        'kl': kl,
        **base.latent_metrics(h, error, mean),
    }
    quantized = base.result(
        numerics.straight_through(point, h) if train else point,
        binary.codes_of(point),
        loss,
        metrics,
        num_codes,
        mask,
        axis_name,
        q_c=q_c,
    )
    return quantized, state

  def embed(params, state, codes):
    del params, state
    return binary.corners_of(codes, bits)

  def logits(params, state, h):
    points = embed(params, state, jnp.arange(num_codes))
    return base.distance_logits(h, points) / entropy_temperature

  return base.Quantizer(
      heads=(bits,),
      num_codes=num_codes,
      apply=apply,
      embed=embed,
      logits=logits,
      **base.no_codebook(),
  )
