"""FSP: finite scalar quantization of probabilities, with additive noise."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.methods.fsq import levels_near


def fsp(
    num_codes: int = 1024, *, levels: tuple[int, ...] = ()
) -> base.Quantizer:
  """Quantizes each channel's probability (https://arxiv.org/abs/2602.17133).

  The CDF of the standard normal maps a channel to p in (0, 1), so that levels
  are used evenly where latents are standard normal. The code of a channel of n
  levels is `floor(n p)`. In training the decoder sees p plus uniform noise one
  step wide, reflected at 0 and 1, and its gradient reaches the latents through
  the CDF; at evaluation it sees the middle of the step. Here p is scaled to
  [-1, 1] for the decoder, and there is no loss but the reconstruction's.

  Parameters and state: none. Metrics: `quantization_error` and
  `latent_variance`, both of the scaled p. Training needs a key.

  Args:
    num_codes: the levels of `fsq` with the nearest product are used.
    levels: instead of those; the first channel is the fastest in a code.

  Raises:
    ValueError: for a level below 2.
  """
  common.check_sizes('fsp', num_codes=num_codes)
  levels = tuple(levels) or levels_near(num_codes)
  if not all(isinstance(n, numbers.Integral) and n > 1 for n in levels):
    raise ValueError(f'fsp: levels={levels}: each must be at least 2')
  heads = (len(levels),)
  size = np.asarray(levels)
  basis = np.cumprod([1, *levels[:-1]])
  num_codes = int(size.prod())

  def probability(h: jax.Array) -> jax.Array:
    (h,) = numerics.promote(h)
    return jax.scipy.special.ndtr(h)

  def middle(steps: jax.Array) -> jax.Array:
    """Returns the middle of steps, on [-1, 1]."""
    # Rounded once, and so the same in every program.
    width = size.astype(np.float32)
    return (2 * steps + 1 - width) / width

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    del params
    p = probability(call.h)
    steps = jnp.minimum(jnp.floor(p * size), size - 1)
    point = middle(steps)
    z = point
    if call.train:
      assert call.key is not None
      seeds = counter_rng.row_seeds(
          call.key, call.mask.size, axis_name=call.axis_name
      )
      noise = counter_rng.uniform(seeds, len(levels), dtype=p.dtype)
      noisy = p + (noise.reshape(p.shape) - 0.5) / size
      z = 2 * (1 - jnp.abs(1 - jnp.abs(noisy))) - 1
    quantized = call.nearest(
        z,
        (steps * basis).sum(-1).astype(jnp.int32),
        2 * p - 1,
        point,
        jnp.zeros(()),
        num_codes,
    )
    return quantized, state

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    del params, state
    steps = codes[..., None] // basis % size
    return common.zero_unless(codes >= 0, middle(steps.astype(jnp.float32)))

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    points = embed(params, state, jnp.arange(num_codes))
    return common.distance_logits(2 * probability(h) - 1, points)

  parts = common.no_codebook() | {'straight_through': False}
  return base.Quantizer(
      heads=heads,
      num_codes=num_codes,
      apply=common.as_apply('fsp', heads, quantize, needs=('key',)),
      embed=embed,
      logits=logits,
      **parts,
  )
