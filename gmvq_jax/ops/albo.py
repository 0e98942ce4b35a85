"""The ALBO objective: eqs 13-14 of arXiv 2410.10180, each term apart.

Shapes: `B` images, `C` codes, `L` the dimension of a latent; the leading
dimensions of latents are free.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import chunked_map
from gmvq_jax.ops import numerics
from gmvq_jax.ops import placement
from gmvq_jax.ops import posterior
from gmvq_jax.ops import soft_assignment


class Albo(NamedTuple):
  """The terms of eq 13, in the normalisation of `albo`.

  Attributes:
    reconstruction: `[]`, mean squared error per pixel and channel.
    latent: `[]`, the latent term of eq 14, per position and summed over L.
    kl: `[]`, KL(q(c) || uniform) in nats.
    loss: `[]`, their sum as it is minimised.
  """

  reconstruction: jax.Array
  latent: jax.Array
  kl: jax.Array
  loss: jax.Array


def albo(
    squared_error: jax.Array,
    latent: jax.Array,
    q_c: jax.Array,
    *,
    gamma: chex.Numeric,
    beta: chex.Numeric,
    data_dim: int,
    positions: int,
) -> Albo:
  """Returns the ALBO, eqs 13-14, divided by the number of values in an image.

  The paper sums over pixels, positions and latent dimensions. Divided by
  `data_dim` its first term is the familiar mean squared error:
  `loss = MSE + gamma * positions / data_dim * (latent + beta * kl)`.

  Args:
    squared_error: `[B]`, |x - D(z)|^2 summed over each image.
    latent: `[]`, one of the `latent_*` terms, averaged over positions.
    q_c: `[C]`, the aggregated posterior of eq 12.
    gamma: weight of the regulariser, eq 13.
    beta: weight of the KL within the regulariser, eq 14.
    data_dim: values in one image, height x width x channels.
    positions: latent positions in one image.
  """
  chex.assert_rank([squared_error, latent, q_c], [1, 0, 1])
  squared_error, latent = numerics.promote(squared_error, latent)
  reconstruction = jnp.mean(squared_error) / data_dim
  kl = kl_to_uniform(q_c)
  weight = positions / data_dim
  loss = reconstruction + weight * regulariser(
      latent, kl, gamma=gamma, beta=beta
  )
  return Albo(reconstruction, latent, kl, loss)


def regulariser(
    latent: jax.Array,
    kl: jax.Array,
    *,
    gamma: chex.Numeric,
    beta: chex.Numeric,
) -> jax.Array:
  """Returns `gamma L_reg` per position, `[]`, eqs 13-14.

  Args:
    latent: `[]`, one of the `latent_*` terms, averaged over positions.
    kl: `[]`, KL(q(c) || uniform) in nats.
    gamma: weight of the regulariser, eq 13.
    beta: weight of the KL within it, eq 14.
  """
  return (latent + beta * kl) * gamma


def kl_to_uniform(q_c: jax.Array) -> jax.Array:
  """Returns KL(q || uniform) in nats, `[...]`, from `q_c [..., C]`.

  0 log 0 is 0.
  """
  return jnp.log(q_c.shape[-1]) - _entropy(q_c)


def perplexity(q_c: jax.Array) -> jax.Array:
  """Returns 2^H(q), H in bits: `[...]`, from 1 to C, from `q_c [..., C]`."""
  return jnp.exp(_entropy(q_c))


def latent_coupled(
    z_hat: jax.Array, codewords: jax.Array, *, two_sigma2: chex.Numeric = 1.0
) -> jax.Array:
  """Returns E|z - mu_j|^2 with j the code that z was drawn with, eq 14.

  In closed form over the Gaussian noise: `|z_hat - mu_j|^2 / two_sigma2`. This
  is what the paper's prose describes, and the default here.

  Args:
    z_hat: `[..., L]`.
    codewords: `[..., L]`, mu_j.
    two_sigma2: 2 sigma^2 of eq 18.

  Returns:
    `[...]`, summed over L.
  """
  variance = posterior.component_variance(
      z_hat, codewords, two_sigma2=two_sigma2
  )
  return z_hat.shape[-1] * variance


def latent_expected(
    z_hat: jax.Array,
    log_probs: jax.Array,
    codebook: jax.Array,
    *,
    two_sigma2: chex.Numeric = 1.0,
) -> jax.Array:
  """Returns the latent term of eq 14 averaged over q(c|x).

  `sum_c pi_c |z_hat - mu_c|^2 / two_sigma2`, which also lowers H(q(c|x)).

  Args:
    z_hat: `[..., L]`.
    log_probs: `[..., C]`, log q(c|x).
    codebook: `[C, L]`.
    two_sigma2: 2 sigma^2 of eq 18.

  Returns:
    `[...]`, summed over L.
  """
  z_hat, log_probs, codebook = numerics.promote(z_hat, log_probs, codebook)
  probs = jnp.exp(log_probs)
  mean = jnp.matmul(probs, codebook, precision=numerics.PRECISION)
  energy = jnp.matmul(
      probs,
      jnp.sum(jnp.square(codebook), axis=-1),
      precision=numerics.PRECISION,
  )
  # The variance of the codewords under pi, plus the distance to their mean.
  spread = energy - jnp.sum(jnp.square(mean), axis=-1)
  distance = jnp.sum(jnp.square(z_hat - mean), axis=-1) + spread
  return distance / two_sigma2


def latent_expected_of(
    z_hat: jax.Array,
    weights: jax.Array,
    codebook: jax.Array,
    *,
    two_sigma2: chex.Numeric = 1.0,
    method: str = 'plain',
) -> jax.Array:
  """Returns `latent_expected` under the posterior of eqs 16-17.

  Args:
    z_hat: `[..., L]`.
    weights: `[..., L]`, non-negative precisions.
    codebook: `[C, L]`.
    two_sigma2: 2 sigma^2 of eq 18.
    method: see `soft_assignment.plan`; only `plain` holds arrays of `[N, C]`.

  Returns:
    `[...]`, summed over L.
  """

  def of_rows(
      codebook: jax.Array, rows: tuple[jax.Array, jax.Array], seeds: None
  ) -> tuple[tuple[()], jax.Array]:
    del seeds
    log_probs = posterior.log_posterior(*rows, codebook)
    return (), latent_expected(rows[0], log_probs, codebook)

  z_hat, weights = numerics.promote(z_hat, weights)
  (codebook,) = numerics.promote(codebook)
  shape = z_hat.shape[:-1]
  devices = placement.num_devices(z_hat)
  plan = soft_assignment.plan(
      method, math.prod(shape), len(codebook), devices, whole=True
  )
  if plan.rows is None:
    _, distance = of_rows(codebook, (z_hat, weights), None)
  else:
    flat = tuple(x.reshape(-1, x.shape[-1]) for x in (z_hat, weights))
    _, distance = chunked_map.map_rows(
        of_rows, plan.rows, plan.shards, *numerics.vary((codebook, flat, None))
    )
  return distance.reshape(shape) / two_sigma2


def latent_aggregated(
    z: jax.Array, q_c: jax.Array, codebook: jax.Array
) -> jax.Array:
  """Returns the latent term of eq 14 read literally: c ~ q(c), apart from z.

  `sum_c q(c) |z - mu_c|^2 = |z - m|^2 + sum_c q(c) |mu_c - m|^2` with
  `m = sum_c q(c) mu_c`. It contracts the codebook.

  Args:
    z: `[..., L]`, sampled latents.
    q_c: `[C]`, the aggregated posterior.
    codebook: `[C, L]`.

  Returns:
    `[...]`, summed over L.
  """
  z, q_c, codebook = numerics.promote(z, q_c, codebook)
  mean = jnp.matmul(q_c, codebook, precision=numerics.PRECISION)
  spread = jnp.sum(q_c * jnp.sum(jnp.square(codebook - mean), axis=-1))
  return jnp.sum(jnp.square(z - mean), axis=-1) + spread


def _entropy(q_c: jax.Array) -> jax.Array:
  """Returns the entropy of `q_c [..., C]` in nats, its gradient finite at 0."""
  (q_c,) = numerics.promote(q_c)
  positive = q_c > 0
  log_q = jnp.log(jnp.where(positive, q_c, 1))
  return -jnp.sum(jnp.where(positive, q_c * log_q, 0), axis=-1)
