r"""A small autoencoder, sound and broken on purpose: what the figures then say.

    python examples/symptoms.py [--only=WORDS] [--steps=N]

Prints the table of docs/faq.md: two minutes on two CPU cores. The data are
made: 4 vectors of 16 numbers, each a fixed nonlinear function of 4 random ones;
128 codes.
"""

from collections.abc import Callable
from typing import NamedTuple

from absl import app
from absl import flags
from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

import gmvq_jax
from gmvq_jax.training import schedules

_ONLY = flags.DEFINE_string('only', '', 'Cases with this in their name.')
_STEPS = flags.DEFINE_integer('steps', 600, 'Of training.', lower_bound=1)

_CODES, _DIM, _POSITIONS, _VALUES = 128, 8, 4, 16
_COLUMNS = (
    'mse', 'perplexity', 'usage', 'quantization_error', 'latent_variance',
    'codebook_grad', 'codebook_moved', 'posterior_entropy',
)  # fmt: skip


class Case(NamedTuple):
  """A way to train.

  Attributes:
    quantizer: with which.
    start: whether the codebook starts by k-means.
    keeps_state: whether the state that `apply` returns is kept.
    minimises_objective: or the squared error alone.
    batch: examples in a step.
  """

  quantizer: gmvq_jax.Quantizer
  start: bool = True
  keeps_state: bool = True
  minimises_objective: bool = True
  batch: int = 256


_VQVAE = gmvq_jax.vqvae(_CODES, _DIM)
_REPLACED = gmvq_jax.with_replacement(_VQVAE)
_EMA = gmvq_jax.vqvae_ema(_CODES, _DIM)

CASES = {
    'sound': Case(_VQVAE),
    'random start': Case(_VQVAE, start=False),
    'random start, replacement': Case(_REPLACED, start=False),
    'loss left out': Case(_VQVAE, minimises_objective=False),
    'no commitment': Case(gmvq_jax.vqvae(_CODES, _DIM, beta=1.0)),
    'ema': Case(_EMA),
    'ema, state not kept': Case(_EMA, keeps_state=False),
    'batches of 2': Case(_VQVAE, batch=2),
    'batches of 2, replacement': Case(_REPLACED, batch=2),
    'gmvq': Case(gmvq_jax.gmvq(_CODES, _DIM, gamma=0.01, beta=10.0)),
    'sqvae, variance 2': Case(
        gmvq_jax.sqvae(_CODES, _DIM, initial_variance=2.0)
    ),
    'sqvae, variance 20': Case(
        gmvq_jax.sqvae(_CODES, _DIM, initial_variance=20.0)
    ),
}


def draw_batch(key: jax.Array, size: int) -> jax.Array:
  """Returns examples, `[size, positions, values]`."""
  keys = jax.random.split(jax.random.key(0))
  first = jax.random.normal(keys[0], (_POSITIONS, 32))
  second = jax.random.normal(keys[1], (32, _VALUES)) / 32**0.5
  causes = jax.random.normal(key, (size, _POSITIONS, _POSITIONS))
  return jnp.tanh(causes @ first) @ second


def run(case: Case) -> dict[str, float]:
  """Trains, and returns the figures of the end: of tests but for two."""
  quantizer = case.quantizer
  encoder = _network(sum(quantizer.heads))
  decoder = _network(_VALUES)
  optimizer = gmvq_jax.optimizer(
      optax.adam(3e-3), quantizer, path=('quantizer',)
  )
  temperature = schedules.temperature(2.0, 0.1, _STEPS.value)
  keys = jax.random.split(jax.random.key(1), 7)
  x = draw_batch(keys[0], 1024)
  codebook, state = quantizer.init(keys[1])
  params = {
      'encoder': encoder.init(keys[2], x),
      'quantizer': codebook,
      'decoder': decoder.init(keys[3], jnp.zeros((1, _DIM))),
  }
  if case.start:
    params['quantizer'], state = gmvq_jax.kmeans_start(
        keys[4], quantizer, codebook, state, encoder.apply(params['encoder'], x)
    )

  def loss_fn(params, state, x, **kwargs):
    h = encoder.apply(params['encoder'], x)
    quantized, state = quantizer.apply(params['quantizer'], state, h, **kwargs)
    y = decoder.apply(params['decoder'], quantized.z)
    mse = jnp.mean(jnp.square(y - x))
    loss = quantizer.objective(mse, quantized, data_shape=x.shape)
    metrics = {'mse': mse, **quantized.metrics}
    return loss if case.minimises_objective else mse, (state, metrics)

  @jax.jit
  def train_step(step, params, state, opt_state):
    data_key, noise_key = jax.random.split(jax.random.fold_in(keys[5], step))
    grads, (new_state, _) = jax.grad(loss_fn, has_aux=True)(
        params,
        state,
        draw_batch(data_key, case.batch),
        key=noise_key,
        temperature=temperature(step),
        train=True,
    )
    before = quantizer.read(params['quantizer'], state)
    if case.keeps_state:
      state = new_state
    updates, opt_state = optimizer.update(
        grads, opt_state, params, quantizer_state=state
    )
    params = optax.apply_updates(params, updates)
    after = quantizer.read(params['quantizer'], state)
    return params, state, opt_state, {
        'codebook_grad': optax.tree.norm(grads['quantizer']),
        'codebook_moved': jnp.max(jnp.abs(after - before)),
    }

  opt_state = optimizer.init(params)
  for step in range(_STEPS.value):
    params, state, opt_state, moves = train_step(
        step, params, state, opt_state
    )
  _, (_, metrics) = jax.jit(loss_fn)(params, state, draw_batch(keys[6], 1024))
  return {k: float(v) for k, v in {**metrics, **moves}.items()}


def _network(outputs) -> Callable:
  return nn.Sequential([nn.Dense(64), nn.gelu, nn.Dense(outputs)])


def main(_) -> None:
  """Prints a row for each case."""
  print('|', *(f'| {column}' for column in _COLUMNS), '|')
  print('|---' * (len(_COLUMNS) + 1) + '|')
  for name, case in CASES.items():
    if _ONLY.value not in name:
      continue
    figures = run(case)
    cells = (f'{figures[c]:.3g}' if c in figures else '' for c in _COLUMNS)
    print('|', name, *(f'| {cell}' for cell in cells), '|', flush=True)


if __name__ == '__main__':
  app.run(main)
