"""DiVeQ: where its error vector points, and how its gradient flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers

C, L = 12, 3


def draw(noise_variance, rng, count=2000):
  quantizer = quantizers.diveq(C, L, noise_variance=noise_variance)
  params, state = quantizer.init(jax.random.key(0))
  z = jnp.asarray(rng.normal(size=(count, L)), jnp.float32)
  quantized, _ = quantizer.apply(
      params, state, z, key=jax.random.key(1), train=True
  )
  return quantizer, params, z, quantized


def test_the_error_has_the_length_of_quantization(rng):
  _, params, z, quantized = draw(0.1, rng)
  rows = np.asarray(params['codebook'])
  codes = np.square(np.asarray(z)[:, None] - rows).sum(-1).argmin(-1)
  np.testing.assert_array_equal(quantized.codes, codes)
  length = np.linalg.norm(rows[codes] - z, axis=-1)
  np.testing.assert_allclose(
      np.linalg.norm(quantized.z - z, axis=-1), length, rtol=1e-4
  )


@pytest.mark.parametrize('noise_variance', [1e-10, 0.05])
def test_its_direction_is_that_of_the_noisy_error(rng, noise_variance):
  """By Monte Carlo: how far z is from the codeword, against NumPy's draws."""
  _, params, z, quantized = draw(noise_variance, rng, 20_000)
  codewords = np.asarray(params['codebook'])[quantized.codes]
  error = codewords - np.asarray(z)
  noisy = error + np.sqrt(noise_variance) * rng.normal(size=error.shape)
  unit = noisy / np.linalg.norm(noisy, axis=-1, keepdims=True)
  expected = z + np.linalg.norm(error, axis=-1, keepdims=True) * unit
  np.testing.assert_allclose(
      np.square(quantized.z - codewords).mean(),
      np.square(expected - codewords).mean(),
      rtol=0.03,
      atol=1e-8,
  )


def test_the_gradient_is_that_of_the_length(rng):
  """Through |e - z| to both, the direction a constant; finite differences."""
  quantizer, params, z, quantized = draw(0.1, rng, 5)
  weights = jnp.asarray(rng.normal(size=z.shape), jnp.float32)

  def task(params, z):
    key = jax.random.key(1)
    quantized, _ = quantizer.apply(params, {}, z, key=key, train=True)
    return jnp.sum(weights * quantized.z)

  of_params, of_z = jax.grad(task, argnums=(0, 1))(params, z)
  rows = np.asarray(params['codebook'], np.float64)
  codes = np.asarray(quantized.codes)
  error = rows[codes] - np.asarray(z)
  length = np.linalg.norm(error, axis=-1, keepdims=True)
  direction = (np.asarray(quantized.z) - np.asarray(z)) / length
  along = np.sum(weights * direction, axis=-1, keepdims=True)
  np.testing.assert_allclose(of_z, weights - along * error / length, atol=1e-4)
  expected = np.zeros_like(rows)
  np.add.at(expected, codes, along * error / length)
  np.testing.assert_allclose(of_params['codebook'], expected, atol=1e-4)


def test_a_latent_on_its_codeword_has_a_finite_gradient():
  quantizer = quantizers.diveq(C, L)
  params, state = quantizer.init(jax.random.key(0))

  def task(z):
    key = jax.random.key(1)
    quantized, _ = quantizer.apply(params, state, z, key=key, train=True)
    return jnp.sum(quantized.z)

  assert jnp.all(jnp.isfinite(jax.grad(task)(params['codebook'])))


def test_training_needs_a_key():
  quantizer = quantizers.diveq(C, L)
  params, state = quantizer.init(jax.random.key(0))
  with pytest.raises(ValueError, match='diveq: train=True with key=None'):
    quantizer.apply(params, state, jnp.zeros((2, L)), train=True)
