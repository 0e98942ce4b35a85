"""Eqs 13-14 against float64 NumPy, in every reading, and their gradients."""

import chex
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest
import reference

import gmvq_jax

C, L, B = 7, 5, 4


def test_albo_is_eqs_13_and_14(rng, x64):
  squared_error = rng.gamma(2.0, size=B)
  q_c = rng.dirichlet(np.ones(C))
  kwargs = dict(gamma=0.3, beta=2.0, data_dim=48, positions=4)
  terms = gmvq_jax.albo(squared_error, jnp.asarray(1.7), q_c, **kwargs)
  chex.assert_shape(terms, ())
  expected = reference.albo(squared_error, 1.7, q_c, **kwargs)
  np.testing.assert_allclose(terms.loss, expected, rtol=1e-12)
  np.testing.assert_allclose(terms.reconstruction, squared_error.mean() / 48)
  np.testing.assert_allclose(terms.kl, reference.kl_to_uniform(q_c))
  assert terms.latent == 1.7


def test_albo_gradients(rng, x64):
  def loss(squared_error, latent, logits):
    return gmvq_jax.albo(
        squared_error,
        latent,
        jax.nn.softmax(logits),
        gamma=0.3,
        beta=2.0,
        data_dim=48,
        positions=4,
    ).loss

  inputs = (rng.gamma(2.0, size=B), np.float64(1.7), rng.normal(size=C))
  check_grads(loss, inputs, order=1, eps=1e-6)


@pytest.mark.parametrize('two_sigma2', [0.5, 1.0, 3.0])
def test_latent_terms_in_three_readings(rng, x64, two_sigma2):
  z_hat, codebook = rng.normal(size=(3, 2, L)), rng.normal(size=(C, L))
  codes = rng.integers(0, C, (3, 2))
  probs = rng.dirichlet(np.ones(C), size=(3, 2))
  q_c = rng.dirichlet(np.ones(C))
  coupled = gmvq_jax.latent_coupled(
      z_hat, codebook[codes], two_sigma2=two_sigma2
  )
  expected = gmvq_jax.latent_expected(
      z_hat, np.log(probs), codebook, two_sigma2=two_sigma2
  )
  aggregated = gmvq_jax.latent_aggregated(z_hat, q_c, codebook)
  chex.assert_shape([coupled, expected, aggregated], (3, 2))
  for i in np.ndindex(3, 2):
    np.testing.assert_allclose(
        coupled[i],
        reference.latent_coupled(z_hat[i], codebook[codes[i]], two_sigma2),
    )
    np.testing.assert_allclose(
        expected[i],
        reference.latent_expected(z_hat[i], probs[i], codebook, two_sigma2),
    )
    np.testing.assert_allclose(
        aggregated[i], reference.latent_aggregated(z_hat[i], q_c, codebook)
    )


def test_latent_coupled_is_the_expectation_over_the_noise(rng, x64):
  """The closed form against Monte Carlo over z ~ N(mu, sigma^2 I)."""
  z_hat, codeword = rng.normal(size=(2, L))
  variance = gmvq_jax.component_variance(z_hat, codeword, two_sigma2=2.0)
  z = codeword + np.sqrt(variance) * rng.normal(size=(200_000, L))
  expected = np.sum((z - codeword) ** 2, axis=-1).mean()
  closed = gmvq_jax.latent_coupled(z_hat, codeword, two_sigma2=2.0)
  np.testing.assert_allclose(closed, expected, rtol=0.01)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(rng, dtype):
  q_c = jnp.asarray(rng.dirichlet(np.ones(C)), dtype)
  squared_error = jnp.asarray(rng.gamma(2.0, size=B), dtype)
  latent = jnp.asarray(1.5, dtype)
  kwargs = dict(gamma=0.3, beta=2.0, data_dim=48, positions=4)
  terms = gmvq_jax.albo(squared_error, latent, q_c, **kwargs)
  wide = [x.astype(jnp.float32) for x in (squared_error, latent, q_c)]
  chex.assert_trees_all_equal(terms, gmvq_jax.albo(*wide, **kwargs))
  chex.assert_type([*terms, gmvq_jax.perplexity(q_c)], jnp.float32)


def test_latent_gradients(rng, x64):
  z_hat, codebook = rng.normal(size=(3, L)), rng.normal(size=(C, L))
  log_probs = np.log(rng.dirichlet(np.ones(C), size=3))
  q_c = rng.dirichlet(np.ones(C))
  check_grads(gmvq_jax.latent_coupled, (z_hat, codebook[:3]), 1, eps=1e-6)
  check_grads(
      gmvq_jax.latent_expected, (z_hat, log_probs, codebook), 1, eps=1e-6
  )
  check_grads(gmvq_jax.latent_aggregated, (z_hat, q_c, codebook), 1, eps=1e-6)


def test_kl_and_perplexity_from_one_code_to_all():
  one = jnp.eye(C)[2]
  uniform = jnp.full(C, 1 / C)
  np.testing.assert_allclose(gmvq_jax.kl_to_uniform(one), np.log(C), rtol=1e-6)
  np.testing.assert_allclose(gmvq_jax.kl_to_uniform(uniform), 0, atol=1e-6)
  np.testing.assert_allclose(gmvq_jax.perplexity(one), 1, rtol=1e-6)
  np.testing.assert_allclose(gmvq_jax.perplexity(uniform), C, rtol=1e-6)
  # Two equal codes are worth two.
  np.testing.assert_allclose(
      gmvq_jax.perplexity(jnp.array([0.5, 0, 0.5])), 2, rtol=1e-6
  )


@pytest.mark.parametrize('function', [gmvq_jax.kl_to_uniform,
                                      gmvq_jax.perplexity])
def test_zeros_have_finite_values_and_gradients(function):
  for q_c in (jnp.eye(C)[0], jnp.zeros(C), jnp.array([0.5, 0.5, 0, 1e-38])):
    chex.assert_tree_all_finite(jax.value_and_grad(function)(q_c))
