"""Bounds against exact integrals, and what is no bound shown to be none."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import bounds
from gmvq_jax import mixture
from gmvq_jax import posterior

OBSERVATION, LATENT = 0.3, 0.5


def decode(z):
  """A decoder from latents `[..., P, L]` to three values."""
  flat = z.reshape(*z.shape[:-2], -1)
  mix = np.cos(np.arange(3 * flat.shape[-1])).reshape(-1, 3)
  return jnp.tanh(flat @ mix) + 0.3 * flat[..., :1]


def model(positions, dim, codes=3, images=4, *, sharp=2.0):
  """Returns images, their posterior, and the codebook."""
  rng = np.random.default_rng(positions + 10 * dim)
  codebook = jnp.asarray(rng.normal(size=(codes, dim)))
  z_hat = rng.normal(size=(1000, positions, dim))
  variances = mixture.posterior(z_hat, jnp.zeros(codes), codebook).variances
  # Not so narrow that a grid would miss them, nor so wide that they leave it.
  fit = np.flatnonzero(np.min(variances, axis=(1, 2)) > 0.05)
  fit = fit[np.argsort(np.max(variances[fit], axis=(1, 2)))]
  z_hat = jnp.asarray(z_hat[fit[:images]])
  weights = sharp * jnp.ones_like(z_hat)
  log_probs = posterior.log_posterior(z_hat, weights, codebook)
  x = decode(z_hat) + 0.2 * rng.normal(size=(images, 3))
  return x, mixture.posterior(z_hat, log_probs, codebook), codebook


def grid_of(positions, dim):
  """Returns latents `[n, P, L]` that fill space, and the volume of each."""
  axis = np.linspace(-7, 7, 2001 if positions * dim == 1 else 281)
  points = np.meshgrid(*[axis] * (positions * dim), indexing='ij')
  step = axis[1] - axis[0]
  z = np.stack(points, axis=-1).reshape(-1, positions, dim)
  return z, step ** (positions * dim)


def log_normal(x, mean, variance):
  """Returns the log-density of isotropic Gaussians, over the last axis."""
  square = np.sum(np.square(x - mean), axis=-1)
  size = np.shape(x)[-1]
  return -0.5 * (square / variance + size * np.log(2 * np.pi * variance))


def exact(x, q, codebook, q_c):
  """Returns log p(x), and every term as an integral, of one image."""
  q = jax.tree.map(np.asarray, q)
  positions, codes = q.log_weights.shape
  z, volume = grid_of(positions, codebook.shape[1])
  likelihood = log_normal(x, np.asarray(decode(z)), OBSERVATION)
  # Of each position and code, [n, P, C].
  log_p = log_normal(z[:, :, None], np.asarray(codebook), LATENT)
  log_q = np.stack(
      [
          [
              log_normal(z[:, p], codebook[c], q.variances[p, c])
              for c in range(codes)
          ]
          for p in range(positions)
      ]
  ).transpose(2, 0, 1)
  prior = np.prod(np.exp(log_p).mean(axis=-1), axis=-1)
  of_code = np.exp(log_q + q.log_weights)
  density = np.prod(of_code.sum(axis=-1), axis=-1)
  # The density of each code with its latent, the other positions as they are.
  others = density[:, None] / of_code.sum(axis=-1)
  joint = of_code * others[..., None]

  def expect(values):
    return volume * np.sum(values)

  return {
      'log_p': np.log(expect(np.exp(likelihood) * prior)),
      'likelihood': expect(density * likelihood),
      'cross': expect(joint * log_p),
      'cross_independent': expect(
          density * (log_p @ np.asarray(q_c)).sum(axis=-1)
      ),
      'noise_entropy': -expect(joint * log_q),
      'code_kl': sum(
          np.sum(np.exp(w) * (w + np.log(codes))) for w in q.log_weights
      ),
      'aggregated_kl': positions * np.sum(q_c * np.log(q_c * codes)),
      'entropy_of_z': -expect(density * np.log(density + 1e-300)),
  }


SIZES = [(1, 1), (1, 2), (2, 1)]  # Positions and dimensions.


@pytest.fixture(params=SIZES, ids=str)
def case(request, x64):
  x, q, codebook = model(*request.param)
  q_c = jnp.mean(jnp.exp(q.log_weights), axis=(0, 1))
  found = bounds.terms(q, q_c, latent_variance=LATENT)
  integrals = [
      exact(
          x[i],
          mixture.Mixture(q.log_weights[i], q.means, q.variances[i]),
          codebook,
          q_c,
      )
      for i in range(len(x))
  ]
  integrals = {k: np.array([i[k] for i in integrals]) for k in integrals[0]}
  return x, q, codebook, found, integrals


def test_terms_are_their_integrals(case):
  *_, found, integrals = case
  for name in found._fields:
    np.testing.assert_allclose(
        getattr(found, name), integrals[name], rtol=1e-4, err_msg=name
    )


def test_bounds_lie_below_the_likelihood(case):
  """The ELBO, and the repaired ALBO with any q(c) at all."""
  _, q, codebook, found, integrals = case
  of = bounds.bounds(integrals['likelihood'], found)
  assert np.all(of.elbo < integrals['log_p'])
  # The repair is less than the entropy that was dropped.
  assert np.all(found.noise_entropy <= integrals['entropy_of_z'])
  for seed in range(20):
    q_c = jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(3) / 2))
    other = bounds.terms(q, q_c, latent_variance=LATENT)
    repaired = bounds.bounds(integrals['likelihood'], other).albo_repaired
    assert np.all(repaired < integrals['log_p'])


def test_importance_weighted_bounds_converge(case):
  """They rise with k, and come to the likelihood from below."""
  x, q, codebook, _, integrals = case
  prior = mixture.prior(codebook, LATENT)
  sizes, count = (1, 10, 100, 1000), 20000
  axes = mixture.Mixture(0, None, 0)

  def add(index, importance):
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.fold_in(jax.random.key(0), index), jnp.arange(len(x))
    )
    z, _ = jax.vmap(mixture.sample, in_axes=(0, axes))(keys, q)
    error = jnp.sum(jnp.square(x - decode(z)), axis=-1)
    weight = bounds.log_likelihood(error, OBSERVATION, data_dim=3)
    weight += bounds.log_ratio(q, prior, z)
    return bounds.add_weights(importance, weight, sizes)

  start = bounds.no_weights(sizes, (len(x),))
  importance = jax.jit(lambda s: jax.lax.fori_loop(0, count, add, s))(start)
  found = bounds.importance_bounds(importance, sizes)
  gaps = integrals['log_p'] - found
  assert np.all(gaps[0] > gaps[1]) and np.all(gaps[1] > gaps[2] - 1e-3)
  assert np.all(gaps[0] > 0.01)  # There is something to converge from.
  np.testing.assert_allclose(gaps[3], 0, atol=0.03)


def test_with_one_code_c_says_nothing(x64):
  """ALBO and ELBO differ by the entropy of z alone."""
  x, q, _ = model(2, 2, codes=1)
  found = bounds.terms(q, jnp.ones(1), latent_variance=LATENT)
  of = bounds.bounds(jnp.zeros(len(x)), found)
  np.testing.assert_allclose(of.albo_repaired, of.elbo)
  np.testing.assert_allclose(of.albo, of.albo_coupled)


def counterexample():
  """Returns the bounds of SPEC section 3: an identity, and x = mu = 0."""
  z_hat = jnp.zeros((1, 1))
  # Of the variance of eq 18 nothing is left but what keeps its root smooth.
  q = mixture.posterior(z_hat, jnp.zeros((1, 1)), jnp.zeros((1, 1)))
  found = bounds.terms(q, jnp.ones(1), latent_variance=0.5)
  error = q.variances[0, 0]
  return bounds.bounds(bounds.log_likelihood(error, 1e-4, data_dim=1), found)


def test_the_albo_as_printed_is_no_bound(x64):
  of = counterexample()
  log_p = -0.5 * np.log(2 * np.pi * (0.5 + 1e-4))
  np.testing.assert_allclose(log_p, -0.573, atol=1e-3)
  np.testing.assert_allclose(of.albo, 3.114, atol=1e-3)
  assert of.albo > log_p > of.albo_repaired


def test_the_coupled_albo_is_no_bound_even_repaired(x64):
  """Of images in two heaps it forgets the bit that says which."""
  codebook = jnp.array([[-3.0], [3.0]])
  x = jnp.array([-3.0, 3.0])
  log_probs = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]])[:, None]
  variance = 0.25  # Of z, in the prior and the posterior.
  q = mixture.Mixture(log_probs, codebook, jnp.full((2, 1, 2), variance))
  q_c = jnp.array([0.5, 0.5])
  found = bounds.terms(q, q_c, latent_variance=variance)
  likelihood = bounds.log_likelihood(variance, 1e2, data_dim=1)
  of = bounds.bounds(likelihood, found)
  log_p = np.logaddexp(
      log_normal(x[:, None], codebook[0], variance + 1e2),
      log_normal(x[:, None], codebook[1], variance + 1e2),
  ) - np.log(2)
  assert np.all(of.elbo < log_p)
  assert np.all(of.albo_repaired < log_p)
  # The decoder does not look at z, so nothing else is lost.
  np.testing.assert_allclose(
      of.albo_coupled_repaired - of.elbo, np.log(2), rtol=1e-6
  )
  assert np.all(of.albo_coupled_repaired > log_p)


def test_what_the_coupled_albo_leaves_out_is_the_information(x64):
  """On average over images, I(x; c), summed over positions."""
  x, q, _ = model(2, 2, codes=5, images=6)
  probs = np.exp(q.log_weights)
  q_c = probs.mean(axis=(0, 1))
  found = bounds.terms(q, jnp.asarray(q_c), latent_variance=LATENT)
  of = bounds.bounds(jnp.zeros(len(x)), found)
  information = 2 * np.mean(np.sum(probs * np.log(probs / q_c), axis=-1))
  np.testing.assert_allclose(
      np.mean(of.albo_coupled_repaired - of.elbo), information
  )


@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_weights_come_in_one_by_one(scale, rng):
  """As all at once in float64, however small they are."""
  sizes = (1, 4, 12)
  weights = rng.normal(size=(24, 2, 3)) - scale
  state = bounds.no_weights(sizes, (2, 3))
  for weight in weights:
    state = bounds.add_weights(state, jnp.asarray(weight), sizes)
  found = bounds.importance_bounds(state, sizes)
  for k, bound in zip(sizes, found, strict=True):
    groups = weights.reshape(24 // k, k, 2, 3)
    expected = np.log(np.mean(np.exp(groups + scale), axis=1)) - scale
    np.testing.assert_allclose(
        bound, expected.mean(axis=0), atol=2e-7 * scale + 1e-6
    )


def test_what_is_not_complete_is_not_there():
  state = bounds.no_weights((1, 2), ())
  state = bounds.add_weights(state, jnp.array(3.0), (1, 2))
  one, two = bounds.importance_bounds(state, (1, 2))
  assert one == 3 and jnp.isnan(two)


def test_bits_are_of_256_levels():
  """A density of 1 on [0, 1] is 1/255 a level; twice that is a bit less."""
  np.testing.assert_allclose(bounds.bits_per_dim(0.0, 10), np.log2(255))
  np.testing.assert_allclose(
      bounds.bits_per_dim(10 * np.log(2), 10), np.log2(255) - 1
  )


def test_samples_are_of_the_mixture(x64):
  weights = jnp.array([0.0, 0.2, 0.5, 0.3, 0.0])
  means = jnp.arange(10.0).reshape(5, 2)
  variances = jnp.array([1.0, 0.1, 0.2, 0.3, 1.0])
  count = 40000
  one = mixture.Mixture(jnp.log(weights), means, variances)
  many = mixture.Mixture(
      jnp.broadcast_to(one.log_weights, (count, 5)),
      means,
      jnp.broadcast_to(variances, (count, 5)),
  )
  z, codes = mixture.sample(jax.random.key(0), many)
  chex.assert_shape(z, (count, 2))
  shares = np.bincount(codes, minlength=5) / count
  error = np.sqrt(weights * (1 - weights) / count)
  assert np.all(np.abs(shares - weights) <= 4 * error)
  for code in (1, 2, 3):
    rest = (z - means[code])[codes == code]
    size = rest.size
    np.testing.assert_allclose(
        np.mean(rest), 0, atol=4 * np.sqrt(variances[code] / size)
    )
    np.testing.assert_allclose(
        np.mean(rest**2), variances[code], rtol=4 * np.sqrt(2 / size)
    )


def test_densities_are_those_of_the_formula(x64, rng):
  _, q, codebook = model(2, 3, codes=4)
  z = jnp.asarray(rng.normal(size=(4, 2, 3)))
  found = mixture.log_density(q, z)
  each = log_normal(
      np.asarray(z)[:, :, None], np.asarray(codebook), np.asarray(q.variances)
  )
  expected = np.log(np.sum(np.exp(each + q.log_weights), axis=-1))
  np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_posterior_is_what_training_draws_from(rng):
  """Same codes, same variances as `posterior.sample_latents`."""
  z_hat, codebook = rng.normal(size=(500, 3)), rng.normal(size=(4, 3))
  draw = functools.partial(
      posterior.sample_latents, temperature=1.0, two_sigma2=2.0
  )
  drawn = draw(jax.random.key(0), z_hat, np.ones_like(z_hat), codebook)
  q = mixture.posterior(z_hat, drawn.log_probs, codebook, two_sigma2=2.0)
  variances = np.take_along_axis(q.variances, drawn.codes[:, None], axis=-1)
  np.testing.assert_allclose(variances[:, 0], drawn.variance, rtol=1e-4)


@pytest.mark.parametrize('spread', [0.3, 0.1])
def test_float32_is_enough(spread):
  """At the size of an image, against float64."""

  def ratio(dtype):
    rng = np.random.default_rng(0)
    codebook = rng.normal(size=(256, 64)).astype(dtype)
    z_hat = codebook[rng.integers(256, size=64)]
    z_hat = z_hat + spread * rng.normal(size=(64, 64)).astype(dtype)
    log_probs = posterior.log_posterior(z_hat, np.ones_like(z_hat), codebook)
    q = mixture.posterior(z_hat, log_probs, codebook)
    z = z_hat + spread * rng.normal(size=(64, 64)).astype(dtype)
    return bounds.log_ratio(q, mixture.prior(codebook, 0.5), z)

  with jax.enable_x64(True):
    expected = float(ratio(np.float64))
  np.testing.assert_allclose(float(ratio(np.float32)), expected, atol=0.05)
