"""The rotation trick, in the place of the straight-through estimator."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.wrappers import checks


def with_rotation_trick(inner: base.Quantizer) -> base.Quantizer:
  """Rotates the decoder's gradient with its codeword (Fifty 2024).

  https://arxiv.org/abs/2410.06424: the decoder's input is unchanged, but its
  gradient reaches the latents z as if it were `s R z`, where R rotates z onto
  the codeword in the plane of both, and s scales it; both are constants.

  Parameters, state, loss and metrics are those of `inner`.

  Args:
    inner: a quantizer that passes its codewords straight through: vqvae with
      any wrappers, simvq, fsq, lfq, bsq, or a residual or grouped one of these.

  Raises:
    ValueError: for any other.
  """
  wrappers = checks.wrap('rotation', inner)
  if not inner.straight_through:
    raise ValueError(
        'rotation: goes with quantizers that pass their codewords straight'
        ' through, such as vqvae, fsq or lfq; this one does not'
    )

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    quantized, state = call.apply(inner, params, state)
    if call.train:
      z = numerics.straight_through(quantized.z, _rotated(call.h, quantized.z))
      quantized = quantized._replace(z=z)
    return quantized, state

  return inner._replace(
      apply=common.as_apply('rotation', inner.heads, quantize),
      wrappers=wrappers,
  )


def _rotated(h: jax.Array, z: jax.Array) -> jax.Array:
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

  def along(direction: jax.Array) -> jax.Array:
    return jnp.sum(h * direction, axis=-1, keepdims=True)

  rotated = scale * (h - 2 * along(middle) * middle + 2 * along(from_) * to)
  return jnp.where(jnp.minimum(norm_h, norm_z) < 1e-5, h, rotated)
