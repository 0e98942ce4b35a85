"""Encoder + quantizer + decoder.

Shapes: images `[B, H, W, channels]` in [0, 1]; latents `[B, h, w, L]`.
"""

from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.nn import networks
from gmvq_jax.quantizers import base


class Variables(NamedTuple):
  """Everything an autoencoder is besides its structure.

  Attributes:
    params: the optimiser's; a dict of `encoder`, `quantizer` and `decoder`.
    batch_stats: of the batch norms; a dict of `encoder` and `decoder`.
    quantizer_state: the quantizer's own.
  """

  params: Any
  batch_stats: Any
  quantizer_state: Any


class Autoencoder(NamedTuple):
  """The structure: two networks and what is between them."""

  encoder: networks.Encoder
  quantizer: base.Quantizer
  decoder: networks.Decoder

  def init(self, key: chex.PRNGKey, image_shape: tuple[int, ...]) -> Variables:
    """Returns fresh variables for images of shape `[H, W, channels]`."""
    keys = jax.random.split(key, 3)
    images = jnp.zeros((1, *image_shape))
    encoder = self.encoder.init(keys[0], images, train=False)
    codebook, state = self.quantizer.init(keys[1])
    grid = jax.eval_shape(
        lambda: self.encoder.apply(encoder, images, train=False)
    ).shape[:-1]
    codes = jnp.zeros((*grid, *self.quantizer.code_shape), jnp.int32)
    z = self.quantizer.embed(codebook, state, codes)
    decoder = self.decoder.init(keys[2], z, train=False)
    return Variables(
        params={
            'encoder': encoder['params'],
            'quantizer': codebook,
            'decoder': decoder['params'],
        },
        batch_stats={
            'encoder': encoder.get('batch_stats', {}),
            'decoder': decoder.get('batch_stats', {}),
        },
        quantizer_state=state,
    )

  def encode(
      self, variables: Variables, images: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, Variables]:
    """Returns `h [B, h, w, sum(heads)]`, and variables with new statistics."""
    return self._network(self.encoder, 'encoder', variables, images, train)

  def decode(
      self, variables: Variables, z: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, Variables]:
    """Returns images `[B, H, W, channels]`, and variables as `encode` does."""
    return self._network(self.decoder, 'decoder', variables, z, train)

  def quantize(
      self, variables: Variables, h: jax.Array, **kwargs
  ) -> tuple[base.Quantized, Variables]:
    """Returns what `Quantizer.apply` does, given its keyword arguments."""
    quantized, state = self.quantizer.apply(
        variables.params['quantizer'], variables.quantizer_state, h, **kwargs
    )
    return quantized, variables._replace(quantizer_state=state)

  def reconstruct(
      self, variables: Variables, images: jax.Array, **kwargs
  ) -> tuple[jax.Array, base.Quantized]:
    """Encodes, quantizes as at evaluation, and decodes.

    Args:
      variables: of this autoencoder.
      images: `[B, H, W, channels]`.
      **kwargs: for `Quantizer.apply`, such as `mask`.

    Returns:
      Images like `images`, and the `Quantized`.
    """
    h, _ = self.encode(variables, images)
    quantized, _ = self.quantize(variables, h, **kwargs)
    decoded, _ = self.decode(variables, quantized.z)
    return decoded, quantized

  def _network(self, network, name, variables, x, train):
    inputs = {
        'params': variables.params[name],
        'batch_stats': variables.batch_stats[name],
    }
    if not train:
      return network.apply(inputs, x, train=False), variables
    y, updated = network.apply(inputs, x, train=True, mutable=['batch_stats'])
    stats = updated.get('batch_stats', {})
    batch_stats = {**variables.batch_stats, name: stats}
    return y, variables._replace(batch_stats=batch_stats)


def to_unit(images: jax.Array) -> jax.Array:
  """Converts uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255
