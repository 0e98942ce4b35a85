"""Flax Linen: an autoencoder of images around GM-VQ.

    python examples/image_autoencoder.py

Crops of two photographs that come inside scikit-learn, a minute on a CPU.
"""

import argparse

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from gmvq_jax import VectorQuantizer
from gmvq_jax import gmvq

SIZE, GRID = 16, 4
QUANTIZER = gmvq(64, 16, gamma=0.01, beta=10.0)


class Autoencoder(nn.Module):
  """Images `[B, 16, 16, 3]` to codes `[B, 4, 4]` and back."""

  @nn.compact
  def __call__(self, images, *, temperature=None, train=False):
    """Returns reconstructions and the output of the quantizer."""
    patch = (SIZE // GRID, SIZE // GRID)
    h = nn.relu(nn.Conv(64, patch, strides=patch)(images))
    # Two heads: latents and their precisions.
    h = nn.Conv(sum(QUANTIZER.heads), (1, 1))(h)
    quantized = VectorQuantizer(QUANTIZER)(
        h, temperature=temperature, train=train
    )
    h = nn.relu(nn.Conv(64, (3, 3))(quantized.z))
    return nn.ConvTranspose(3, patch, strides=patch)(h), quantized


def crops(rng: np.random.Generator, count: int) -> np.ndarray:
  """Returns crops of the photographs, float32 `[count, 16, 16, 3]`."""
  photographs = datasets.load_sample_images().images
  height, width, _ = photographs[0].shape
  corners = rng.integers(0, (height - SIZE, width - SIZE), size=(count, 2))
  return np.float32([
      photographs[i % 2][y : y + SIZE, x : x + SIZE] / 255
      for i, (y, x) in enumerate(corners)
  ])


def main(num_steps: int) -> dict[str, float]:
  """Trains, and returns figures of crops that were not trained on."""
  rng = np.random.default_rng(0)
  train_images, test_images = crops(rng, 4096), crops(rng, 512)
  model = Autoencoder()
  params = model.init(jax.random.key(0), test_images[:1])
  optimizer = optax.adamw(3e-3)
  opt_state = optimizer.init(params)
  temperature = optax.exponential_decay(2.0, num_steps, 0.05)

  def loss_of(params, images, key, temperature):
    decoded, quantized = model.apply(
        params,
        images,
        temperature=temperature,
        train=True,
        rngs={'quantizer': key},
    )
    error = jnp.mean(jnp.square(decoded - images))
    return QUANTIZER.objective(error, quantized, data_shape=images.shape)

  @jax.jit
  def train_step(params, opt_state, images, key, temperature):
    gradients = jax.grad(loss_of)(params, images, key, temperature)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  @jax.jit
  def figures_of(params, images):
    decoded, quantized = model.apply(params, images)
    error = jnp.mean(jnp.square(decoded - images))
    return {'mse': error, 'perplexity': quantized.metrics['perplexity']}

  for step in range(num_steps):
    images = rng.choice(train_images, 128)
    key = jax.random.fold_in(jax.random.key(1), step)
    params, opt_state = train_step(
        params, opt_state, images, key, temperature(step)
    )
    if step % 100 == 99:
      figures = jax.device_get(figures_of(params, test_images))
      print(f'step {step + 1}', *(f'{k} {v:.4g}' for k, v in figures.items()))
  return figures | {'variance': test_images.var()}


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--steps', type=int, default=600)
  main(parser.parse_args().steps)
