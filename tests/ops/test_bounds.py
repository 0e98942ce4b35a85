"""Bounds against exact integrals, and counterexamples where there is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax.ops import bounds
from gmvq_jax.ops import mixture
from gmvq_jax.ops import posterior

OBSERVATION, LATENT = 0.3, 0.5


def jitted(function, **options):
  """Compiles a function; its results are NumPy arrays."""
  compiled = jax.jit(function, **options)
  return lambda *args, **kwargs: jax.device_get(compiled(*args, **kwargs))


terms_of = jitted(bounds.terms)
posterior_of = jitted(mixture.posterior, static_argnames='two_sigma2')
log_density = jitted(mixture.log_density)


def mixture_of(z_hat, weights, codebook):
  """Returns the posterior of latents."""
  log_probs = posterior.log_posterior(z_hat, weights, codebook)
  return mixture.posterior(z_hat, log_probs, codebook)


mixture_of_images = jitted(mixture_of)


def decode(z):
  """A decoder from latents `[..., P, L]` to three values."""
  numpy = np if isinstance(z, np.ndarray) else jnp
  flat = z.reshape(*z.shape[:-2], -1)
  mix = np.cos(np.arange(3 * flat.shape[-1])).reshape(-1, 3)
  return numpy.tanh(flat @ mix) + 0.3 * flat[..., :1]


def model(positions, dim, codes=3, images=4, *, sharp=2.0):
  """Returns images, their posterior, and the codebook."""
  rng = np.random.default_rng(positions + 10 * dim)
  codebook = rng.normal(size=(codes, dim))
  z_hat = rng.normal(size=(1000, positions, dim))
  variances = np.mean((z_hat[..., None, :] - codebook) ** 2, axis=-1)
  # Not so narrow that a grid would miss them, nor so wide that they leave it.
  fit = np.flatnonzero(np.min(variances, axis=(1, 2)) > 0.05)
  fit = fit[np.argsort(np.max(variances[fit], axis=(1, 2)))]
  z_hat = z_hat[fit[:images]]
  q = mixture_of_images(z_hat, sharp * np.ones_like(z_hat), codebook)
  x = decode(z_hat) + 0.2 * rng.normal(size=(images, 3))
  return x, q, codebook


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
  positions, codes = q.log_weights.shape
  z, volume = grid_of(positions, codebook.shape[1])
  likelihood = log_normal(x, decode(z), OBSERVATION)
  # Of each position and code, [n, P, C].
  log_p = log_normal(z[:, :, None], codebook, LATENT)
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
      'cross_independent': expect(density * (log_p @ q_c).sum(axis=-1)),
      'noise_entropy': -expect(joint * log_q),
      'code_kl': sum(
          np.sum(np.exp(w) * (w + np.log(codes))) for w in q.log_weights
      ),
      'aggregated_kl': positions * np.sum(q_c * np.log(q_c * codes)),
      'entropy_of_z': -expect(density * np.log(density + 1e-300)),
  }


SIZES = [(1, 1), (1, 2), (2, 1)]  # Positions and dimensions.


@pytest.fixture(params=SIZES, ids=str, scope='module')
def case(request):
  with jax.enable_x64(True):
    x, q, codebook = model(*request.param)
    q_c = np.mean(np.exp(q.log_weights), axis=(0, 1))
    found = terms_of(q, q_c, latent_variance=LATENT)
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


def test_terms_are_their_integrals(case, x64):
  *_, found, integrals = case
  for name in found._fields:
    np.testing.assert_allclose(
        getattr(found, name), integrals[name], rtol=1e-4, err_msg=name
    )


def test_bounds_lie_below_the_likelihood(case, x64):
  """The ELBO, and the repaired ALBO with any q(c) at all."""
  _, q, codebook, found, integrals = case
  of = bounds.bounds(integrals['likelihood'], found)
  assert np.all(of.elbo < integrals['log_p'])
  # The repair is less than the entropy that was dropped.
  assert np.all(found.noise_entropy <= integrals['entropy_of_z'])
  for seed in range(20):
    q_c = np.random.default_rng(seed).dirichlet(np.ones(3) / 2)
    other = terms_of(q, q_c, latent_variance=LATENT)
    repaired = bounds.bounds(integrals['likelihood'], other).albo_repaired
    assert np.all(repaired < integrals['log_p'])


def test_importance_weighted_bounds_converge(case, x64):
  """They rise with k, and come to the likelihood from below."""
  x, q, codebook, _, integrals = case
  sizes, count = (1, 10, 100, 1000), 20000
  axes = mixture.Mixture(0, None, 0)

  @jitted
  def bounds_of_samples(x, q, codebook):
    prior = mixture.prior(codebook, LATENT)

    def add(index, importance):
      keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
          jax.random.fold_in(jax.random.key(0), index), jnp.arange(len(x))
      )
      z, _ = jax.vmap(mixture.sample, in_axes=(0, axes))(keys, q)
      error = jnp.sum(jnp.square(x - decode(z)), axis=-1)
      weight = bounds.log_likelihood(error, OBSERVATION, data_dim=3)
      weight += bounds.log_ratio(q, prior, z)
      return bounds.add_weights(importance, weight, sizes)

    state = bounds.no_weights(sizes, (len(x),))
    state = jax.lax.fori_loop(0, count, add, state)
    return bounds.importance_bounds(state, sizes)

  found = bounds_of_samples(x, q, codebook)
  gaps = integrals['log_p'] - found
  assert np.all(gaps[0] > gaps[1]) and np.all(gaps[1] > gaps[2] - 1e-3)
  assert np.all(gaps[0] > 0.01)  # There is something to converge from.
  np.testing.assert_allclose(gaps[3], 0, atol=0.03)


def test_with_one_code_the_repaired_albo_is_the_elbo(x64):
  """ALBO and ELBO then differ by the entropy of z alone."""
  x, q, _ = model(2, 2, codes=1)
  found = terms_of(q, np.ones(1), latent_variance=LATENT)
  of = bounds.bounds(np.zeros(len(x)), found)
  np.testing.assert_allclose(of.albo_repaired, of.elbo)
  np.testing.assert_allclose(of.albo, of.albo_coupled)


def counterexample():
  """Returns the bounds of SPEC section 3: an identity, and x = mu = 0."""
  zero = np.zeros((1, 1))
  # Of the variance of eq 18 nothing is left but what keeps its root smooth.
  q = posterior_of(zero, zero, zero)
  found = terms_of(q, np.ones(1), latent_variance=0.5)
  error = q.variances[0, 0]
  return bounds.bounds(bounds.log_likelihood(error, 1e-4, data_dim=1), found)


def test_the_albo_as_printed_is_no_bound(x64):
  of = counterexample()
  log_p = -0.5 * np.log(2 * np.pi * (0.5 + 1e-4))
  np.testing.assert_allclose(log_p, -0.573, atol=1e-3)
  np.testing.assert_allclose(of.albo, 3.114, atol=1e-3)
  assert of.albo > log_p > of.albo_repaired


def test_the_coupled_albo_is_no_bound_even_repaired(x64):
  """With two clusters of images it lacks the bit that says which."""
  codebook = np.array([[-3.0], [3.0]])
  x = np.array([-3.0, 3.0])
  log_probs = np.array([[0.0, -np.inf], [-np.inf, 0.0]])[:, None]
  variance = 0.25  # Of z, in the prior and the posterior.
  q = mixture.Mixture(log_probs, codebook, np.full((2, 1, 2), variance))
  q_c = np.array([0.5, 0.5])
  found = terms_of(q, q_c, latent_variance=variance)
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


def test_the_coupled_albo_lacks_the_information_of_codes(x64):
  """On average over images, I(x; c), summed over positions."""
  x, q, _ = model(2, 2, codes=5, images=6)
  probs = np.exp(q.log_weights)
  q_c = probs.mean(axis=(0, 1))
  found = terms_of(q, q_c, latent_variance=LATENT)
  of = bounds.bounds(np.zeros(len(x)), found)
  information = 2 * np.mean(np.sum(probs * np.log(probs / q_c), axis=-1))
  np.testing.assert_allclose(
      np.mean(of.albo_coupled_repaired - of.elbo), information
  )


GROUPS = (1, 4, 12)


@jitted
def bounds_of_weights(weights):
  """The bounds of `[n, ...]` log weights, by groups of `GROUPS`."""

  def add(state, weight):
    return bounds.add_weights(state, weight, GROUPS), None

  state = bounds.no_weights(GROUPS, weights.shape[1:])
  state, _ = jax.lax.scan(add, state, weights)
  return bounds.importance_bounds(state, GROUPS)


@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_weights_are_added_one_by_one(scale, rng):
  """As all at once in float64, however small they are."""
  weights = rng.normal(size=(24, 2, 3)) - scale
  found = bounds_of_weights(weights.astype(np.float32))
  for k, bound in zip(GROUPS, found, strict=True):
    groups = weights.reshape(24 // k, k, 2, 3)
    expected = np.log(np.mean(np.exp(groups + scale), axis=1)) - scale
    np.testing.assert_allclose(
        bound,
        expected.mean(axis=0),
        atol=2e-7 * scale + 1e-6,
        err_msg=f'groups of {k}',
    )


def test_a_bound_without_a_complete_group_is_nan():
  """Here that of 12 weights, after 8."""
  one, four, twelve = bounds_of_weights(np.full((8, 2, 3), 3, np.float32))
  np.testing.assert_allclose(one, 3, rtol=1e-6)
  np.testing.assert_allclose(four, 3, rtol=1e-6)
  assert np.isnan(twelve).all()


def test_bits_are_of_256_levels():
  """A density of 1 on [0, 1] is 1/255 a level; twice that is a bit less."""
  np.testing.assert_allclose(bounds.bits_per_dim(0.0, 10), np.log2(255))
  np.testing.assert_allclose(
      bounds.bits_per_dim(10 * np.log(2), 10), np.log2(255) - 1
  )


def test_samples_are_of_the_mixture(x64):
  weights = np.array([0.0, 0.2, 0.5, 0.3, 0.0])
  means = np.arange(10.0).reshape(5, 2)
  variances = np.array([1.0, 0.1, 0.2, 0.3, 1.0])
  count = 40000
  with np.errstate(divide='ignore'):
    log_weights = np.log(weights)
  many = mixture.Mixture(
      np.broadcast_to(log_weights, (count, 5)),
      means,
      np.broadcast_to(variances, (count, 5)),
  )
  z, codes = jitted(mixture.sample)(jax.random.key(0), many)
  assert z.shape == (count, 2)
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
  z = rng.normal(size=(4, 2, 3))
  each = log_normal(z[:, :, None], codebook, q.variances)
  expected = np.log(np.sum(np.exp(each + q.log_weights), axis=-1))
  np.testing.assert_allclose(log_density(q, z), expected, rtol=1e-10)


def test_training_samples_from_the_posterior(rng):
  """Same codes, same variances as `posterior.sample_latents`."""
  z_hat, codebook = rng.normal(size=(500, 3)), rng.normal(size=(4, 3))
  z_hat, codebook = z_hat.astype(np.float32), codebook.astype(np.float32)
  sampled = jitted(
      functools.partial(
          posterior.sample_latents, temperature=1.0, two_sigma2=2.0
      )
  )(jax.random.key(0), z_hat, np.ones_like(z_hat), codebook)
  q = posterior_of(z_hat, sampled.log_probs, codebook, two_sigma2=2.0)
  variances = np.take_along_axis(q.variances, sampled.codes[:, None], axis=-1)
  np.testing.assert_allclose(variances[:, 0], sampled.variance, rtol=1e-4)


@jitted
def log_ratio(z_hat, z, codebook):
  q = mixture_of(z_hat, jnp.ones_like(z_hat), codebook)
  return bounds.log_ratio(q, mixture.prior(codebook, 0.5), z)


@pytest.mark.parametrize('spread', [0.3, 0.1])
def test_float32_is_enough(spread):
  """At the size of an image, against float64."""

  def ratio(dtype):
    rng = np.random.default_rng(0)
    codebook = rng.normal(size=(256, 64)).astype(dtype)
    z_hat = codebook[rng.integers(256, size=64)]
    z_hat = z_hat + dtype(spread) * rng.normal(size=(64, 64)).astype(dtype)
    z = z_hat + dtype(spread) * rng.normal(size=(64, 64)).astype(dtype)
    return log_ratio(z_hat, z, codebook)

  with jax.enable_x64(True):
    expected = ratio(np.float64)
  assert expected.dtype == np.float64
  np.testing.assert_allclose(ratio(np.float32), expected, atol=0.05)
