"""DiVeQ: the direction of its error vector, and its gradient."""

import functools

from compiled import call
from compiled import init
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers

C, L = 12, 3


def train(quantizer, params, z):
  return quantizer.apply(params, {}, z, key=jax.random.key(1), train=True)[0]


def sample(noise_variance, rng, count):
  quantizer = quantizers.diveq(C, L, noise_variance=noise_variance)
  params, _ = init(quantizer)
  z = rng.normal(size=(count, L)).astype(np.float32)
  quantized = call(functools.partial(train, quantizer), params, z)
  return params, z, quantized


def test_the_error_has_the_length_of_quantization(rng):
  params, z, quantized = sample(0.1, rng, 2000)
  rows = params['codebook']
  codes = np.square(z[:, None] - rows).sum(-1).argmin(-1)
  np.testing.assert_array_equal(quantized.codes, codes)
  length = np.linalg.norm(rows[codes] - z, axis=-1)
  np.testing.assert_allclose(
      np.linalg.norm(quantized.z - z, axis=-1), length, rtol=1e-4
  )


@pytest.mark.parametrize('noise_variance', [1e-10, 0.05])
def test_its_direction_is_that_of_the_noisy_error(rng, noise_variance):
  """By Monte Carlo: how far z is from the codeword, against NumPy's samples."""
  params, z, quantized = sample(noise_variance, rng, 20_000)
  codewords = params['codebook'][quantized.codes]
  error = codewords - z
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
  """Through |e - z| to both, the direction a constant."""
  quantizer = quantizers.diveq(C, L, noise_variance=0.1)
  params, _ = init(quantizer)
  z, weights = rng.normal(size=(2, 5, L)).astype(np.float32)

  def task(params, z):
    quantized = train(quantizer, params, z)
    return jnp.sum(weights * quantized.z), quantized

  gradient = jax.grad(task, argnums=(0, 1), has_aux=True)
  (of_params, of_z), quantized = call(gradient, params, z)
  rows = np.asarray(params['codebook'], np.float64)
  codes = quantized.codes
  error = rows[codes] - z
  length = np.linalg.norm(error, axis=-1, keepdims=True)
  direction = (quantized.z - z) / length
  along = np.sum(weights * direction, axis=-1, keepdims=True)
  np.testing.assert_allclose(of_z, weights - along * error / length, atol=1e-4)
  expected = np.zeros_like(rows)
  np.add.at(expected, codes, along * error / length)
  np.testing.assert_allclose(of_params['codebook'], expected, atol=1e-4)


def test_a_latent_on_its_codeword_has_a_finite_gradient():
  quantizer = quantizers.diveq(C, L)
  params, _ = init(quantizer)

  def task(z):
    return jnp.sum(train(quantizer, params, z).z)

  assert np.all(np.isfinite(call(jax.grad(task), params['codebook'])))


def test_training_needs_a_key():
  quantizer = quantizers.diveq(C, L)
  params, state = init(quantizer)
  with pytest.raises(ValueError, match='diveq: train=True without key'):
    quantizer.apply(params, state, np.zeros((2, L)), train=True)
