"""K-means initialisation of a quantizer."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import clustering
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common


def kmeans_start(
    key: chex.PRNGKey,
    quantizer: base.Quantizer,
    params: base.Params,
    state: base.State,
    h: jax.Array,
    *,
    mask: jax.Array | None = None,
    num_iterations: int = 10,
) -> tuple[base.Params, base.State]:
  """Returns params and state with the centroids of latents as the codebook.

  Each level of a residual quantizer is initialised on the residuals of those
  before it, but a shared codebook on the latents; each group of a grouped one
  on its own channels.

  Args:
    key: random key.
    quantizer: any; one without a codebook to write is not changed.
    params: of it.
    state: of it.
    h: `[..., sum(heads)]`, latents of at least C positions.
    mask: `[...]`, positions that count; all by default.
    num_iterations: of Lloyd's algorithm.

  Raises:
    ValueError: when there are fewer positions than codes; where the mask is
      traced, padding is not told from them.
  """
  h, mask = common.apply_mask(h, mask, quantizer.heads)
  if quantizer.initialize is not None:
    return quantizer.initialize(
        key, params, state, h, mask=mask, num_iterations=num_iterations
    )
  if quantizer.write is None:
    return params, state
  if not isinstance(mask, jax.core.Tracer):
    count = int(jnp.sum(mask))
    if count < quantizer.num_codes:
      raise ValueError(
          f'kmeans_start: {count} positions for {quantizer.num_codes} codes:'
          ' give at least as many'
      )
  latents = h[..., : quantizer.heads[0]]
  rows, _ = clustering.kmeans(
      key,
      latents.reshape(-1, latents.shape[-1]),
      quantizer.num_codes,
      num_iterations=num_iterations,
      mask=mask.reshape(-1),
  )
  return quantizer.write(params, state, rows, jnp.ones(len(rows), bool))
