"""Replacement of codes that are no longer used."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.wrappers import checks


def with_replacement(
    inner: base.Quantizer,
    *,
    replace_after: int = 20,
    replace_noise: float = 0.01,
) -> base.Quantizer:
  """Replaces codes that were not used for some steps.

  Zeghidour 2021 (https://arxiv.org/abs/2107.03312) and Dhariwal 2020
  (https://arxiv.org/abs/2005.00341): a code that no position of the last
  `replace_after` training steps has chosen becomes a random latent of the
  batch plus Gaussian noise. Its counter is reset, and what `inner` counts of
  it; its moments in the optimiser are reset by `gmvq_jax.optimizer`.

  `apply` replaces codes by itself, in the state it returns: a codebook that is
  state is written, and to one that is trained by gradients an offset is added,
  which `finish` moves to the parameters for those who want it there.

  Within a shared `residual` each level counts as a step.

  Parameters are those of `inner`. State: `{'inner': ..., 'unused': [C] int32,
  'replaced': [C] int32}`, how long each code has not been used and how often it
  was replaced since the last `finish`, and `'offset'`, like the parameters.

  Args:
    inner: what searches the codebook.
    replace_after: steps.
    replace_noise: its norm, relative to the latent's.

  Raises:
    ValueError: if `inner` has no codebook that latents are compared with, or
      it is frozen.
  """
  inner_read, inner_write = checks.codebook_of('replace', inner)
  wrappers = checks.wrap('replace', inner, 'frozen')
  common.check_sizes('replace', replace_after=replace_after)
  common.check_range('replace', 'at least 0', replace_noise=replace_noise)
  num_codes, dim = inner.num_codes, inner.heads[0]
  # Whether the codebook is parameters, which only an optimiser may change.
  in_params = inner.updates == 'gradient'

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    params, inner_state = inner.init(key)
    state = {
        'inner': inner_state,
        'unused': jnp.zeros(num_codes, jnp.int32),
        'replaced': jnp.zeros(num_codes, jnp.int32),
    }
    if in_params:
      state['offset'] = jax.tree.map(jnp.zeros_like, params)
    return params, state

  def moved(params: base.Params, state: base.State) -> base.Params:
    """Returns params with the offsets added."""
    if not in_params:
      return params
    return jax.tree.map(jnp.add, params, state['offset'])

  def read(params: base.Params, state: base.State) -> jax.Array:
    return inner_read(moved(params, state), state['inner'])

  def write(
      params: base.Params, state: base.State, rows: jax.Array, where: jax.Array
  ) -> tuple[base.Params, base.State]:
    there = moved(params, state)
    written, inner_state = inner_write(there, state['inner'], rows, where)
    state = {
        **state,
        'inner': inner_state,
        'unused': jnp.where(where, 0, state['unused']),
    }
    if not in_params:
      return written, state
    new = jax.tree.map(jnp.not_equal, there, written)
    zero = jax.tree.map(jnp.zeros_like, params)
    state['offset'] = jax.tree.map(jnp.where, new, zero, state['offset'])
    return jax.tree.map(jnp.where, new, written, params), state

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    there = moved(params, state)
    if not call.train:
      quantized, _ = call.apply(inner, there, state['inner'])
      return quantized, state
    assert call.key is not None
    inner_key, row_key = jax.random.split(call.key)
    quantized, inner_state = call._replace(key=inner_key).apply(
        inner, there, state['inner']
    )
    # Where all is masked no code could be chosen, and there is no latent.
    codes = jnp.maximum(quantized.codes, 0)
    used = call.shares(codes, num_codes) > 0
    unused = jnp.where(used, 0, state['unused'] + jnp.any(used))
    dead = unused >= replace_after
    rows = jax.lax.stop_gradient(_sample_latents(row_key, call))
    written, inner_state = inner_write(there, inner_state, rows, dead)
    state = {
        **state,
        'inner': inner_state,
        'unused': jnp.where(dead, 0, unused),
        'replaced': state['replaced'] + dead,
    }
    if in_params:
      state['offset'] = jax.tree.map(
          lambda old, new, own, offset: jax.lax.stop_gradient(
              jnp.where(old != new, new - own, offset)
          ),
          there,
          written,
          params,
          state['offset'],
      )
    return quantized, state

  def _sample_latents(key: chex.PRNGKey, call: common.Call) -> jax.Array:
    """Returns noisy latents of positions that count, `[C, L]`."""
    choice_key, owner_key, noise_key = jax.random.split(key, 3)
    axis_name = call.axis_name
    if axis_name is not None:
      index = jax.lax.axis_index(axis_name)
      choice_key = jax.random.fold_in(choice_key, index)
    up_to = jnp.cumsum(call.mask.reshape(-1))
    chosen = jax.random.randint(
        choice_key, (num_codes,), 0, jnp.maximum(up_to[-1], 1)
    )
    (latents,) = numerics.promote(call.h[..., :dim])
    flat = latents.reshape(-1, dim)
    rows = flat[jnp.searchsorted(up_to, chosen, side='right')]
    if axis_name is not None:
      # Each row is of one device, the same for all; of as many as it has.
      counts = jax.lax.all_gather(up_to[-1], axis_name)
      owner = jax.random.categorical(
          owner_key, jnp.log(counts), shape=(num_codes,)
      )[:, None]
      rows = jax.lax.psum(jnp.where(owner == index, rows, 0), axis_name)
    noise = jax.random.normal(noise_key, rows.shape, rows.dtype)
    norm: jax.Array = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    expected: float = rows.shape[-1] ** 0.5
    return rows + replace_noise * norm / expected * noise

  def finish(
      params: base.Params, state: base.State
  ) -> tuple[base.Params, base.State, base.Params]:
    finished, inner_state, fresh = inner.finish(params, state['inner'])
    written = moved(finished, state)
    fresh = jax.tree.map(
        lambda fresh, old, new: fresh + count(state, old, new),
        fresh,
        finished,
        written,
    )
    state = {
        **state,
        'inner': inner_state,
        'replaced': jnp.zeros_like(state['replaced']),
    }
    if in_params:
      state['offset'] = jax.tree.map(jnp.zeros_like, params)
    return written, state, fresh

  def count(state: base.State, old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns how often the rows of a parameter were replaced."""
    if old.shape[:1] != (num_codes,):
      return jnp.zeros((), jnp.int32)
    axes = tuple(range(1, old.ndim))
    written = jnp.any(old != new, axis=axes, keepdims=True)
    return jnp.where(written, state['replaced'].reshape(written.shape), 0)

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    return inner.embed(moved(params, state), state['inner'], codes)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    return inner.logits(moved(params, state), state['inner'], h)

  return inner._replace(
      init=init,
      apply=common.as_apply(
          'replace', inner.heads, quantize, needs=('key',)
      ),
      embed=embed,
      read=read,
      write=write,
      finish=finish,
      logits=logits,
      wrappers=wrappers,
  )
