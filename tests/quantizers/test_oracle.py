"""The same as the Python package vector-quantize-pytorch, where it has it.

Runs where `pip install -e '.[oracle]'` was done.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers

torch = pytest.importorskip('torch')
oracle = pytest.importorskip('vector_quantize_pytorch')

C, L = 32, 8


@pytest.fixture
def rows(rng):
  return rng.normal(size=(C, L)).astype(np.float32)


def ours(name, rows, **fields):
  """A quantizer of ours, its codebook these rows."""
  quantizer = quantizers.make(name, num_codes=C, dim=L, **fields)
  params, state = quantizer.init(jax.random.key(0))
  everywhere = jnp.ones(C, bool)
  return quantizer, *quantizer.write(params, state, rows, everywhere)


def theirs(rows, **options):
  """A quantizer of theirs, its codebook these rows."""
  options = {'kmeans_init': False, 'threshold_ema_dead_code': 0} | options
  quantizer = oracle.VectorQuantize(dim=L, codebook_size=C, **options)
  codebook = quantizer._codebook
  with torch.no_grad():
    codebook.embed.copy_(torch.tensor(rows)[None])
    if hasattr(codebook, 'embed_avg'):
      codebook.embed_avg.copy_(torch.tensor(rows)[None])
  return quantizer


def test_nearest_codes_and_losses(rows, rng):
  """A learnt codebook: both halves of the loss, and their gradients."""
  z = rng.normal(size=(4, 50, L)).astype(np.float32)
  other = theirs(
      rows,
      learnable_codebook=True,
      ema_update=False,
      commitment_weight=1.0,
      commitment_use_cross_entropy_loss=False,
  )
  given = torch.tensor(z, requires_grad=True)
  expected, codes, loss = other(given)
  loss.sum().backward()

  # Theirs is |z - e|^2, once, with the gradients of both halves of ours.
  quantizer, params, state = ours('vqvae', rows, alpha=2.0, beta=0.5)

  def total(params, z):
    quantized, _ = quantizer.apply(params, state, z, train=True)
    return quantized.loss, quantized

  (value, quantized), (of_params, of_z) = jax.value_and_grad(
      total, argnums=(0, 1), has_aux=True
  )(params, jnp.asarray(z))
  np.testing.assert_array_equal(quantized.codes, codes.numpy())
  np.testing.assert_allclose(
      quantized.z, expected.detach().numpy(), atol=1e-5
  )
  np.testing.assert_allclose(value, 2 * loss.item(), rtol=1e-5)
  np.testing.assert_allclose(of_z, given.grad.numpy(), atol=1e-6)
  np.testing.assert_allclose(
      of_params['codebook'], other._codebook.embed.grad[0].numpy(), atol=1e-6
  )


def test_moving_averages(rows, rng):
  """Codes, vectors, losses and the codebook, over several steps."""
  other = theirs(rows, decay=0.9, commitment_weight=0.25).train()
  quantizer, params, state = ours('vqvae+ema', rows, decay=0.9)
  for _ in range(5):
    z = rng.normal(size=(4, 50, L)).astype(np.float32)
    expected, codes, loss = other(torch.tensor(z))
    quantized, state = quantizer.apply(
        params, state, jnp.asarray(z), train=True
    )
    np.testing.assert_array_equal(quantized.codes, codes.numpy())
    np.testing.assert_allclose(
        quantized.z, expected.detach().numpy(), atol=1e-5
    )
    np.testing.assert_allclose(quantized.loss, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(
        state['codebook'], other._codebook.embed[0].numpy(), atol=1e-5
    )
    np.testing.assert_allclose(
        state['counts'], other._codebook.cluster_size[0].numpy(), rtol=1e-5
    )


def test_cosine_similarity(rows, rng):
  rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  z = 3 * rng.normal(size=(4, 50, L)).astype(np.float32)
  other = theirs(rows, use_cosine_sim=True).eval()
  expected, codes, _ = other(torch.tensor(z))
  quantizer, params, state = ours('vqvae+l2', rows)
  quantized, _ = quantizer.apply(params, state, jnp.asarray(z))
  np.testing.assert_array_equal(quantized.codes, codes.numpy())
  np.testing.assert_allclose(quantized.z, expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize('levels', [(8, 5, 5, 5), (8, 8, 8), (7, 4)])
def test_finite_scalars(levels, rng):
  z = (2 * rng.normal(size=(4, 50, len(levels)))).astype(np.float32)
  other = oracle.FSQ(levels=list(levels))
  given = torch.tensor(z, requires_grad=True)
  expected, codes = other(given)
  (expected**2).sum().backward()
  quantizer = quantizers.fsq(levels=levels)

  def total(z):
    quantized, _ = quantizer.apply({}, {}, z, train=True)
    return jnp.sum(quantized.z**2), quantized

  gradient, quantized = jax.grad(total, has_aux=True)(jnp.asarray(z))
  np.testing.assert_array_equal(quantized.codes, codes.numpy())
  np.testing.assert_allclose(quantized.z, expected.detach().numpy(), atol=1e-6)
  np.testing.assert_allclose(gradient, given.grad.numpy(), atol=1e-4)
  np.testing.assert_allclose(
      quantizer.embed({}, {}, quantized.codes),
      other.indices_to_codes(codes).detach().numpy(),
      atol=1e-6,
  )


@pytest.mark.parametrize('levels', [(8, 5, 5, 5), (7, 4)])
def test_finite_scalars_of_probabilities(levels, rng):
  """At evaluation: in training theirs takes back noise that leaves (0, 1)."""
  z = rng.normal(size=(4, 50, len(levels))).astype(np.float32)
  other = oracle.FSP(levels=list(levels), act_name='normal').eval()
  expected, codes, *_ = other(torch.tensor(z))
  quantized, _ = quantizers.fsp(levels=levels).apply({}, {}, jnp.asarray(z))
  np.testing.assert_array_equal(quantized.codes, codes.numpy())
  # Theirs has a variance of 1 where ours is uniform on [-1, 1].
  np.testing.assert_allclose(
      quantized.z, expected.detach().numpy() / 3**0.5, atol=1e-6
  )
