"""GM-VQ in float64 NumPy, straight from the paper, loops and all.

And derivatives by finite differences.
"""

import jax
import numpy as np


def posterior(z_hat, weights, codebook):
  """q(c|x) of one position, eqs 16-17, as they are printed."""
  logits = np.array([
      -0.5 * np.sum(weights * (z_hat - mu) ** 2) for mu in codebook
  ])
  exp = np.exp(logits - logits.max())
  return exp / exp.sum()


def variance(z_hat, codeword, two_sigma2):
  """Eq 18."""
  return np.sum((z_hat - codeword) ** 2) / len(z_hat) / two_sigma2


def kl_to_uniform(q_c):
  """KL(q || uniform) in nats."""
  total = 0.0
  for q in q_c:
    if q > 0:
      total += q * np.log(q * len(q_c))
  return total


def albo(squared_error, latent, q_c, gamma, beta, data_dim, positions):
  """Eqs 13-14 summed over an image, divided by its values."""
  image_sum = np.mean(squared_error) + gamma * positions * (
      latent + beta * kl_to_uniform(q_c)
  )
  return image_sum / data_dim


def latent_coupled(z_hat, codeword, two_sigma2):
  """E|z - mu|^2 over z ~ N(mu, variance I)."""
  return len(z_hat) * variance(z_hat, codeword, two_sigma2)


def latent_expected(z_hat, probs, codebook, two_sigma2):
  """The same, averaged over the posterior."""
  return sum(
      p * np.sum((z_hat - mu) ** 2) / two_sigma2
      for p, mu in zip(probs, codebook, strict=True)
  )


def latent_aggregated(z, q_c, codebook):
  """E|z - mu_c|^2 over c ~ q(c)."""
  return sum(
      q * np.sum((z - mu) ** 2) for q, mu in zip(q_c, codebook, strict=True)
  )


def check_derivatives(function, *arrays, eps=1e-6, tolerance=1e-5):
  """Compares derivatives with central differences, in float64.

  Forward mode for each output, then backward mode, in a random direction.

  Args:
    function: of the arrays; returns `{name: array}`.
    *arrays: float64.
    eps: of the differences.
    tolerance: absolute and relative.
  """
  rng = np.random.default_rng(0)
  tangents = tuple(rng.normal(size=np.shape(x)) for x in arrays)
  cotangents = {
      name: rng.normal(size=output.shape)
      for name, output in jax.eval_shape(function, *arrays).items()
  }

  @jax.jit
  def differentiate(arrays):
    values, forward = jax.jvp(function, arrays, tangents)
    _, pullback = jax.vjp(function, *arrays)
    return values, forward, pullback(cotangents)

  def moved(step):
    pairs = zip(arrays, tangents, strict=True)
    return differentiate(tuple(x + step * t for x, t in pairs))[0]

  _, forward, backward = jax.device_get(differentiate(arrays))
  above, below = jax.device_get((moved(eps), moved(-eps)))
  projected = 0.0
  for name, cotangent in cotangents.items():
    numerical = (above[name] - below[name]) / (2 * eps)
    np.testing.assert_allclose(
        forward[name], numerical, tolerance, tolerance, err_msg=name
    )
    projected += np.sum(cotangent * numerical)
  pairs = zip(backward, tangents, strict=True)
  np.testing.assert_allclose(
      sum(np.sum(g * t) for g, t in pairs),
      projected,
      tolerance,
      tolerance,
      err_msg='backward mode',
  )
