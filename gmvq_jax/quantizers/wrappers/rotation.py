"""The rotation trick, in the place of the straight-through estimator."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base


def with_rotation_trick(inner: base.Quantizer) -> base.Quantizer:
  """Turns the decoder's gradient with its codeword (Fifty 2024).

  https://arxiv.org/abs/2410.06424: what the decoder sees is unchanged, but its
  gradient reaches the latents z as if it were `s R z`, where R rotates z onto
  the codeword in the plane of both, and s stretches it; both are constants.

  Parameters, state, loss and metrics are those of `inner`.

  Args:
    inner: one that passes its codewords straight through: a vqvae with whatever
      is added to it, simvq, fsq, lfq, bsq, or a residual or grouped one of
      these.

  Raises:
    ValueError: for any other.
  """
  if not inner.straight_through:
    raise ValueError(
        'rotation: goes with quantizers that pass their codewords straight'
        ' through, such as vqvae, fsq or lfq; this one does not'
    )

  def apply(params, state, h, *, train=False, mask=None, **kwargs):
    quantized, state = inner.apply(
        params, state, h, train=train, mask=mask, **kwargs
    )
    if train:
      h, _ = base.apply_mask(h, mask, inner.heads)
      z = numerics.straight_through(quantized.z, _rotated(h, quantized.z))
      quantized = quantized._replace(z=z)
    return quantized, state

  return inner._replace(apply=apply)


def _rotated(h, z):
  """Returns `s R h`, its gradient to `h [..., L]` alone.

  And h itself where it, or z, has no direction.
  """
  h, z = numerics.promote(h, z)
  norm_h, norm_z = numerics.norm(h), numerics.norm(z)
  from_, to = numerics.normalize(h), numerics.normalize(z)
  # Two reflections: section 4.2.
  middle = numerics.normalize(from_ + to)
  scale, from_, to, middle = jax.lax.stop_gradient(
      (norm_z / norm_h, from_, to, middle)
  )

  def along(direction):
    return jnp.sum(h * direction, axis=-1, keepdims=True)

  rotated = scale * (h - 2 * along(middle) * middle + 2 * along(from_) * to)
  return jnp.where(jnp.minimum(norm_h, norm_z) < 1e-5, h, rotated)
