"""The convolutional encoder and decoder, in Linen.

The public SQ-VAE backbone (Takida 2022), which the paper's baselines used:
strided convolutions, batch norm everywhere, two residual blocks. Batch norm is
not optional decoration: it holds the latents at unit scale, and without it the
logits of GM-VQ start near zero, the posterior is uniform and nothing trains.

Shapes: images `[B, H, W, channels]` in [0, 1]; features `[B, H/f, W/f, K]` with
`f = 2 ** num_downsamplings`. Convolutions run in `dtype`; parameters, batch
statistics and what the networks return are float32.
"""

from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics


class Style(NamedTuple):
  """What all layers of a network share.

  Attributes:
    batch_norm: whether convolutions are followed by batch norm.
    momentum: of its running statistics. 0 leaves those of the last batch.
    dtype: of the convolutions.
    remat: whether the backward pass computes what is inside a layer again, from
      its input, rather than keep it.
  """

  batch_norm: bool = True
  momentum: float = 0.9
  dtype: Any = jnp.float32
  remat: bool = False


class ConvNorm(nn.Module):
  """A convolution without bias, then batch norm over the global batch.

  Attributes:
    features: output channels.
    kernel: size of the square kernel.
    stride: in both directions.
    upsample: whether to double height and width by depth to space in between.
    zero: whether the norm's scale starts at 0, and so the layer's output.
    style: what all of a network's layers share.
  """

  features: int
  kernel: int
  style: Style
  stride: int = 1
  upsample: bool = False
  zero: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns features of the same kind as `x [B, H, W, K]`."""
    style = self.style
    x = nn.Conv(
        self.features * (4 if self.upsample else 1),
        (self.kernel, self.kernel),
        strides=self.stride,
        use_bias=not style.batch_norm,
        dtype=style.dtype,
    )(x)
    if self.upsample:
      x = depth_to_space(x)
    if style.batch_norm:
      x = nn.BatchNorm(
          use_running_average=not train,
          momentum=style.momentum,
          dtype=style.dtype,
          scale_init=nn.initializers.constant(0.0 if self.zero else 1.0),
      )(x)
    return x


class ResidualBlock(nn.Module):
  """`x + [ReLU, conv 3x3, norm, ReLU, conv 1x1, norm]`.

  With batch norm it starts as the identity (Goyal 2017,
  https://arxiv.org/abs/1706.02677), so that the scale of latents at the start
  does not grow with the blocks.
  """

  style: Style

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns features of the same kind as `x [B, H, W, K]`."""
    width = x.shape[-1]
    h = ConvNorm(width, 3, self.style)(nn.relu(x), train)
    h = ConvNorm(width, 1, self.style, zero=True)(nn.relu(h), train)
    return x + h


class Encoder(nn.Module):
  """Images to the heads of a quantizer, side by side.

  Attributes:
    heads: channels of each head; each ends in a residual block of its own.
    width: channels of the features.
    num_blocks: residual blocks before the heads.
    num_downsamplings: halvings of height and width.
    style: what all layers share.
  """

  heads: tuple[int, ...]
  width: int = 64
  num_blocks: int = 2
  num_downsamplings: int = 2
  style: Style = Style()

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns `[B, H/f, W/f, sum(heads)]` float32."""
    style = self.style
    x = (2 * images - 1).astype(style.dtype)
    for level in reversed(range(self.num_downsamplings)):
      width = _level_width(self.width, level)
      x = nn.relu(_run(ConvNorm(width, 4, style, stride=2), x, train))
    x = nn.relu(_run(ConvNorm(self.width, 3, style), x, train))
    for _ in range(self.num_blocks):
      x = _run(ResidualBlock(style), x, train)
    heads: list[jax.Array] = []
    for channels in self.heads:
      head = _run(ResidualBlock(style), x, train)
      if channels != self.width:
        head = nn.Conv(channels, (1, 1), dtype=style.dtype)(head)
      heads.append(*numerics.promote(head))
    return jnp.concatenate(heads, axis=-1)


class Decoder(nn.Module):
  """Latents to images.

  Upsampling is a 3x3 convolution to four times the channels, then depth to
  space (Shi 2016, https://arxiv.org/abs/1609.05158): it can express any 4x4
  transposed convolution of stride 2, whose gradients XLA computes slowly on a
  CPU.

  Attributes:
    channels: of the images.
    width: channels of the features.
    num_blocks: residual blocks.
    num_upsamplings: doublings of height and width.
    style: what all layers share.
  """

  channels: int = 3
  width: int = 64
  num_blocks: int = 2
  num_upsamplings: int = 2
  style: Style = Style()

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    """Returns `[B, H, W, channels]` float32 in [0, 1]."""
    style = self.style
    x = z.astype(style.dtype)
    if x.shape[-1] != self.width:
      x = nn.Conv(self.width, (1, 1), dtype=style.dtype)(x)
    for _ in range(self.num_blocks):
      x = _run(ResidualBlock(style), x, train)
    x = nn.relu(_run(ConvNorm(self.width, 3, style), x, train))
    for level in range(1, self.num_upsamplings):
      width = _level_width(self.width, level)
      x = nn.relu(_run(ConvNorm(width, 3, style, upsample=True), x, train))
    if self.num_upsamplings:
      x = nn.Conv(4 * self.channels, (3, 3), dtype=style.dtype)(x)
      x = depth_to_space(x)
    else:
      x = nn.Conv(self.channels, (3, 3), dtype=style.dtype)(x)
    return nn.sigmoid(*numerics.promote(x))


def depth_to_space(x: jax.Array) -> jax.Array:
  """Moves channels to pixels: `[B, h, w, 4 K]` to `[B, 2 h, 2 w, K]`."""
  b, h, w, k = x.shape
  x = x.reshape(b, h, w, 2, 2, k // 4)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, k // 4)


def _run(layer, x, train):
  """Applies a layer in its style."""
  if not layer.style.remat:
    return layer(x, train)
  return nn.remat(lambda layer, x: layer(x, train))(layer, x)


def _level_width(width, level):
  """Channels `level` halvings above the latents: 64, 32, 16, ... at 64."""
  return max(width >> level, 1)
