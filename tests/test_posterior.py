"""Eqs 12 and 15-18 against float64 NumPy, their gradients and their moments."""

import chex
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest
import reference

import gmvq_jax

C, L = 7, 5


def arrays(rng, leading=(3, 2), dtype=np.float64, codes=C):
  z_hat = rng.normal(size=(*leading, L)).astype(dtype)
  weights = rng.gamma(2.0, size=(*leading, L)).astype(dtype)
  codebook = rng.normal(size=(codes, L)).astype(dtype)
  return z_hat, weights, codebook


@pytest.mark.parametrize('leading', [(), (4,), (3, 2), (2, 2, 3)])
def test_log_posterior_is_eqs_16_and_17(rng, x64, leading):
  z_hat, weights, codebook = arrays(rng, leading)
  log_probs = gmvq_jax.log_posterior(z_hat, weights, codebook)
  chex.assert_shape(log_probs, (*leading, C))
  assert log_probs.dtype == jnp.float64
  for index in np.ndindex(*leading):
    expected = reference.posterior(z_hat[index], weights[index], codebook)
    np.testing.assert_allclose(jnp.exp(log_probs[index]), expected, rtol=1e-12)


def test_log_posterior_builds_no_array_of_every_difference(rng):
  z_hat, weights, codebook = arrays(rng, (11,), np.float32)
  jaxpr = jax.make_jaxpr(gmvq_jax.log_posterior)(z_hat, weights, codebook)
  sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
  assert max(sizes) < 11 * C * L


def test_log_posterior_gradients(rng, x64):
  check_grads(gmvq_jax.log_posterior, arrays(rng, (2,)), order=1, eps=1e-6)


@pytest.mark.parametrize('two_sigma2', [0.5, 1.0, 3.0])
def test_component_variance_is_eq_18(rng, x64, two_sigma2):
  z_hat, _, codebook = arrays(rng, (C,))
  variance = gmvq_jax.component_variance(
      z_hat, codebook, two_sigma2=two_sigma2
  )
  chex.assert_shape(variance, (C,))
  expected = [
      reference.variance(z, mu, two_sigma2)
      for z, mu in zip(z_hat, codebook, strict=True)
  ]
  np.testing.assert_allclose(variance, expected, rtol=1e-12)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(rng, dtype):
  inputs = [jnp.asarray(x, dtype) for x in arrays(rng)]
  wide = [x.astype(jnp.float32) for x in inputs]
  log_probs = gmvq_jax.log_posterior(*inputs)
  assert log_probs.dtype == jnp.float32
  chex.assert_trees_all_equal(log_probs, gmvq_jax.log_posterior(*wide))
  latents = gmvq_jax.sample_latents(jax.random.key(0), *inputs, temperature=1.0)
  assert latents.z.dtype == jnp.float32
  chex.assert_tree_all_finite(latents)


