"""LFQ and BSQ against NumPy in float64, over all codes."""

import itertools

import chex
from compiled import call
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers

BITS = 4
C = 2**BITS
# The first bit is the fastest.
CORNERS = np.asarray(list(itertools.product([-1.0, 1.0], repeat=BITS)))[:, ::-1]


def softmax(logits):
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


def entropy(probs):
  return -np.sum(probs * np.log(np.maximum(probs, 1e-300)), axis=-1)


def apply(quantizer, h):
  return call(quantizer.apply, {}, {}, np.asarray(h, np.float32))[0]


@pytest.mark.parametrize('assignment', ['plain', 'tiled'])
def test_lfq_is_its_equation(rng, assignment):
  quantizer = quantizers.lfq(
      C,
      entropy_weight=0.3,
      diversity=0.7,
      commitment=0.2,
      entropy_temperature=2.0,
      assignment=assignment,
  )
  h = rng.normal(size=(5, 6, BITS))
  squared = np.square(h[..., None, :] - CORNERS).sum(-1)
  probs = softmax(-squared / 2.0)
  codes = squared.argmin(-1)
  quantized = apply(quantizer, h)
  np.testing.assert_array_equal(quantized.codes, codes)
  np.testing.assert_array_equal(quantized.z, CORNERS[codes])
  q_c = probs.mean((0, 1))
  np.testing.assert_allclose(quantized.q_c, q_c, rtol=1e-5)
  per_sample = entropy(probs).mean()
  loss = 0.3 * (per_sample - 0.7 * entropy(q_c))
  loss += 0.2 * np.square(h - CORNERS[codes]).mean()
  np.testing.assert_allclose(quantized.loss, loss, rtol=1e-4)
  np.testing.assert_allclose(
      quantized.metrics['posterior_entropy'], per_sample, rtol=1e-5
  )
  logits = call(quantizer.logits, {}, {}, h.astype(np.float32))
  np.testing.assert_allclose(softmax(logits), probs, atol=1e-6)


def test_lfq_gradients_are_those_of_finite_differences(x64, rng):
  quantizer = quantizers.lfq(
      C, entropy_temperature=1.5, commitment=0.0, diversity=2.0
  )
  h, direction = rng.normal(size=(2, 6, BITS))

  @jax.jit
  def run(h):
    def loss(h):
      return quantizer.apply({}, {}, h, train=True)[0].loss

    return jax.value_and_grad(loss)(h)

  _, gradient = run(h)
  above, below = (run(h + x * direction)[0] for x in (1e-6, -1e-6))
  np.testing.assert_allclose(
      np.vdot(gradient, direction), (above - below) / 2e-6, rtol=1e-6
  )


@pytest.mark.parametrize('make', [quantizers.lfq, quantizers.bsq])
def test_more_confident_bits_and_more_even_codes_cost_less(make):
  quantizer = make(C, commitment=0.0, entropy_temperature=1.0)
  even = CORNERS
  one = np.broadcast_to(CORNERS[3], even.shape)
  assert apply(quantizer, even).loss < apply(quantizer, one).loss
  unsure = even * [1.0, 1.0, 1.0, 0.01]
  assert apply(quantizer, even).loss < apply(quantizer, unsure).loss


def test_bsq_is_its_equation(rng):
  quantizer = quantizers.bsq(
      C,
      entropy_weight=0.3,
      diversity=0.7,
      commitment=0.2,
      entropy_temperature=0.4,
  )
  h = 3 * rng.normal(size=(5, 6, BITS))
  u = h / np.linalg.norm(h, axis=-1, keepdims=True)
  points = CORNERS / np.sqrt(BITS)
  squared = np.square(u[..., None, :] - points).sum(-1)
  probs = softmax(-squared / 0.4)
  codes = squared.argmin(-1)
  quantized = apply(quantizer, h)
  np.testing.assert_array_equal(quantized.codes, codes)
  np.testing.assert_allclose(quantized.z, points[codes], rtol=1e-6)
  ones = probs @ (CORNERS > 0)  # Of each bit, from the probabilities of codes.
  mean = ones.mean((0, 1))
  of_bits = entropy(np.stack([mean, 1 - mean], axis=-1)).sum()
  loss = 0.3 * (entropy(probs).mean() - 0.7 * of_bits)
  loss += 0.2 * np.square(u - points[codes]).mean()
  np.testing.assert_allclose(quantized.loss, loss, rtol=1e-4)
  assert of_bits >= entropy(probs.mean((0, 1)))  # The bound it stands for.


@pytest.mark.parametrize('make', [quantizers.lfq, quantizers.bsq])
def test_codes_enumerate_the_corners(make):
  quantizer = make(C)
  points = call(quantizer.embed, {}, {}, np.arange(C))
  np.testing.assert_array_equal(np.sign(points), CORNERS)
  np.testing.assert_array_equal(apply(quantizer, points).codes, np.arange(C))


def test_the_gradient_of_the_decoder_is_straight_through(rng):
  h, weights = rng.normal(size=(2, 7, BITS)).astype(np.float32)
  lfq, bsq = quantizers.lfq(C), quantizers.bsq(C)

  def task(h, quantizer):
    z = quantizer.apply({}, {}, h, train=True)[0].z
    return jnp.sum(weights * z)

  def on_sphere(h):
    return jnp.sum(weights * h / jnp.linalg.norm(h, axis=-1, keepdims=True))

  def gradients(h):
    of_quantizers = [jax.grad(task)(h, quantizer) for quantizer in (lfq, bsq)]
    return *of_quantizers, jax.grad(on_sphere)(h)

  of_lfq, of_bsq, expected = call(gradients, h)
  np.testing.assert_array_equal(of_lfq, weights)
  chex.assert_trees_all_close(of_bsq, expected, atol=1e-5)


@pytest.mark.parametrize('num_codes', [0, 1, 3, 1000, 2**25])
def test_other_numbers_of_codes_are_refused(num_codes):
  for make in (quantizers.lfq, quantizers.bsq):
    with pytest.raises(ValueError, match=f'num_codes={num_codes}: must be'):
      make(num_codes)
