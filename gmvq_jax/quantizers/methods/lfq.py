"""LFQ: lookup-free quantization, the signs of a few channels."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.ops import soft_assignment
from gmvq_jax.ops.albo import kl_to_uniform
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
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
    assignment: how q(c) is computed; see `soft_assignment.plan`.

  Raises:
    ValueError: for another number of codes, or an unknown `assignment`.
  """
  bits = binary.num_bits('lfq', num_codes)
  common.check_choice('lfq', 'assignment', assignment, soft_assignment.METHODS)
  common.check_range(
      'lfq',
      'at least 0',
      entropy_weight=entropy_weight,
      diversity=diversity,
      commitment=commitment,
  )
  common.check_range(
      'lfq', 'greater than 0', entropy_temperature=entropy_temperature
  )
  # -|z - c|^2 / temperature is this times z c, and what all codes share.
  sharpness = 2 / entropy_temperature

  def of_rows(
      plan: soft_assignment.Plan,
      corners: jax.Array,
      h: jax.Array,
      weights: jax.Array,
      seeds: None,
  ) -> tuple[jax.Array, tuple[()]]:
    del seeds
    assigned = soft_assignment.assign(
        plan, sharpness * h, corners, corners, weights=weights
    )
    return assigned.posterior, ()

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    del params
    (h,) = numerics.promote(call.h)
    point = binary.corner(h)
    q_c, _ = soft_assignment.map_positions(
        of_rows,
        binary.corners_of(jnp.arange(num_codes), bits).astype(h.dtype),
        h,
        num_codes=num_codes,
        mask=call.mask,
        axis_name=call.axis_name,
        method=assignment,
    )
    entropy = call.mean(
        jnp.sum(binary.bit_entropy(2 * sharpness * h), axis=-1)
    )
    any_left = jnp.any(q_c > 0)
    kl = any_left * kl_to_uniform(q_c)
    error = jnp.mean(jnp.square(h - point), axis=-1)
    aggregated = any_left * jnp.log(num_codes) - kl
    loss = entropy_weight * (entropy - diversity * aggregated)
    loss += commitment * call.mean(error)
    quantized = call.quantized(
        numerics.straight_through(point, h) if call.train else point,
        binary.codes_of(point),
        loss,
        {
            'posterior_entropy': entropy,
            'kl': kl,
            **call.latent_metrics(h, error),
        },
        num_codes,
        q_c=q_c,
    )
    return quantized, state

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    del params, state
    return binary.corners_of(codes, bits)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    points = embed(params, state, jnp.arange(num_codes))
    return common.distance_logits(h, points) / entropy_temperature

  return base.Quantizer(
      heads=(bits,),
      num_codes=num_codes,
      apply=common.as_apply('lfq', (bits,), quantize),
      embed=embed,
      logits=logits,
      **common.no_codebook(),
  )
