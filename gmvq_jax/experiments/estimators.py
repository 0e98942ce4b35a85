"""Gradients of E[f(c)], c a one-hot drawn by a softmax: exact and estimated.

Shapes: leading dimensions are free; `C` is the number of choices, `R` that of
draws from the same logits. A payoff `f` maps `[..., C]` to `[...]`, each row by
itself. Gradients are with respect to logits, `[..., C]`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import posterior

Payoff = Callable[[jax.Array], jax.Array]


class Moments(NamedTuple):
  """What repeated estimates tell of an estimator; squares may be below 0.

  Attributes:
    measured: `[...]`, the distance of the first average from the exact
      gradient. The paper calls it bias; it holds the error of the average too.
    bias2: `[...]`, the squared length of the bias, without that error.
    variance: `[...]`, of one draw, summed over components.
    length2: `[...]`, the squared length of the expected estimate.
    product: `[...]`, its scalar product with the exact gradient.
  """

  measured: jax.Array
  bias2: jax.Array
  variance: jax.Array
  length2: jax.Array
  product: jax.Array


def exact_gradient(f: Payoff, logits: jax.Array) -> jax.Array:
  """Returns `p (f - p.f)`, the gradient of the expected payoff."""
  probs = jax.nn.softmax(logits)
  payoffs = f(jnp.eye(logits.shape[-1]))
  expected = jnp.sum(probs * payoffs, axis=-1, keepdims=True)
  return probs * (payoffs - expected)


def gumbel_softmax(
    f: Payoff,
    key: chex.PRNGKey,
    logits: jax.Array,
    *,
    temperature: chex.Numeric,
    hard: bool,
) -> jax.Array:
  """Estimates through `posterior.gumbel_softmax`, once for each row."""

  def total(logits):
    c_q, _ = posterior.gumbel_softmax(
        key, logits, temperature=temperature, hard=hard
    )
    return jnp.sum(f(c_q))

  return jax.grad(total)(logits)


def reinforce(f: Payoff, key: chex.PRNGKey, logits: jax.Array) -> jax.Array:
  """Estimates by the score function (Williams 1992), once for each row.

  From the payoff of each draw is taken the mean of those of the R - 1 others,
  which leaves the estimate without bias (Kool 2019, "Buy 4 REINFORCE samples,
  get a baseline for free!").

  Args:
    f: the payoff.
    key: random key.
    logits: `[..., R, C]`, the same R times, at least twice.
  """
  repeats = logits.shape[-2]
  draws, _ = posterior.gumbel_softmax(key, logits, temperature=1.0)
  payoffs = f(draws)
  others = payoffs.sum(axis=-1, keepdims=True) - payoffs
  advantages = payoffs - others / (repeats - 1)
  return advantages[..., None] * (draws - jax.nn.softmax(logits))


def noise_of_others(
    f: Payoff, logits: jax.Array, *, others: int, repeats: int
) -> jax.Array:
  """Returns what one draw of `reinforce` gains in variance in company.

  Where the payoff is a sum over independent choices that are all alike, each
  is told the payoffs of all.

  Args:
    f: the payoff of one choice.
    logits: `[..., C]`, of each.
    others: how many more choices there are.
    repeats: R.

  Returns:
    `[...]`, to be added to `Moments.variance`.
  """
  probs = jax.nn.softmax(logits)
  payoffs = f(jnp.eye(logits.shape[-1]))
  expected = jnp.sum(probs * payoffs, axis=-1, keepdims=True)
  variance = jnp.sum(probs * jnp.square(payoffs - expected), axis=-1)
  scores2 = 1 - jnp.sum(jnp.square(probs), axis=-1)
  return others * variance * scores2 * repeats / (repeats - 1)


def moments(averages: jax.Array, exact: jax.Array, *, repeats: int) -> Moments:
  """Returns bias and variance apart.

  Args:
    averages: `[rounds, ..., C]`, independent ones of R estimates each; at least
      two.
    exact: `[..., C]`.
    repeats: R.
  """
  rounds = averages.shape[0]
  chex.assert_equal_shape([averages[0], exact])
  mean = averages.mean(axis=0)
  variance = jnp.sum(jnp.var(averages, axis=0, ddof=1), axis=-1)
  # The expected square of a mean is the square of what is expected, and this.
  error2 = variance / rounds
  return Moments(
      measured=jnp.linalg.norm(averages[0] - exact, axis=-1),
      bias2=jnp.sum(jnp.square(mean - exact), axis=-1) - error2,
      variance=variance * repeats,
      length2=jnp.sum(jnp.square(mean), axis=-1) - error2,
      product=jnp.sum(mean * exact, axis=-1),
  )
