"""Flax NNX: residual quantization of a 1-D signal, as audio codecs do.

    python examples/audio_codec.py

The signal is synthetic: plucked strings. One model serves every bit rate, as in
training each example keeps a random number of levels. A minute on a CPU.
"""

import argparse

from flax import nnx
import jax.numpy as jnp
import numpy as np
import optax

from gmvq_jax import VectorQuantizer
from gmvq_jax import residual
from gmvq_jax import vqvae_ema

LENGTH, STRIDE, DIM, LEVELS = 512, 16, 32, 4
QUANTIZER = residual(
    vqvae_ema(64, DIM, decay=0.95, commitment=0.025), LEVELS, dropout=True
)


class Codec(nnx.Module):
  """Signals `[B, T, 1]` to codes `[B, T / 16, LEVELS]` and back."""

  def __init__(self, rngs: nnx.Rngs):
    """Makes the layers."""
    self.encoder = nnx.Conv(1, DIM, (STRIDE,), strides=STRIDE, rngs=rngs)
    self.inner = nnx.Conv(DIM, DIM, (3,), rngs=rngs)
    self.quantizer = nnx.bridge.lazy_init(
        nnx.bridge.ToNNX(VectorQuantizer(QUANTIZER), rngs=rngs),
        jnp.zeros((1, DIM)),
    )
    self.outer = nnx.Conv(DIM, DIM, (3,), rngs=rngs)
    self.decoder = nnx.ConvTranspose(
        DIM, 1, (STRIDE,), strides=STRIDE, rngs=rngs
    )

  def decode(self, codes):
    """Returns signals of the codes of any number of first levels."""
    return self._decode(self.quantizer(codes, method='embed'))

  def _decode(self, z):
    return self.decoder(nnx.gelu(self.outer(z)) + z)

  def __call__(self, signals, *, train=False):
    """Returns reconstructions and the output of the quantizer."""
    h = self.encoder(signals)
    h = h + self.inner(nnx.gelu(h))
    quantized = self.quantizer(
        h, train=train, mutable=['quantizer'] if train else False
    )
    return self._decode(quantized.z), quantized


def plucked_strings(rng: np.random.Generator, count: int) -> np.ndarray:
  """Returns sums of decaying harmonics, float32 `[count, 512, 1]`."""
  time = np.arange(LENGTH) / LENGTH
  signals = np.zeros((count, LENGTH))
  pitch = rng.uniform(8, 24, size=(count, 1))
  for harmonic in range(1, 6):
    phase = rng.uniform(0, 2 * np.pi, size=(count, 1))
    decay = np.exp(-rng.uniform(0, 4, size=(count, 1)) * harmonic * time)
    wave = np.sin(2 * np.pi * harmonic * pitch * time + phase)
    signals += decay * wave / harmonic
  return np.float32(signals[..., None])


def main(num_steps: int) -> dict[str, float]:
  """Trains, and returns the distortion of new signals at each bit rate."""
  rng = np.random.default_rng(0)
  codec = Codec(nnx.Rngs(0, quantizer=1))
  optimizer = nnx.Optimizer(codec, optax.adamw(2e-3), wrt=nnx.Param)

  @nnx.jit
  def train_step(codec, optimizer, signals):
    def loss_of(codec):
      decoded, quantized = codec(signals, train=True)
      error = jnp.mean(jnp.square(decoded - signals))
      return QUANTIZER.objective(error, quantized, data_shape=signals.shape)

    optimizer.update(codec, nnx.grad(loss_of)(codec))

  for _ in range(num_steps):
    train_step(codec, optimizer, plucked_strings(rng, 64))

  signals = plucked_strings(np.random.default_rng(1), 256)
  _, quantized = codec(signals)
  figures = {}
  for levels in range(1, LEVELS + 1):
    decoded = codec.decode(quantized.codes[..., :levels])
    error = jnp.mean(jnp.square(decoded - signals))
    ratio = float(10 * jnp.log10(signals.var() / error))
    print(f'{6 * levels} bits per {STRIDE} samples: {ratio:.1f} dB')
    figures[f'snr_{levels}'] = ratio
  return figures


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--steps', type=int, default=800)
  main(parser.parse_args().steps)
