"""Equinox: sets of unlike sizes, padded, with a mask.

    python examples/padded_sets.py

Points of star-shaped outlines, from 6 to 16 in a set. The padding is NaN on
purpose: masked positions are ignored. Seconds on a CPU.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmvq_jax import gmvq

MOST, DIM = 16, 8
QUANTIZER = gmvq(32, DIM, gamma=0.01, beta=10.0)


class Autoencoder(eqx.Module):
  """Points `[..., 2]` to a code each, and back."""

  encoder: eqx.nn.MLP
  decoder: eqx.nn.MLP
  codebook: dict

  def __init__(self, key):
    """Initialises the weights, the codebook of GM-VQ among them."""
    keys = jax.random.split(key, 3)
    heads = sum(QUANTIZER.heads)
    self.encoder = eqx.nn.MLP(2, heads, 64, 2, key=keys[0])
    self.decoder = eqx.nn.MLP(DIM, 2, 64, 2, key=keys[1])
    self.codebook, _ = QUANTIZER.init(keys[2])  # It has no state.

  def __call__(self, points, mask, **kwargs):
    """Returns reconstructions and the output of the quantizer."""
    h = _over_sets(self.encoder)(jnp.where(mask[..., None], points, 0))
    quantized, _ = QUANTIZER.apply(self.codebook, {}, h, mask=mask, **kwargs)
    return _over_sets(self.decoder)(quantized.z), quantized


def _over_sets(function):
  return jax.vmap(jax.vmap(function))


def outlines(rng, count):
  """Returns sets of points `[count, 16, 2]` and their mask `[count, 16]`."""
  sizes = rng.integers(6, MOST + 1, size=count)
  mask = np.arange(MOST) < sizes[:, None]
  angle = 2 * np.pi * np.arange(MOST) / sizes[:, None]
  radius = 1 + 0.4 * np.cos(3 * angle + rng.uniform(0, 6, size=(count, 1)))
  points = radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
  return np.where(mask[..., None], points, np.nan).astype(np.float32), mask


def mean_error(decoded, points, mask):
  """Returns the mean squared error of the points that count."""
  error = jnp.where(mask[..., None], decoded - jnp.nan_to_num(points), 0)
  return jnp.sum(jnp.square(error)) / (2 * jnp.sum(mask))


def main(num_steps: int) -> dict[str, float]:
  """Trains, and returns figures of new sets."""
  rng = np.random.default_rng(0)
  model = Autoencoder(jax.random.key(0))
  optimizer = optax.adam(3e-3)
  opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
  temperature = optax.exponential_decay(2.0, num_steps, 0.05)

  @eqx.filter_jit
  def train_step(model, opt_state, points, mask, key, temperature):
    def loss_of(model):
      decoded, quantized = model(
          points, mask, key=key, temperature=temperature, train=True
      )
      error = mean_error(decoded, points, mask)
      return QUANTIZER.objective(error, quantized, data_shape=points.shape)

    updates, opt_state = optimizer.update(
        eqx.filter_grad(loss_of)(model), opt_state
    )
    return eqx.apply_updates(model, updates), opt_state

  for step in range(num_steps):
    key = jax.random.fold_in(jax.random.key(1), step)
    model, opt_state = train_step(
        model, opt_state, *outlines(rng, 64), key, temperature(step)
    )

  points, mask = outlines(np.random.default_rng(1), 512)
  decoded, quantized = model(points, mask)
  figures = {
      'mse': float(mean_error(decoded, points, mask)),
      'variance': float(np.nanvar(points)),
      'perplexity': float(quantized.metrics['perplexity']),
  }
  print(*(f'{name} {value:.4f}' for name, value in figures.items()))
  print('codes of a set:', *quantized.codes[0].tolist())
  return figures


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--steps', type=int, default=600)
  main(parser.parse_args().steps)
