"""Eqs 12 and 15-18 against float64 NumPy, their gradients and their moments."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import gmvq_jax

C, L = 7, 5

log_posterior = jax.jit(gmvq_jax.log_posterior)
most_probable_latents = jax.jit(gmvq_jax.most_probable_latents)
component_variance = jax.jit(gmvq_jax.component_variance)


@jax.jit
def sample_latents(seed, *arrays, temperature, two_sigma2=1.0):
  return gmvq_jax.sample_latents(
      jax.random.key(seed),
      *arrays,
      temperature=temperature,
      two_sigma2=two_sigma2,
  )


@functools.partial(jax.jit, static_argnames=('hard',))
def gumbel_softmax(seed, log_probs, *, temperature, hard):
  return gmvq_jax.gumbel_softmax(
      jax.random.key(seed), log_probs, temperature=temperature, hard=hard
  )


@functools.partial(jax.jit, static_argnames=('stop',))
def gradients_of_a_sample(arrays, *, temperature, kl_weight, stop=False):
  """Returns a loss of sampled latents, the latents, and its gradients."""

  def loss(*arrays):
    latents = gmvq_jax.sample_latents(
        jax.random.key(0),
        *arrays,
        temperature=temperature,
        stop_variance_gradient=stop,
    )
    q_c = gmvq_jax.aggregated_posterior(jnp.exp(latents.log_probs))
    kl = gmvq_jax.kl_to_uniform(q_c)
    return jnp.sum(latents.z**2) + kl_weight * kl, latents

  (value, latents), gradients = jax.value_and_grad(
      loss, argnums=(0, 1, 2), has_aux=True
  )(*arrays)
  entropy = gmvq_jax.posterior_entropy(latents.log_probs)
  return value, latents, entropy, gradients


def arrays(rng, leading=(4,), dtype=np.float64):
  z_hat = rng.normal(size=(*leading, L)).astype(dtype)
  weights = rng.gamma(2.0, size=(*leading, L)).astype(dtype)
  codebook = rng.normal(size=(C, L)).astype(dtype)
  return z_hat, weights, codebook


def test_log_posterior_is_eqs_16_and_17(rng, x64):
  cases = [arrays(rng, leading) for leading in [(), (4,), (3, 2), (2, 2, 3)]]
  results = jax.jit(lambda cases: [log_posterior(*case) for case in cases])(
      cases
  )
  for (z_hat, weights, codebook), log_probs in zip(
      cases, jax.device_get(results), strict=True
  ):
    leading = z_hat.shape[:-1]
    chex.assert_shape(log_probs, (*leading, C))
    assert log_probs.dtype == np.float64
    for index in np.ndindex(*leading):
      expected = reference.posterior(z_hat[index], weights[index], codebook)
      np.testing.assert_allclose(
          np.exp(log_probs[index]), expected, rtol=1e-12, err_msg=str(leading)
      )


def test_log_posterior_builds_no_array_of_every_difference(rng):
  jaxpr = jax.make_jaxpr(gmvq_jax.log_posterior)(
      *arrays(rng, (11,), np.float32)
  )
  sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
  assert max(sizes) < 11 * C * L


def test_gradients_of_the_posterior_and_of_the_relaxed_one_hot(rng, x64):
  def function(*arrays):
    log_probs = gmvq_jax.log_posterior(*arrays)
    relaxed, _ = gmvq_jax.gumbel_softmax(
        jax.random.key(2), log_probs, temperature=0.7, hard=False
    )
    return {'log_posterior': log_probs, 'gumbel_softmax': relaxed}

  reference.check_derivatives(function, *arrays(rng))


@pytest.mark.parametrize('two_sigma2', [0.5, 1.0, 3.0])
def test_component_variance_is_eq_18(rng, x64, two_sigma2):
  z_hat, _, codebook = arrays(rng, (C,))
  variance = component_variance(z_hat, codebook, two_sigma2=two_sigma2)
  chex.assert_shape(variance, (C,))
  expected = [
      reference.variance(z, mu, two_sigma2)
      for z, mu in zip(z_hat, codebook, strict=True)
  ]
  np.testing.assert_allclose(variance, expected, rtol=1e-12)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(rng, dtype):
  inputs = arrays(rng, dtype=dtype)
  latents, wide = (
      jax.device_get(sample_latents(0, *arrays, temperature=1.0))
      for arrays in (inputs, [x.astype(np.float32) for x in inputs])
  )
  assert latents.log_probs.dtype == latents.z.dtype == np.float32
  chex.assert_tree_all_finite(latents)
  np.testing.assert_array_equal(latents.codes, wide.codes)
  chex.assert_trees_all_close(latents, wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('temperature', [0.1, 1.0, 2.0])
@pytest.mark.parametrize('hard', [True, False])
def test_gumbel_softmax_samples_the_posterior(rng, temperature, hard):
  probs, n = rng.dirichlet(np.ones(C)), 40_000
  log_probs = np.tile(np.log(probs).astype(np.float32), (n, 1))
  c_q, codes = jax.device_get(
      gumbel_softmax(1, log_probs, temperature=temperature, hard=hard)
  )
  chex.assert_shape([c_q, codes], [(n, C), (n,)])
  assert codes.dtype == np.int32
  share = np.bincount(codes, minlength=C) / n
  # Five standard deviations of a binomial share.
  assert np.all(np.abs(share - probs) < 5 * np.sqrt(probs * (1 - probs) / n))
  np.testing.assert_allclose(c_q.sum(-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(c_q.argmax(-1), codes)
  assert hard == bool(np.all((c_q == 0) | (c_q == 1)))


def test_straight_through_gradient_is_that_of_the_softmax(rng, x64):
  log_probs, cotangent = rng.normal(size=(2, 3, C))
  tau = 0.7

  @jax.jit
  def pull(log_probs):
    def one_hot(log_probs, hard):
      return gmvq_jax.gumbel_softmax(
          jax.random.key(2), log_probs, temperature=tau, hard=hard
      )[0]

    _, vjp = jax.vjp(lambda x: one_hot(x, True), log_probs)
    return vjp(cotangent)[0], one_hot(log_probs, False)

  gradient, y = jax.device_get(pull(log_probs))
  # By definition: (y * v - y (y . v)) / tau with y the softmax at tau.
  expected = y * (cotangent - np.sum(y * cotangent, -1, keepdims=True)) / tau
  np.testing.assert_allclose(gradient, expected, rtol=1e-10)


@pytest.mark.parametrize('two_sigma2', [1.0, 2.5])
def test_moments_of_sampled_latents(rng, x64, two_sigma2):
  z_hat, weights, codebook = arrays(rng, ())
  n = 200_000
  latents = jax.device_get(
      sample_latents(
          3,
          np.tile(z_hat, (n, 1)),
          np.tile(weights, (n, 1)),
          codebook,
          temperature=0.5,
          two_sigma2=two_sigma2,
      )
  )
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
    noise = latents.z[latents.codes == code] - codebook[code]
    np.testing.assert_allclose(noise.var(), variances[code], rtol=0.05)
  np.testing.assert_allclose(
      latents.variance, variances[latents.codes], rtol=1e-10
  )
  np.testing.assert_array_equal(latents.codewords, codebook[latents.codes])


def test_codewords_that_are_not_sampled_have_a_gradient_too(rng):
  _, latents, _, gradients = jax.device_get(
      gradients_of_a_sample(
          arrays(rng, dtype=np.float32), temperature=1.0, kl_weight=0.0
      )
  )
  others = np.delete(np.arange(C), np.unique(latents.codes))
  assert len(others)
  assert np.all(np.abs(gradients[2][others]).max(axis=-1) > 1e-6)


def test_no_identity_path_to_the_encoder(rng):
  """With a flat posterior and a constant sigma nothing reaches z_hat."""
  z_hat, weights, codebook = arrays(rng, dtype=np.float32)
  flat = (z_hat, 0 * weights, codebook)

  def gradient(stop):
    return jax.device_get(
        gradients_of_a_sample(flat, temperature=1.0, kl_weight=1.0, stop=stop)
    )[-1][0]

  np.testing.assert_array_equal(gradient(stop=True), 0)
  assert np.abs(gradient(stop=False)).max() > 1e-3


def extremes(case):
  """Posteriors of entropy 0, of log C, and a latent on its codeword."""
  codebook = 3 * np.eye(C, L)
  z_hat, weights = codebook[:4], np.ones((4, L))
  if case == 'one code':
    weights = 1e4 * weights
  elif case == 'every code':
    weights = 0 * weights
  elif case == 'far away':
    z_hat = 1e4 * z_hat
  return z_hat, weights, codebook


@pytest.mark.parametrize(
    'case', ['one code', 'every code', 'no distance', 'far away']
)
@pytest.mark.parametrize('temperature', [0.1, 2.0])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_finite_at_the_extremes(case, temperature, dtype):
  inputs = [x.astype(dtype) for x in extremes(case)]
  value, latents, entropy, gradients = jax.device_get(
      gradients_of_a_sample(inputs, temperature=temperature, kl_weight=1.0)
  )
  chex.assert_tree_all_finite(
      jax.tree.map(np.float32, (value, latents, gradients))
  )
  if case == 'one code':
    np.testing.assert_allclose(entropy, 0, atol=1e-6)
  if case == 'every code':
    np.testing.assert_allclose(entropy, np.log(C), rtol=1e-5)


def test_most_probable_latents_are_codewords_without_noise(rng):
  z_hat, weights, codebook = arrays(rng, dtype=np.float32)
  latents = jax.device_get(most_probable_latents(z_hat, weights, codebook))
  expected = [
      reference.posterior(z, w, codebook).argmax()
      for z, w in zip(z_hat, weights, strict=True)
  ]
  np.testing.assert_array_equal(latents.codes, expected)
  np.testing.assert_array_equal(latents.z, codebook[expected])


def test_of_equally_probable_codes_the_first_wins():
  ones = np.ones((4, L), np.float32)
  codebook = np.ones((C, L), np.float32)
  latents = most_probable_latents(ones, ones, codebook)
  np.testing.assert_array_equal(latents.codes, 0)


def test_aggregated_posterior_is_eq_12(rng, x64):
  cases = [
      rng.dirichlet(np.ones(C), size=leading)
      for leading in [(6,), (2, 3), (2, 1, 3)]
  ]
  results = jax.jit(
      lambda cases: [gmvq_jax.aggregated_posterior(x) for x in cases]
  )(cases)
  for probs, q_c in zip(cases, results, strict=True):
    chex.assert_shape(q_c, (C,))
    np.testing.assert_allclose(q_c, probs.reshape(-1, C).mean(0), rtol=1e-12)


def test_aggregated_posterior_ignores_masked_positions(rng, x64):
  """On one device and over several."""
  probs = rng.dirichlet(np.ones(C), size=(4, 3))
  mask = np.array(rng.integers(0, 2, (4, 3)), bool)
  probs[~mask] = np.nan

  @jax.jit
  def aggregate(probs, mask):
    def of_device(probs, mask):
      return gmvq_jax.aggregated_posterior(
          probs, mask=mask, axis_name='devices'
      )

    return (
        gmvq_jax.aggregated_posterior(probs, mask=mask),
        jax.vmap(of_device, axis_name='devices')(probs, mask),
    )

  one, several = jax.device_get(aggregate(probs, mask))
  expected = probs[mask].mean(0)
  np.testing.assert_allclose(one, expected, rtol=1e-12)
  np.testing.assert_allclose(
      several, np.tile(expected, (4, 1)), rtol=1e-12, err_msg='devices'
  )
  nothing = jax.device_get(aggregate(probs, np.zeros((4, 3), bool)))
  for q_c in nothing:
    np.testing.assert_array_equal(q_c, 0)


def test_shapes_that_do_not_fit_are_refused(rng):
  z_hat, weights, codebook = arrays(rng, (3,))
  with pytest.raises(AssertionError):
    log_posterior(z_hat, weights[:2], codebook)
  with pytest.raises(AssertionError):
    log_posterior(z_hat, weights, codebook[:, :3])
