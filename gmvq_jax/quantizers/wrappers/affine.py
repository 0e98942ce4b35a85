"""An affine map shared by all codewords."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.wrappers import checks


def with_affine(
    inner: base.Quantizer, *, affine_scale: float = 2.0, affine_groups: int = 1
) -> base.Quantizer:
  """Moves all codewords together (Huh 2023, https://arxiv.org/abs/2305.08842).

  The codebook that is searched is `(1 + s a) e + s b`, with a and b `[L]`
  shared by all codes of a group, 0 at initialisation, and s the factor on their
  learning rate, which the paper takes from 2 to 10. A codeword that no latent
  chose moves with the rest.

  Parameters: `{'inner': ..., 'scale': [G, L], 'shift': [G, L]}`. State and
  metrics are those of `inner`.

  Args:
    inner: what searches the codebook.
    affine_scale: s.
    affine_groups: G, a divisor of C; code c is of group `c G // C`.

  Raises:
    ValueError: if the groups do not divide C, if no gradient reaches the
      codebook, and as `with_l2_normalization`.
  """
  inner_read, inner_write = checks.codebook_of('affine', inner)
  wrappers = checks.wrap('affine', inner, 'map', 'average')
  common.check_range('affine', 'greater than 0', affine_scale=affine_scale)
  common.check_sizes('affine', affine_groups=affine_groups)
  if inner.num_codes % affine_groups:
    raise ValueError(
        f'affine: affine_groups={affine_groups}: must divide the'
        f' {inner.num_codes} codes'
    )

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    params, state = inner.init(key)
    rows = inner_read(params, state)
    zeros = jnp.zeros((affine_groups, rows.shape[1]))
    return {'inner': params, 'scale': zeros, 'shift': zeros}, state

  def factors(params: base.Params) -> tuple[jax.Array, jax.Array]:
    """Returns scale and shift of each code, `[C, L]`."""
    group = jnp.arange(inner.num_codes) * affine_groups // inner.num_codes
    scale = (1 + affine_scale * params['scale'])[group]
    return scale, (affine_scale * params['shift'])[group]

  def read(params: base.Params, state: base.State) -> jax.Array:
    scale, shift = factors(params)
    return scale * inner_read(params['inner'], state) + shift

  def inverse(params: base.Params, rows: jax.Array) -> jax.Array:
    scale, shift = factors(params)
    tiny = jnp.where(scale < 0, -1e-6, 1e-6)
    return (rows - shift) / jnp.where(jnp.abs(scale) < 1e-6, tiny, scale)

  def write(
      params: base.Params, state: base.State, rows: jax.Array, where: jax.Array
  ) -> tuple[base.Params, base.State]:
    raw = inverse(params, rows)
    written, state = inner_write(params['inner'], state, raw, where)
    return {**params, 'inner': written}, state

  def mapped(
      params: base.Params, state: base.State
  ) -> tuple[base.Params, base.State]:
    """Returns params and state of `inner` with the mapped codebook."""
    rows = read(params, state)
    return inner_write(params['inner'], state, rows, checks.everywhere(rows))

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    there, state = mapped(params, state)
    quantized, state = call.apply(inner, there, state)
    # Where it is in the state, the codebook is brought back to before the map.
    rows = inverse(params, inner_read(there, state))
    _, state = inner_write(there, state, rows, checks.everywhere(rows))
    return quantized, state

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    return inner.embed(*mapped(params, state), codes)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    return inner.logits(*mapped(params, state), h)

  def finish(
      params: base.Params, state: base.State
  ) -> tuple[base.Params, base.State, base.Params]:
    finished, state, fresh = inner.finish(params['inner'], state)
    never = jnp.zeros((), jnp.int32)
    fresh = {'inner': fresh, 'scale': never, 'shift': never}
    return {**params, 'inner': finished}, state, fresh

  return inner._replace(
      init=init,
      apply=common.as_apply('affine', inner.heads, quantize),
      embed=embed,
      read=read,
      write=write,
      finish=finish,
      logits=logits,
      wrappers=wrappers,
  )
