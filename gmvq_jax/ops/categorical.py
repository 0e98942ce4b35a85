"""Sampling of categorical variables, with a relaxed gradient.

Shapes: leading dimensions are free; `C` is the number of categories.
"""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics


def gumbel_softmax(
    key: chex.PRNGKey,
    log_probs: jax.Array,
    *,
    temperature: chex.Numeric,
    hard: bool = True,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws codes from their log-probabilities, with a relaxed gradient.

  By the Gumbel-max trick the argmax of `log_probs + Gumbel noise` is an exact
  sample. Its one-hot has no gradient; that of the softmax at `temperature`
  takes its place (Jang 2017, https://arxiv.org/abs/1611.01144). The noise of
  the n-th position, all leading dimensions as one, is a function of
  `fold_in(key, n)`; see `counter_rng`.

  Args:
    key: random key.
    log_probs: `[..., C]`, log-probabilities, or logits up to a constant.
    temperature: of the softmax; positive.
    hard: whether the result is the one-hot, straight-through (True), or the
      softmax itself (False).
    axis_name: a mapped axis (of `pmap` or `shard_map`), of which positions are
      a part.

  Returns:
    `c_q [..., C]`, the one-hot or the softmax, and `codes [...]` int32.
  """
  (log_probs,) = numerics.promote(log_probs)
  num_rows = log_probs[..., 0].size
  seeds = counter_rng.row_seeds(key, num_rows, axis_name=axis_name)
  gumbel = counter_rng.gumbel(seeds, log_probs.shape[-1], dtype=log_probs.dtype)
  return relaxed_one_hot(
      log_probs + gumbel.reshape(log_probs.shape),
      temperature=temperature,
      hard=hard,
  )


def relaxed_one_hot(
    scores: jax.Array, *, temperature: chex.Numeric, hard: bool = True
) -> tuple[jax.Array, jax.Array]:
  """Returns where scores `[..., C]` are largest, as `gumbel_softmax` does."""
  _, codes = numerics.argmax(scores)
  soft = jax.nn.softmax(scores / temperature)
  if not hard:
    return soft, codes
  one_hot = jax.nn.one_hot(codes, scores.shape[-1], dtype=soft.dtype)
  return numerics.straight_through(one_hot, soft), codes


def posterior_entropy(log_probs: jax.Array) -> jax.Array:
  """Returns H(q(c|x)) in nats, `[...]`, from log-probabilities `[..., C]`."""
  (log_probs,) = numerics.promote(log_probs)
  probs = jnp.exp(log_probs)
  return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0), axis=-1)
