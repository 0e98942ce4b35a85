"""Plain JAX: vectors of items to semantic IDs, as recommenders use them.

    python examples/semantic_ids.py

An item is a vector (here the pixels of scikit-learn's 1,797 digits); its ID is
the codes of a residual quantizer, the first of them the coarsest, so that items
that are alike share how their IDs begin. Seconds on a CPU.
"""

import argparse
import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from gmvq_jax import kmeans_start
from gmvq_jax import optimizer
from gmvq_jax import projected
from gmvq_jax import residual
from gmvq_jax import vqvae
from gmvq_jax import with_replacement

CODES, DIM, LEVELS = 32, 16, 3


def main(num_steps: int) -> dict[str, float]:
  """Trains, and returns figures of all items' IDs."""
  items, labels = datasets.load_digits(return_X_y=True)
  items = jnp.asarray((items - items.mean(0)) / items.std(), jnp.float32)
  quantizer = projected(
      residual(with_replacement(vqvae(CODES, DIM, alpha=1.25)), LEVELS),
      items.shape[1],
  )
  params, state = quantizer.init(jax.random.key(0))
  params, state = kmeans_start(
      jax.random.key(1), quantizer, params, state, items
  )
  adam = optimizer(optax.adam(3e-3), quantizer)
  opt_state = adam.init(params)

  @jax.jit
  def train_step(params, state, opt_state, batch, key):
    def loss_of(params):
      quantized, moved = quantizer.apply(
          params, state, batch, key=key, train=True
      )
      error = jnp.mean(jnp.square(quantized.z - batch))
      loss = quantizer.objective(error, quantized, data_shape=batch.shape)
      return loss, moved

    gradients, state = jax.grad(loss_of, has_aux=True)(params)
    updates, opt_state = adam.update(
        gradients, opt_state, params, quantizer_state=state
    )
    return optax.apply_updates(params, updates), state, opt_state

  rng = np.random.default_rng(0)
  for step in range(num_steps):
    batch = items[rng.integers(0, len(items), 256)]
    key = jax.random.fold_in(jax.random.key(2), step)
    params, state, opt_state = train_step(params, state, opt_state, batch, key)

  quantized, _ = quantizer.apply(params, state, items)
  ids = [tuple(row) for row in np.asarray(quantized.codes).tolist()]
  error = jnp.mean(jnp.square(quantized.z - items)) / items.var()
  figures = {
      'distinct': len(set(ids)) / len(ids),
      'unexplained': float(error),
      'same_label': _agreement([i[:1] for i in ids], labels),
      'usage': float(quantized.metrics['usage']),
  }
  for item in range(5):
    print(f'digit {labels[item]}: {"-".join(map(str, ids[item]))}')
  print(*(f'{name} {value:.3f}' for name, value in figures.items()))
  return figures


def _agreement(prefixes, labels):
  """Returns the share of items whose label is the commonest of their prefix."""
  members = collections.defaultdict(collections.Counter)
  for prefix, label in zip(prefixes, labels, strict=True):
    members[prefix][label] += 1
  return sum(max(c.values()) for c in members.values()) / len(labels)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--steps', type=int, default=400)
  main(parser.parse_args().steps)
