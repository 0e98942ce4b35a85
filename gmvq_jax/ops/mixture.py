"""Mixtures of isotropic Gaussians around one codebook.

GM-VQ has two: the prior p(z), eq 6, and the posterior q(z|x) of each position,
eqs 7-9. Shapes: leading dimensions are free; `C` codes, `L` the dimension of a
latent. Logarithms are natural.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.ops import posterior as posterior_lib


class Mixture(NamedTuple):
  """`sum_c exp(log_weights_c) N(means_c, variances_c I)`.

  Attributes:
    log_weights: `[..., C]`, of probabilities that sum to 1.
    means: `[C, L]`, the codebook.
    variances: `[..., C]`, positive.
  """

  log_weights: jax.Array
  means: jax.Array
  variances: jax.Array


def prior(
    codebook: jax.Array,
    variance: chex.Numeric,
    *,
    q_c: jax.Array | None = None,
) -> Mixture:
  """Returns p(z) of a position, eq 6.

  Args:
    codebook: `[C, L]`.
    variance: sigma_z^2, of every component.
    q_c: `[C]`, the probabilities of codes; uniform by default, as in the paper.
  """
  (codebook,) = numerics.promote(codebook)
  size = len(codebook)
  q_c = jnp.full(size, 1 / size, codebook.dtype) if q_c is None else q_c
  return Mixture(
      jnp.log(q_c), codebook, jnp.full(size, variance, codebook.dtype)
  )


def posterior(
    z_hat: jax.Array,
    log_probs: jax.Array,
    codebook: jax.Array,
    *,
    two_sigma2: float = 1.0,
) -> Mixture:
  """Returns q(z|x) of each position: eqs 9, 17 and 18.

  What `posterior.sample_latents` draws from with `hard=True`.

  Args:
    z_hat: `[..., L]`, the encoder's latents.
    log_probs: `[..., C]`, log q(c|x).
    codebook: `[C, L]`.
    two_sigma2: 2 sigma^2 of eq 18.
  """
  z_hat, log_probs, codebook = numerics.promote(z_hat, log_probs, codebook)
  square = _square_distances(z_hat, codebook) / z_hat.shape[-1]
  variances = square / two_sigma2 + posterior_lib.VARIANCE_EPS
  return Mixture(log_probs, codebook, variances)


def cumulative(mixture: Mixture) -> jax.Array:
  """Returns the cumulative weights, `[..., C]`, that `sample` looks up."""
  return jnp.cumsum(jnp.exp(mixture.log_weights), axis=-1)


def sample(
    key: chex.PRNGKey, mixture: Mixture, below: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Draws from a mixture.

  Args:
    key: random key.
    mixture: of `[...]` positions.
    below: its `cumulative`, for many samples to share.

  Returns:
    Latents `[..., L]`, and the codes they are drawn with, `[...]`.
  """
  code_key, noise_key = jax.random.split(key)
  below = cumulative(mixture) if below is None else below
  height = jax.random.uniform(code_key, below.shape[:-1], below.dtype)
  height = height[..., None] * below[..., -1:]
  # Not past the last code that has any weight, whatever was rounded.
  codes = jnp.sum((below <= height) & (below < below[..., -1:]), axis=-1)
  variance = jnp.take_along_axis(mixture.variances, codes[..., None], axis=-1)
  mean = mixture.means[codes]
  noise = jax.random.normal(noise_key, mean.shape, mean.dtype)
  return mean + jnp.sqrt(variance) * noise, codes


def log_density(mixture: Mixture, z: jax.Array) -> jax.Array:
  """Returns the log-density `[...]` of latents `z [..., L]`, in nats.

  There is no array of shape `[..., C, L]`. Distances are of float32 products:
  with 64 dimensions at unit scale and variances of 1e-2 an image of 64
  positions is exact to 0.01 nats, at 1e-4 to one or two.
  """
  square = _square_distances(z, mixture.means)
  return _log_density(mixture, square, z.shape[-1])


def log_ratio(one: Mixture, other: Mixture, z: jax.Array) -> jax.Array:
  """Returns the log of the ratio of two densities, `[...]`, at `z [..., L]`.

  Of mixtures around the same means.
  """
  square = _square_distances(z, one.means)
  dim = z.shape[-1]
  return _log_density(one, square, dim) - _log_density(other, square, dim)


def _log_density(mixture: Mixture, square: jax.Array, dim: int) -> jax.Array:
  log_variances = jnp.log(2 * math.pi * mixture.variances)
  return jax.nn.logsumexp(
      mixture.log_weights
      - 0.5 * (square / mixture.variances + dim * log_variances),
      axis=-1,
  )


def _square_distances(z: jax.Array, means: jax.Array) -> jax.Array:
  """Returns `|z - mean|^2`, `[..., C]`, by one matrix product."""
  z, means = numerics.promote(z, means)
  centre = posterior_lib.centre_of(means)
  z, means = z - centre, means - centre
  products = jnp.matmul(z, means.T, precision=numerics.PRECISION)
  norms = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
  square = norms - 2 * products + jnp.sum(jnp.square(means), axis=-1)
  return jnp.maximum(square, 0)
