"""Finite scalar quantization: a grid instead of a codebook."""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common

# The levels of Mentzer 2023, table 1, by the bits of a code.
_LEVELS = {
    4: (5, 3), 5: (8, 4), 6: (8, 8), 7: (5, 5, 5), 8: (8, 6, 5), 9: (8, 8, 8),
    10: (8, 5, 5, 5), 11: (8, 8, 6, 5), 12: (7, 5, 5, 5, 5),
    14: (8, 8, 8, 6, 5), 16: (8, 8, 8, 5, 5, 5),
}  # fmt: skip
_MARGIN = 1e-3


def levels_near(num_codes: int) -> tuple[int, ...]:
  """Returns the published levels whose product is nearest to `num_codes`."""
  return min(_LEVELS.values(), key=lambda x: abs(math.prod(x) - num_codes))


def fsq(
    num_codes: int = 1024, *, levels: tuple[int, ...] = ()
) -> base.Quantizer:
  """Finite scalar quantization (https://arxiv.org/abs/2309.15505).

  Each of a few channels is bounded by a tanh and rounded to one of its levels,
  straight through. Channel i of the latents takes the values `k / (levels[i] //
  2)`, about [-1, 1], and a code numbers the points of the grid with the first
  channel fastest. There is nothing but the mean squared error to minimise.

  Parameters, state and loss: none. Metrics: `quantization_error` (of the
  bounded latents) and `latent_variance`.

  Args:
    num_codes: the published levels with the nearest product are taken: 1,000
      for 1,024.
    levels: instead of those.

  Raises:
    ValueError: for a level below 2.
  """
  common.check_sizes('fsq', num_codes=num_codes)
  levels = tuple(levels) or levels_near(num_codes)
  if not all(isinstance(n, numbers.Integral) and n > 1 for n in levels):
    raise ValueError(f'fsq: levels={levels}: each must be at least 2')
  heads = (len(levels),)
  size = np.asarray(levels)
  basis = np.cumprod([1, *levels[:-1]])
  num_codes = int(size.prod())
  half_width = (size // 2).astype(np.float32)
  # An even number of levels is not symmetric about 0. By the margin the tanh
  # reaches the outermost ones themselves.
  half = (size - 1) * (1 + _MARGIN) / 2
  offset = np.where(size % 2, 0.0, 0.5)
  shift = np.arctanh(offset / half)

  def bound(h: jax.Array) -> jax.Array:
    """Returns latents within the levels, one level apart."""
    (h,) = numerics.promote(h)
    return jnp.tanh(h + shift) * half - offset

  def codes_of(steps: jax.Array) -> jax.Array:
    """Returns the codes of points of the grid, in steps from its middle."""
    return ((steps + half_width) * basis).sum(-1).astype(jnp.int32)

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    del params
    bounded = bound(call.h)
    steps = jnp.round(bounded)
    latents, point = bounded / half_width, steps / half_width
    z = numerics.straight_through(point, latents) if call.train else point
    quantized = call.nearest(
        z, codes_of(steps), latents, point, jnp.zeros(()), num_codes
    )
    return quantized, state

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    del params, state
    steps = codes[..., None] // basis % size - half_width
    return common.zero_unless(codes >= 0, steps / half_width)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    points = embed(params, state, jnp.arange(num_codes))
    return common.distance_logits(bound(h) / half_width, points)

  return base.Quantizer(
      heads=heads,
      num_codes=num_codes,
      apply=common.as_apply('fsq', heads, quantize),
      embed=embed,
      logits=logits,
      **common.no_codebook(),
  )