@pytest.mark.parametrize('temperature', [0.1, 1.0, 2.0])
@pytest.mark.parametrize('hard', [True, False])
def test_gumbel_softmax_draws_from_the_posterior(rng, temperature, hard):
  log_probs = jax.nn.log_softmax(jnp.asarray(rng.normal(size=C)))
  n = 40_000
  c_q, codes = gmvq_jax.gumbel_softmax(
      jax.random.key(1),
      jnp.broadcast_to(log_probs, (n, C)),
      temperature=temperature,
      hard=hard,
  )
  chex.assert_shape([c_q, codes], [(n, C), (n,)])
  assert codes.dtype == jnp.int32
  share = np.bincount(codes, minlength=C) / n
  # Five standard deviations of a binomial share.
  probs = np.exp(log_probs)
  assert np.all(np.abs(share - probs) < 5 * np.sqrt(probs * (1 - probs) / n))
  np.testing.assert_allclose(c_q.sum(-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(c_q.argmax(-1), codes)
  assert hard == bool(jnp.all((c_q == 0) | (c_q == 1)))


def test_straight_through_gradient_is_that_of_the_softmax(rng, x64):
  log_probs = jnp.asarray(rng.normal(size=(3, C)))
  cotangent = jnp.asarray(rng.normal(size=(3, C)))
  key, tau = jax.random.key(2), 0.7

  def project(log_probs, hard):
    c_q, _ = gmvq_jax.gumbel_softmax(
        key, log_probs, temperature=tau, hard=hard
    )
    return jnp.sum(c_q * cotangent)

  gradient = jax.grad(project)(log_probs, True)
  # By definition: (y * v - y (y . v)) / tau with y the softmax at tau.
  y, _ = gmvq_jax.gumbel_softmax(key, log_probs, temperature=tau, hard=False)
  expected = y * (cotangent - jnp.sum(y * cotangent, -1, keepdims=True)) / tau
  np.testing.assert_allclose(gradient, expected, rtol=1e-10)
  check_grads(lambda x: project(x, False), (log_probs,), order=1, eps=1e-6)


@pytest.mark.parametrize('two_sigma2', [1.0, 2.5])
def test_moments_of_sampled_latents(rng, x64, two_sigma2):
  z_hat, weights, codebook = arrays(rng, ())
  n = 200_000
  latents = jax.jit(
      lambda key: gmvq_jax.sample_latents(
          key,
          jnp.broadcast_to(z_hat, (n, L)),
          jnp.broadcast_to(weights, (n, L)),
          codebook,
          temperature=0.5,
          two_sigma2=two_sigma2,
      )
  )(jax.random.key(3))
  probs = reference.posterior(z_hat, weights, codebook)
  variances = np.array(
      [reference.variance(z_hat, mu, two_sigma2) for mu in codebook]
  )
  # Law of total expectation, and of total variance, over the mixture.
  mean = probs @ codebook
  second = probs @ (codebook**2 + variances[:, None])
  np.testing.assert_allclose(latents.z.mean(0), mean, atol=0.03)
  np.testing.assert_allclose((latents.z**2).mean(0), second, rtol=0.03)
  # And within each code, where the noise is all there is.
  for code in np.argsort(-probs)[:3]:
    drawn = latents.z[latents.codes == code] - codebook[code]
    np.testing.assert_allclose(drawn.var(), variances[code], rtol=0.05)
  np.testing.assert_allclose(
      latents.variance, variances[latents.codes], rtol=1e-10
  )
  np.testing.assert_array_equal(latents.codewords, codebook[latents.codes])


def test_unchosen_codewords_get_a_gradient_too(rng):
  z_hat, weights, codebook = arrays(rng, (1,), np.float32)

  def first_sum(codebook):
    latents = gmvq_jax.sample_latents(
        jax.random.key(0), z_hat, weights, codebook, temperature=1.0
    )
    return jnp.sum(latents.z), latents.codes

  gradient, codes = jax.grad(first_sum, has_aux=True)(jnp.asarray(codebook))
  unchosen = np.delete(np.arange(C), np.unique(codes))
  assert np.all(np.abs(gradient[unchosen]).max(axis=-1) > 1e-6)


def test_no_identity_path_to_the_encoder(rng):
  """With a flat posterior and a constant sigma nothing reaches z_hat."""
  z_hat, _, codebook = arrays(rng, (4,), np.float32)

  def total(z_hat, stop):
    latents = gmvq_jax.sample_latents(
        jax.random.key(0),
        z_hat,
        jnp.zeros_like(z_hat),
        codebook,
        temperature=1.0,
        stop_variance_gradient=stop,
    )
    return jnp.sum(latents.z)

  gradient = jax.grad(total)
  np.testing.assert_array_equal(gradient(jnp.asarray(z_hat), True), 0)
  assert np.abs(gradient(jnp.asarray(z_hat), False)).max() > 1e-3


def extremes(case):
  """Posteriors of entropy 0, of log C, and a latent on its codeword."""
  codebook = 3 * jnp.eye(C, L)
  weights = jnp.ones((2, L))
  if case == 'one code':
    return codebook[:2], 1e4 * weights, codebook
  if case == 'every code':
    return codebook[:2], 0 * weights, codebook
  if case == 'no distance':
    return codebook[:2], weights, codebook
  return 1e4 * codebook[:2], weights, codebook


@pytest.mark.parametrize(
    'case', ['one code', 'every code', 'no distance', 'far away']
)
@pytest.mark.parametrize('temperature', [0.1, 2.0])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_finite_at_the_extremes(case, temperature, dtype):
  inputs = [x.astype(dtype) for x in extremes(case)]

  def loss(z_hat, weights, codebook):
    latents = gmvq_jax.sample_latents(
        jax.random.key(0), z_hat, weights, codebook, temperature=temperature
    )
    q_c = gmvq_jax.aggregated_posterior(jnp.exp(latents.log_probs))
    return jnp.sum(latents.z**2) + gmvq_jax.kl_to_uniform(q_c)

  value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(*inputs)
  chex.assert_tree_all_finite((value, gradients))
  entropy = gmvq_jax.posterior_entropy(gmvq_jax.log_posterior(*inputs))
  if case == 'one code':
    np.testing.assert_allclose(entropy, 0, atol=1e-6)
  if case == 'every code':
    np.testing.assert_allclose(entropy, np.log(C), rtol=1e-5)


def test_most_probable_latents_are_codewords_without_noise(rng):
  z_hat, weights, codebook = arrays(rng, (3, 4), np.float32)
  latents = gmvq_jax.most_probable_latents(z_hat, weights, codebook)
  expected = gmvq_jax.log_posterior(z_hat, weights, codebook).argmax(-1)
  np.testing.assert_array_equal(latents.codes, expected)
  np.testing.assert_array_equal(latents.z, codebook[expected])


def test_the_first_of_equal_codes_wins():
  codebook = jnp.ones((C, L))
  z_hat = jnp.ones((2, L))
  latents = gmvq_jax.most_probable_latents(z_hat, z_hat, codebook)
  np.testing.assert_array_equal(latents.codes, 0)


@pytest.mark.parametrize('leading', [(6,), (2, 3), (2, 1, 3)])
def test_aggregated_posterior_is_eq_12(rng, x64, leading):
  probs = rng.dirichlet(np.ones(C), size=leading)
  q_c = gmvq_jax.aggregated_posterior(probs)
  chex.assert_shape(q_c, (C,))
  np.testing.assert_allclose(q_c, probs.reshape(-1, C).mean(0), rtol=1e-12)


def test_aggregated_posterior_leaves_out_what_is_masked(rng, x64):
  probs = rng.dirichlet(np.ones(C), size=(4, 3))
  mask = np.array(rng.integers(0, 2, (4, 3)), bool)
  probs[~mask] = np.nan
  q_c = gmvq_jax.aggregated_posterior(probs, mask=mask)
  np.testing.assert_allclose(q_c, probs[mask].mean(0), rtol=1e-12)
  nothing = gmvq_jax.aggregated_posterior(probs, mask=np.zeros((4, 3), bool))
  np.testing.assert_array_equal(nothing, 0)


def test_shapes_that_do_not_fit_are_refused(rng):
  z_hat, weights, codebook = arrays(rng, (3,))
  with pytest.raises(AssertionError):
    gmvq_jax.log_posterior(z_hat, weights[:2], codebook)
  with pytest.raises(AssertionError):
    gmvq_jax.log_posterior(z_hat, weights, codebook[:, :3])
