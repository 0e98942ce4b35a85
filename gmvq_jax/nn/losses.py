"""Reconstruction losses: how far a decoded image is from the original.

A loss takes `decoded` and `images`, both float `[B, H, W, channels]` in [0, 1],
and returns `[B]`, for each image a mean over pixels and channels, so that its
weight against a quantizer's own terms does not depend on the image's size.
"""

from collections.abc import Callable
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.runtime import errors

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def mse(decoded: jax.Array, images: jax.Array) -> jax.Array:
  """Returns the mean squared error of each image, `[B]`; the paper's."""
  return jnp.mean(jnp.square(decoded - images), axis=(1, 2, 3))


def l1(decoded: jax.Array, images: jax.Array) -> jax.Array:
  """Returns the mean absolute error of each image, `[B]`."""
  return jnp.mean(jnp.abs(decoded - images), axis=(1, 2, 3))


LOSSES = {'mse': mse, 'l1': l1}


def psnr(error: Any) -> Any:
  """Returns the peak signal-to-noise ratio in dB, of images in [0, 1].

  Args:
    error: mean squared errors, NumPy's or JAX's. Below 1e-10 they count as
      that, 100 dB: a perfect image has no ratio.
  """
  xp = jnp if isinstance(error, jax.Array) else np
  return -10 * xp.log10(xp.maximum(error, 1e-10))


def get(name: str, image_shape: tuple[int, int, int]) -> Loss:
  """Returns the loss of a name.

  Args:
    name: `mse`, `l1`, or `MODULE:FUNCTION`, a loss of the user's, such as a
      perceptual one.
    image_shape: `(H, W, channels)` of the images it is for.

  Raises:
    errors.UserError: when there is none, or it does not return `[B]`.
  """
  if name in LOSSES:
    return LOSSES[name]
  field = f'config.reconstruction_loss={name!r}'
  module, colon, function = name.partition(':')
  if not colon:
    raise errors.UserError(
        f'{field}: is unknown; it must be one of {", ".join(LOSSES)}, or'
        ' MODULE:FUNCTION'
    )
  try:
    loss = getattr(importlib.import_module(module), function)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    result = jax.eval_shape(loss, images, images)
  except Exception as error:  # It is the user's code.
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
        f'{field}: cannot be used ({type(error).__name__}: {reason}); it must'
        ' be an importable function of two batches of images'
    ) from error
  if getattr(result, 'shape', None) != (2,):
    raise errors.UserError(
        f'{field}: returned {result} for two images; it must return an array'
        ' of one value for each'
    )
  return loss
