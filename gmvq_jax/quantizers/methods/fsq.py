"""Finite scalar quantization: a grid instead of a codebook."""

import math

import jax.numpy as jnp
import numpy as np

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base

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
  base.check_sizes('fsq', num_codes=num_codes)
  levels = tuple(levels) or levels_near(num_codes)
  if not all(isinstance(n, int) and n > 1 for n in levels):
    raise ValueError(f'fsq: levels={levels}: each must be at least 2')
  size = np.asarray(levels)
  basis = np.cumprod([1, *levels[:-1]])
  num_codes = int(size.prod())
  half_width = (size // 2).astype(np.float32)
  # An even number of levels is not symmetric about 0. By the margin the tanh
  # reaches the outermost ones themselves.
  half = (size - 1) * (1 + _MARGIN) / 2
  offset = np.where(size % 2, 0.0, 0.5)
  shift = np.arctanh(offset / half)

  def bound(h):
    (h,) = numerics.promote(h)
    return jnp.tanh(h + shift) * half - offset

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
    h, mask = base.apply_mask(h, mask, (len(levels),))
    bounded = bound(h)
    steps = jnp.round(bounded)
    codes = ((steps + half_width) * basis).sum(-1).astype(jnp.int32)
    point = steps / half_width
    z = numerics.straight_through(point, bounded / half_width)
    quantized = base.hard(
        z if train else point,
        codes,
        bounded / half_width,
        point,
        jnp.zeros(()),
        num_codes,
        mask,
        axis_name,
    )
    return quantized, state

  def embed(params, state, codes):
    del params, state
    steps = codes[..., None] // basis % size - half_width
    return base.zero_unless(codes >= 0, steps / half_width)

  def logits(params, state, h):
    points = embed(params, state, jnp.arange(num_codes))
    return base.distance_logits(bound(h) / half_width, points)

  return base.Quantizer(
      heads=(len(levels),),
      num_codes=num_codes,
      apply=apply,
      embed=embed,
      logits=logits,
      **base.no_codebook(),
  )
