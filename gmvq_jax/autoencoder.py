"""Encoder + quantizer + decoder, and a quantizer as a Linen module.

Shapes: images `[B, H, W, channels]` in [0, 1]; latents `[B, h, w, L]`.
"""

from typing import Any
from typing import NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from gmvq_jax import networks
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
    z = self.quantizer.embed(codebook, state, jnp.zeros(grid, jnp.int32))
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


class VectorQuantizer(nn.Module):
  """Puts a quantizer into a Linen model.

  Its params are in the collection `params`; its state, where it has any, in
  `quantizer`, which is to be mutable in training. Training needs the random
  stream `quantizer`.

  After each step of the optimiser call `finish`, where it does something:
  GM-VQ's does not.

  Attributes:
    quantizer: what a factory such as `gmvq_jax.gmvq` returned.
  """

  quantizer: base.Quantizer

  def setup(self):
    """Makes params and state, of one key, so that they belong together."""
    key = jax.random.key(0)
    if self.is_initializing():
      key = self.make_rng('params')
    params, state = jax.eval_shape(self.quantizer.init, key)
    # Flax, and what wraps it, forget what is empty.
    if jax.tree.leaves(params):
      self.param('quantizer', lambda _: self.quantizer.init(key)[0])
    if jax.tree.leaves(state):
      self.variable('quantizer', 'state', lambda: self.quantizer.init(key)[1])

  def __call__(
      self,
      h: jax.Array,
      *,
      temperature: chex.Numeric | None = None,
      train: bool = False,
      mask: jax.Array | None = None,
      axis_name: str | None = None,
  ) -> base.Quantized:
    """Quantizes `h [..., sum(quantizer.heads)]`; see `Quantizer.apply`."""
    chex.assert_axis_dimension(h, -1, sum(self.quantizer.heads))
    quantized, state = self.quantizer.apply(
        *self._both(),
        h,
        key=self.make_rng('quantizer') if train else None,
        temperature=temperature,
        train=train,
        mask=mask,
        axis_name=axis_name,
    )
    updates = self.is_mutable_collection('quantizer')
    if updates and jax.tree.leaves(state) and not self.is_initializing():
      self.put_variable('quantizer', 'state', state)
    return quantized

  def embed(self, codes: jax.Array) -> jax.Array:
    """Returns what the decoder sees for codes; see `Quantizer.embed`."""
    return self.quantizer.embed(*self._both(), codes)

  def finish(self) -> Any:
    """Writes what `Quantizer.finish` does, and returns what is fresh.

    With `apply(..., method='finish', mutable=['params', 'quantizer'])`, after
    each step of the optimiser.
    """
    params, state, fresh = self.quantizer.finish(*self._both())
    if jax.tree.leaves(params):
      self.put_variable('params', 'quantizer', params)
    if jax.tree.leaves(state):
      self.put_variable('quantizer', 'state', state)
    return fresh

  def _both(self):
    shapes = jax.eval_shape(self.quantizer.init, jax.random.key(0))
    stored = (
        self.get_variable('params', 'quantizer', {}),
        self.get_variable('quantizer', 'state', {}),
    )
    # With what is empty in its place.
    return jax.tree.unflatten(
        jax.tree.structure(shapes), jax.tree.leaves(stored)
    )
