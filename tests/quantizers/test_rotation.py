"""The rotation trick against the rotation itself."""

from compiled import call
from compiled import init
import compositions
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers

C, L = 12, 5


def rotation_onto(z, e):
  """The matrix of NumPy that turns z onto e in their plane, and stretches."""
  u, q = z / np.linalg.norm(z), e / np.linalg.norm(e)
  cosine = u @ q
  side = q - cosine * u
  side /= np.linalg.norm(side)
  angle = np.arccos(np.clip(cosine, -1, 1))
  plane = np.stack([u, side])
  turn = np.array([
      [np.cos(angle), -np.sin(angle)],
      [np.sin(angle), np.cos(angle)],
  ])
  rotation = np.eye(len(z)) + plane.T @ (turn - np.eye(2)) @ plane
  return np.linalg.norm(e) / np.linalg.norm(z) * rotation


@pytest.mark.parametrize('name', ['vqvae', 'simvq', 'vqvae+affine'])
def test_the_gradient_is_turned_with_the_codeword(rng, name):
  plain = quantizers.make(name, num_codes=C, dim=L)
  quantizer = quantizers.with_rotation_trick(plain)
  params, state = init(quantizer)
  z = rng.normal(size=(20, L)).astype(np.float32)
  weights = rng.normal(size=z.shape)

  def task(z, params, quantizer):
    quantized, _ = quantizer.apply(params, state, z, train=True)
    return jnp.sum(weights * quantized.z), quantized

  def run(z, params):
    gradient = jax.grad(task, has_aux=True)(z, params, quantizer)
    return gradient, task(z, params, plain)

  (gradient, quantized), (_, expected) = call(run, z, params)
  np.testing.assert_array_equal(quantized.z, expected.z)
  np.testing.assert_allclose(quantized.loss, expected.loss)
  for row in range(len(z)):
    matrix = rotation_onto(z[row].astype(np.float64), quantized.z[row])
    np.testing.assert_allclose(matrix @ z[row], quantized.z[row], atol=1e-5)
    np.testing.assert_allclose(
        gradient[row], matrix.T @ weights[row], atol=1e-4
    )


def test_what_has_no_direction_has_a_finite_gradient():
  """A latent at 0, and one opposite to its codeword."""
  quantizer = quantizers.with_rotation_trick(quantizers.vqvae(1, 2))
  params = {'codebook': np.float32([[1.0, 0.0]])}
  z = np.float32([[0.0, 0.0], [-2.0, 0.0]])

  def task(z):
    return jnp.sum(quantizer.apply(params, {}, z, train=True)[0].z)

  assert np.all(np.isfinite(call(jax.grad(task), z)))


@pytest.mark.parametrize('name', ['gmvq', 'sqvae', 'gumbel', 'diveq', 'fsp'])
def test_what_passes_nothing_straight_through_is_refused(name):
  inner = compositions.make(name, num_codes=C, dim=L, gamma=0.1, beta=1.0)
  with pytest.raises(ValueError, match='rotation: goes with quantizers that'):
    quantizers.with_rotation_trick(inner)
