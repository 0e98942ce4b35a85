"""Eqs 13-14 against float64 NumPy, in every reading, and their gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import gmvq_jax

C, L, B = 7, 5, 4
NUMBERS = dict(gamma=0.3, beta=2.0, data_dim=48, positions=4)


@jax.jit
def albo(*arrays):
  return gmvq_jax.albo(*arrays, **NUMBERS), gmvq_jax.perplexity(arrays[-1])


@jax.jit
def latent_terms(z_hat, codewords, log_probs, q_c, codebook, two_sigma2):
  return dict(
      variance=gmvq_jax.component_variance(
          z_hat, codewords, two_sigma2=two_sigma2
      ),
      coupled=gmvq_jax.latent_coupled(z_hat, codewords, two_sigma2=two_sigma2),
      expected=gmvq_jax.latent_expected(
          z_hat, log_probs, codebook, two_sigma2=two_sigma2
      ),
      aggregated=gmvq_jax.latent_aggregated(z_hat, q_c, codebook),
  )


@jax.jit
def kl_and_perplexity(q_c):
  """Returns both, and their gradients."""
  return {
      function.__name__: jax.value_and_grad(function)(q_c)
      for function in (gmvq_jax.kl_to_uniform, gmvq_jax.perplexity)
  }


def test_albo_is_eqs_13_and_14(rng, x64):
  squared_error = rng.gamma(2.0, size=B)
  q_c = rng.dirichlet(np.ones(C))
  terms, _ = jax.device_get(albo(squared_error, 1.7, q_c))
  chex.assert_shape(terms, ())
  expected = gmvq_jax.Albo(
      reconstruction=squared_error.mean() / NUMBERS['data_dim'],
      latent=1.7,
      kl=reference.kl_to_uniform(q_c),
      loss=reference.albo(squared_error, 1.7, q_c, **NUMBERS),
  )
  for name, value in expected._asdict().items():
    np.testing.assert_allclose(
        getattr(terms, name), value, rtol=1e-12, err_msg=name
    )


@pytest.mark.parametrize('two_sigma2', [0.5, 1.0, 3.0])
def test_latent_terms_in_three_readings(rng, x64, two_sigma2):
  z_hat, codebook = rng.normal(size=(3, 2, L)), rng.normal(size=(C, L))
  codes = rng.integers(0, C, (3, 2))
  probs = rng.dirichlet(np.ones(C), size=(3, 2))
  q_c = rng.dirichlet(np.ones(C))
  terms = jax.device_get(
      latent_terms(
          z_hat, codebook[codes], np.log(probs), q_c, codebook, two_sigma2
      )
  )
  chex.assert_shape(list(terms.values()), (3, 2))
  for i in np.ndindex(3, 2):
    for name, expected in {
        'coupled': reference.latent_coupled(
            z_hat[i], codebook[codes[i]], two_sigma2
        ),
        'expected': reference.latent_expected(
            z_hat[i], probs[i], codebook, two_sigma2
        ),
        'aggregated': reference.latent_aggregated(z_hat[i], q_c, codebook),
    }.items():
      np.testing.assert_allclose(terms[name][i], expected, err_msg=name)


def test_latent_coupled_is_the_expectation_over_the_noise(rng, x64):
  """The closed form against Monte Carlo over z ~ N(mu, sigma^2 I)."""
  z_hat, codewords = rng.normal(size=(2, 3, 2, L))
  probs, codebook = rng.dirichlet(np.ones(C), (3, 2)), rng.normal(size=(C, L))
  terms = jax.device_get(
      latent_terms(z_hat, codewords, np.log(probs), probs[0, 0], codebook, 2.0)
  )
  sigma = np.sqrt(terms['variance'][0, 0])
  z = codewords[0, 0] + sigma * rng.normal(size=(200_000, L))
  expected = np.sum((z - codewords[0, 0]) ** 2, axis=-1).mean()
  np.testing.assert_allclose(terms['coupled'][0, 0], expected, rtol=0.01)


def test_gradients_of_every_term(rng, x64):
  def function(squared_error, latent, logits, z_hat, log_probs, codebook):
    q_c = jax.nn.softmax(logits)
    return dict(
        albo=gmvq_jax.albo(squared_error, latent, q_c, **NUMBERS).loss,
        coupled=gmvq_jax.latent_coupled(z_hat, codebook[:3]),
        expected=gmvq_jax.latent_expected(z_hat, log_probs, codebook),
        aggregated=gmvq_jax.latent_aggregated(z_hat, q_c, codebook),
    )

  reference.check_derivatives(
      function,
      rng.gamma(2.0, size=B),
      np.float64(1.7),
      rng.normal(size=C),
      rng.normal(size=(3, L)),
      np.log(rng.dirichlet(np.ones(C), size=3)),
      rng.normal(size=(C, L)),
  )


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(rng, dtype):
  inputs = (rng.gamma(2.0, size=B), np.asarray(1.5), rng.dirichlet(np.ones(C)))
  inputs = [x.astype(dtype) for x in inputs]
  terms, wide = (
      jax.device_get(albo(*arrays))
      for arrays in (inputs, [x.astype(np.float32) for x in inputs])
  )
  chex.assert_trees_all_equal(terms, wide)
  chex.assert_type(jax.tree.leaves(terms), np.float32)


@pytest.mark.parametrize(
    'q_c, kl, perplexity',
    [
        (np.eye(C)[2], np.log(C), 1),
        (np.full(C, 1 / C), 0, C),
        # Two equal codes are worth two.
        (np.eye(C)[[0, 2]].mean(0), np.log(C / 2), 2),
    ],
    ids=['one code', 'all codes', 'two codes'],
)
def test_kl_and_perplexity_from_one_code_to_all(q_c, kl, perplexity):
  results = jax.device_get(kl_and_perplexity(np.float32(q_c)))
  np.testing.assert_allclose(
      results['kl_to_uniform'][0], kl, rtol=1e-6, atol=1e-6
  )
  np.testing.assert_allclose(results['perplexity'][0], perplexity, rtol=1e-6)


@pytest.mark.parametrize('function', ['kl_to_uniform', 'perplexity'])
def test_zeros_have_finite_values_and_gradients(function):
  for q_c in (np.eye(C)[0], np.zeros(C), [0.5, 0.5, 0, 1e-38, 0, 0, 0]):
    results = jax.device_get(kl_and_perplexity(np.float32(q_c)))
    chex.assert_tree_all_finite(results[function])
