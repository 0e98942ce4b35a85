"""SimVQ: its equation, and what moves."""

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax import quantizers

C, L = 12, 3


def start(rng):
  quantizer = quantizers.simvq(C, L)
  _, state = quantizer.init(jax.random.key(0))
  transform = np.eye(L) + 0.3 * rng.normal(size=(L, L))
  params = {'transform': jnp.asarray(transform, jnp.float32)}
  return quantizer, params, state


def test_it_is_vqvae_with_the_mapped_codebook(rng):
  quantizer, params, state = start(rng)
  rows = np.asarray(state['codebook']) @ np.asarray(params['transform'])
  np.testing.assert_allclose(quantizer.read(params, state), rows, atol=1e-6)
  z = jnp.asarray(rng.normal(size=(50, L)), jnp.float32)
  codes = np.square(np.asarray(z)[:, None] - rows).sum(-1).argmin(-1)
  quantized, _ = quantizer.apply(params, state, z, train=True)
  np.testing.assert_array_equal(quantized.codes, codes)
  error = np.square(np.asarray(z) - rows[codes]).mean()
  np.testing.assert_allclose(quantized.loss, 1.25 * error, rtol=1e-5)


def test_the_gradient_reaches_the_map_alone(rng):
  """That of `|sg(z) - F W|^2`, by hand; codes that nobody chose move too."""
  quantizer, params, state = start(rng)
  z = jnp.asarray(rng.normal(size=(4, L)), jnp.float32)

  def loss(params, state):
    return quantizer.apply(params, state, z, train=True)[0].loss

  gradient = jax.grad(loss)(params, state)['transform']
  fixed = np.asarray(state['codebook'], np.float64)
  rows = fixed @ np.asarray(params['transform'])
  codes = np.square(np.asarray(z)[:, None] - rows).sum(-1).argmin(-1)
  pull = 2 * (rows[codes] - np.asarray(z)) / z.size
  np.testing.assert_allclose(gradient, fixed[codes].T @ pull, atol=1e-5)
  of_state = jax.grad(loss, argnums=1)(params, state)
  np.testing.assert_array_equal(of_state['codebook'], 0)
  moved = {'transform': params['transform'] - 0.1 * gradient}
  assert jnp.all(quantizer.read(moved, state) != quantizer.read(params, state))
