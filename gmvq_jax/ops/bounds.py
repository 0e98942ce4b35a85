"""Bounds on log p(x) under the generative model of GM-VQ, and what is none.

The model, eq 6, of the paper's section 3.1: at each of P positions c ~ 1/C and
z ~ N(mu_c, sigma_z^2 I); then x ~ N(D(z), sigma_x^2 I), of D values. The
posterior is `mixture.posterior`. docs/derivation.md derives what is here.

Shapes: `[...]` are images, `[..., P]` their positions, all of one image
independent of each other. Everything is in nats per image, and a density of x
on [0, 1]; `bits_per_dim` converts.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import mixture as mixture_lib
from gmvq_jax.ops import numerics
from gmvq_jax.ops.albo import kl_to_uniform
from gmvq_jax.ops.categorical import posterior_entropy


class Terms(NamedTuple):
  """What bounds are made of besides the likelihood, each `[...]`.

  Attributes:
    cross: E log p(z|c), c the code that z is drawn with.
    cross_independent: the same with c ~ q(c), apart from z, as eq 11 has it.
    code_kl: KL(q(c|x) || p(c)), summed over positions.
    aggregated_kl: KL(q(c) || p(c)), times the positions.
    noise_entropy: H(z|c, x), what the repair adds. Below 0 where the variances
      of eq 18 are less than 1 / (2 pi e).
  """

  cross: jax.Array
  cross_independent: jax.Array
  code_kl: jax.Array
  aggregated_kl: jax.Array
  noise_entropy: jax.Array


class Bounds(NamedTuple):
  """Bounds, and what is called one, each `[...]`.

  Attributes:
    albo: eq 11 as printed, c and z independent. No bound: it lacks the entropy
      of z.
    albo_coupled: the same with z drawn through c; minus this is the loss of eqs
      13-14 in its `coupled` reading. No bound.
    albo_repaired: `albo` and a lower bound on the entropy that it lacks. A
      lower bound on log p(x), for any q(c).
    albo_coupled_repaired: `albo_coupled` and the same. No bound: on average it
      is the ELBO and what codes tell of images and positions, which the
      aggregated posterior leaves out.
    elbo: with the categorical posterior q(c|x). A lower bound.
  """

  albo: jax.Array
  albo_coupled: jax.Array
  albo_repaired: jax.Array
  albo_coupled_repaired: jax.Array
  elbo: jax.Array


def terms(
    posterior: mixture_lib.Mixture,
    q_c: jax.Array,
    *,
    latent_variance: chex.Numeric,
) -> Terms:
  """Returns the terms of bounds, in closed form.

  Args:
    posterior: q(z|x), its weights and variances `[..., P, C]`.
    q_c: `[C]`, the aggregated posterior, eq 12.
    latent_variance: sigma_z^2.
  """
  log_weights, means, variances = posterior
  dim = means.shape[-1]
  log_codes = math.log(len(means))
  entropies = 0.5 * dim * jnp.log(2 * math.pi * math.e * variances)

  def expect(values: jax.Array) -> jax.Array:
    """Over codes by q(c|x), then summed over positions."""
    return jnp.sum(jnp.exp(log_weights) * values, axis=(-2, -1))

  centre = jnp.matmul(q_c, means, precision=numerics.PRECISION)
  square = jnp.sum(jnp.square(means - centre), axis=-1)
  positions = log_weights.shape[-2]
  noise = dim * expect(variances)
  # E |mu_c - mu_c'|^2 with c ~ q(c|x) and c' ~ q(c).
  apart = expect(square) + positions * jnp.sum(q_c * square)
  constant = positions * 0.5 * dim * jnp.log(2 * math.pi * latent_variance)
  code_entropy = jnp.sum(posterior_entropy(log_weights), axis=-1)
  return Terms(
      cross=-constant - 0.5 * noise / latent_variance,
      cross_independent=-constant - 0.5 * (noise + apart) / latent_variance,
      code_kl=positions * log_codes - code_entropy,
      aggregated_kl=positions * kl_to_uniform(q_c) + jnp.zeros_like(noise),
      noise_entropy=expect(entropies),
  )


def bounds(log_likelihood: jax.Array, of: Terms) -> Bounds:
  """Returns the bounds.

  Args:
    log_likelihood: `[...]`, E log p(x|z) over q(z|x), or an unbiased estimate.
    of: the other terms.
  """
  albo = log_likelihood + of.cross_independent - of.aggregated_kl
  coupled = log_likelihood + of.cross - of.aggregated_kl
  return Bounds(
      albo=albo,
      albo_coupled=coupled,
      albo_repaired=albo + of.noise_entropy,
      albo_coupled_repaired=coupled + of.noise_entropy,
      elbo=log_likelihood + of.cross - of.code_kl + of.noise_entropy,
  )


def log_likelihood(
    squared_error: jax.Array, variance: chex.Numeric, *, data_dim: int
) -> jax.Array:
  """Returns log p(x|z) of a Gaussian.

  Args:
    squared_error: `|x - D(z)|^2`, summed over the values of an image.
    variance: sigma_x^2.
    data_dim: D.
  """
  constant = data_dim * jnp.log(2 * math.pi * variance)
  return -0.5 * (squared_error / variance + constant)


def log_ratio(
    posterior: mixture_lib.Mixture, prior: mixture_lib.Mixture, z: jax.Array
) -> jax.Array:
  """Returns log p(z) - log q(z|x), `[...]`, of latents `[..., P, L]`.

  Both around the same means. With log p(x|z) it is the logarithm of an
  importance weight. The code is summed out of both, which can only raise the
  bounds made of it.
  """
  return jnp.sum(mixture_lib.log_ratio(prior, posterior, z), axis=-1)


class Importance(NamedTuple):
  """Importance-weighted bounds (IWAE), as their weights come in.

  Burda 2016, https://arxiv.org/abs/1509.00519: `E log(mean of k weights)` is a
  lower bound that rises to log p(x) with k. Of n weights there are n / k
  independent groups, whose mean is taken.

  Attributes:
    count: `[]` int32, weights so far.
    group: `[sizes, ...]`, the log of the sum of those in unfinished groups.
    total: `[sizes, ...]`, the sum of the bounds of finished ones.
  """

  count: jax.Array  # type: ignore[assignment]  # Not the method of tuples.
  group: jax.Array
  total: jax.Array


def no_weights(sizes: tuple[int, ...], shape: tuple[int, ...]) -> Importance:
  """Returns the start of bounds by k weights, k in `sizes`, of `[...]`."""
  zeros = jnp.zeros((len(sizes), *shape))
  return Importance(jnp.zeros((), jnp.int32), zeros - jnp.inf, zeros)


def add_weights(
    importance: Importance, log_weights: jax.Array, sizes: tuple[int, ...]
) -> Importance:
  """Adds one weight of each image, `log_weights [...]`."""
  count = importance.count + 1
  group = jnp.logaddexp(importance.group, log_weights)
  k = jnp.reshape(jnp.asarray(sizes), (-1,) + (1,) * log_weights.ndim)
  done = count % k == 0
  return Importance(
      count,
      jnp.where(done, -jnp.inf, group),
      importance.total + jnp.where(done, group - jnp.log(k), 0),
  )


def importance_bounds(
    importance: Importance, sizes: tuple[int, ...]
) -> jax.Array:
  """Returns the bounds `[sizes, ...]`; NaN where no group is complete."""
  groups = importance.count // jnp.asarray(sizes)
  shape = (-1,) + (1,) * (importance.total.ndim - 1)
  return importance.total / jnp.reshape(groups, shape)


def bits_per_dim(nats: chex.Numeric, data_dim: int) -> chex.Numeric:
  """Returns -log2 of a density, per value, on the scale of 256 levels.

  Those are 1/255 apart. Lower is better. Images are taken as they are, without
  noise to make them continuous, so it is no rate at which they could be coded.

  Args:
    nats: the log-density of an image on [0, 1].
    data_dim: values in it.
  """
  return math.log2(255) - nats / (data_dim * math.log(2))
