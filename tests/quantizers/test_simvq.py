"""SimVQ: its equation, and what its gradient reaches."""

from compiled import call
from compiled import init
import jax
import numpy as np

from gmvq_jax import quantizers

C, L = 12, 3


def mapped(rng):
  quantizer = quantizers.simvq(C, L)
  _, state = init(quantizer)
  transform = np.eye(L) + 0.3 * rng.normal(size=(L, L))
  params = {'transform': transform.astype(np.float32)}
  return quantizer, params, state


def test_it_is_vqvae_with_the_mapped_codebook(rng):
  quantizer, params, state = mapped(rng)
  rows = state['codebook'] @ params['transform']
  read = call(quantizer.read, params, state)
  np.testing.assert_allclose(read, rows, atol=1e-6)
  z = rng.normal(size=(50, L)).astype(np.float32)
  codes = np.square(z[:, None] - rows).sum(-1).argmin(-1)
  quantized, _ = call(quantizer.apply, params, state, z, train=True)
  np.testing.assert_array_equal(quantized.codes, codes)
  error = np.square(z - rows[codes]).mean()
  np.testing.assert_allclose(quantized.loss, 1.25 * error, rtol=1e-5)


def test_rows_are_written_through_the_map(rng):
  quantizer, params, state = mapped(rng)
  before = call(quantizer.read, params, state)
  rows = rng.normal(size=(C, L)).astype(np.float32)
  written = call(quantizer.write, params, state, rows, np.arange(C) < 5)
  after = call(quantizer.read, *written)
  np.testing.assert_allclose(after[:5], rows[:5], atol=1e-5)
  np.testing.assert_allclose(after[5:], before[5:], atol=1e-5)


def test_the_gradient_reaches_the_map_alone(rng):
  """Of `|sg(z) - F W|^2`, by hand; codes that no latent chose move too."""
  quantizer, params, state = mapped(rng)
  z = rng.normal(size=(4, L)).astype(np.float32)

  def loss(params, state):
    return quantizer.apply(params, state, z, train=True)[0].loss

  of_params, of_state = call(jax.grad(loss, argnums=(0, 1)), params, state)
  gradient = of_params['transform']
  fixed = np.asarray(state['codebook'], np.float64)
  rows = fixed @ params['transform']
  codes = np.square(z[:, None] - rows).sum(-1).argmin(-1)
  pull = 2 * (rows[codes] - z) / z.size
  np.testing.assert_allclose(gradient, fixed[codes].T @ pull, atol=1e-5)
  np.testing.assert_array_equal(of_state['codebook'], 0)
  moved = {'transform': params['transform'] - 0.1 * gradient}
  before, after = (call(quantizer.read, x, state) for x in (params, moved))
  assert np.all(before != after)
