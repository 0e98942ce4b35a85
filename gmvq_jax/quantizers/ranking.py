"""The most probable codes of a position."""

import chex
import jax

from gmvq_jax.quantizers import base


def top_codes(
    quantizer: base.Quantizer,
    params: base.Params,
    state: base.State,
    h: jax.Array,
    k: int,
    *,
    temperature: chex.Numeric = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns the k most probable codes of each position, the best first.

  The first is that of evaluation. Probabilities are those of the posterior;
  where there is none, of `softmax(-|z - e|^2 / temperature)`. Of a residual
  quantizer they are those of each level after the best codes of levels before.

  It holds arrays of `[N, C]`.

  Args:
    quantizer: any.
    params: of it.
    state: of it.
    h: `[..., sum(heads)]`.
    k: how many.
    temperature: what logits are divided by; positive.

  Returns:
    Codes `[..., *code_shape, k]` int32, and their log-probabilities in nats, of
    the same shape, float32 or wider.

  Raises:
    ValueError: for a k less than 1 or more than C.
  """
  if not 1 <= k <= quantizer.num_codes:
    raise ValueError(
        f'top_codes: k={k}: must be from 1 to the {quantizer.num_codes} codes'
    )
  logits = quantizer.logits(params, state, h)
  log_probs, codes = jax.lax.top_k(
      jax.nn.log_softmax(logits / temperature), k
  )
  return codes, log_probs
