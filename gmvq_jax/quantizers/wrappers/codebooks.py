"""What is added to a quantizer: each takes one and returns one.

They meet the codebook by `read` and `write` alone, so each sees it as those
inside of it leave it: `with_replacement(with_l2_normalization(vqvae(...)))`
replaces codewords that are searched on the sphere.
"""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base


def with_l2_normalization(inner: base.Quantizer) -> base.Quantizer:
  """Searches on the unit sphere (Yu 2021, https://arxiv.org/abs/2110.04627).

  Latents and codewords are divided by their norms before anything else sees
  them: distances, losses and the decoder. Other heads are left alone.

  Parameters, state and metrics are those of `inner`.

  Raises:
    ValueError: if `inner` compares no latents with codewords, or is simvq.
  """
  _check_searched('l2', inner)
  _check_unmapped('l2', inner)
  dim = inner.heads[0]

  def read(params, state):
    return numerics.normalize(inner.read(params, state))

  def within(params, state):
    return _write_all(inner, params, state, read(params, state))

  def on_sphere(h):
    (h,) = numerics.promote(h)
    z_hat, rest = h[..., :dim], h[..., dim:]
    return jnp.concatenate([numerics.normalize(z_hat), rest], axis=-1)

  def apply(params, state, h, *, mask=None, **kwargs):
    # A zero, as padding may be, has no direction.
    h, mask = base.apply_mask(h, mask, inner.heads)
    mapped = within(params, state)
    return inner.apply(*mapped, on_sphere(h), mask=mask, **kwargs)

  def embed(params, state, codes):
    return inner.embed(*within(params, state), codes)

  def logits(params, state, h):
    return inner.logits(*within(params, state), on_sphere(h))

  return inner._replace(apply=apply, embed=embed, read=read, logits=logits)


def with_affine(
    inner: base.Quantizer, *, affine_scale: float = 2.0, affine_groups: int = 1
) -> base.Quantizer:
  """Moves all codewords together (Huh 2023, https://arxiv.org/abs/2305.08842).

  The codebook that is searched is `(1 + s a) e + s b`, with a and b `[L]`
  shared by all codes of a group, 0 at the start, and s the factor on their
  learning rate, which the paper takes from 2 to 10. A codeword that no latent
  chose moves with the rest.

  Parameters: `{'inner': ..., 'scale': [G, L], 'shift': [G, L]}`. State and
  metrics are those of `inner`.

  Args:
    inner: what searches the codebook.
    affine_scale: s.
    affine_groups: G, as many as divide C; code c is of group `c G // C`.

  Raises:
    ValueError: if the groups do not divide C, or no gradient reaches the
      codebook; and as `with_l2_normalization`.
  """
  _check_searched('affine', inner)
  _check_unmapped('affine', inner)
  if _has_averages(inner):
    raise ValueError(
        'affine: does not go with ema, whose codewords no gradient reaches'
    )
  if affine_groups < 1 or inner.num_codes % affine_groups:
    raise ValueError(
        f'affine: affine_groups={affine_groups}: must divide the'
        f' {inner.num_codes} codes'
    )

  def init(key):
    params, state = inner.init(key)
    rows = inner.read(params, state)
    zeros = jnp.zeros((affine_groups, rows.shape[1]))
    return {'inner': params, 'scale': zeros, 'shift': zeros}, state

  def factors(params):
    group = jnp.arange(inner.num_codes) * affine_groups // inner.num_codes
    scale = (1 + affine_scale * params['scale'])[group]
    return scale, (affine_scale * params['shift'])[group]

  def read(params, state):
    scale, shift = factors(params)
    return scale * inner.read(params['inner'], state) + shift

  def inverse(params, rows):
    scale, shift = factors(params)
    tiny = jnp.where(scale < 0, -1e-6, 1e-6)
    return (rows - shift) / jnp.where(jnp.abs(scale) < 1e-6, tiny, scale)

  def write(params, state, rows, where):
    raw = inverse(params, rows)
    written, state = inner.write(params['inner'], state, raw, where)
    return {**params, 'inner': written}, state

  def within(params, state):
    rows = read(params, state)
    return _write_all(inner, params['inner'], state, rows)

  def apply(params, state, h, **kwargs):
    mapped, state = within(params, state)
    quantized, state = inner.apply(mapped, state, h, **kwargs)
    # Where it is in the state, the codebook is brought back to before the map.
    rows = inverse(params, inner.read(mapped, state))
    return quantized, _write_all(inner, mapped, state, rows)[1]

  def embed(params, state, codes):
    return inner.embed(*within(params, state), codes)

  def logits(params, state, h):
    return inner.logits(*within(params, state), h)

  def finish(params, state):
    finished, state, fresh = inner.finish(params['inner'], state)
    still = jnp.zeros((), bool)
    fresh = {'inner': fresh, 'scale': still, 'shift': still}
    return {**params, 'inner': finished}, state, fresh

  return inner._replace(
      init=init,
      apply=apply,
      embed=embed,
      read=read,
      write=write,
      finish=finish,
      logits=logits,
  )


def with_alternate_optimization(
    inner: base.Quantizer,
    *,
    opt_learning_rate: float = 50.0,
    opt_momentum: float = 0.9,
    opt_steps: int = 1,
) -> base.Quantizer:
  """Moves the codebook first, by itself (Huh 2023, alternate optimisation).

  In each training step, with the codes k of the codebook as it is,

      m <- momentum m + gradient of mean (e_k - sg(z))^2,  e <- e - rate m

  (a mean over positions and channels, `opt_steps` times), and then the decoder
  sees `z + sg(e_k - z)` of the new e, with the same codes. No gradient of the
  task reaches the codebook, and there is no commitment: `loss` is the mean of
  `(e_k - sg(z))^2`, whose gradient reaches only what has mapped the codebook
  before it came here (`with_affine`). A rotation trick goes around this, not
  inside.

  Parameters: none. State: `{'inner': ..., 'params': those of inner, 'momentum':
  [C, L]}`.

  Args:
    inner: what searches the codebook, by its nearest codeword.
    opt_learning_rate: of the inner steps. Large, as the gradient of a mean over
      all positions is small.
    opt_momentum: of the inner steps.
    opt_steps: how many.

  Raises:
    ValueError: if `inner` has a posterior, a codebook that moves by itself, or
      is simvq.
  """
  _check_searched('opt', inner)
  _check_unmapped('opt', inner)
  if not inner.straight_through or _has_averages(inner):
    raise ValueError(
        'opt: goes with vqvae alone, whose codewords are passed straight'
        ' through and moved by gradients'
    )
  if opt_steps < 1:
    raise ValueError(f'opt: opt_steps={opt_steps}: must be at least 1')

  def init(key):
    params, state = inner.init(key)
    momentum = jnp.zeros_like(inner.read(params, state))
    return {}, {'inner': state, 'params': params, 'momentum': momentum}

  def read(params, state):
    del params
    return inner.read(state['params'], state['inner'])

  def write(params, state, rows, where):
    written, inner_state = inner.write(
        state['params'], state['inner'], rows, where
    )
    # To write all rows is to change coordinates; to write some, to start anew.
    anew = where & ~jnp.all(where)
    momentum = jnp.where(anew[:, None], 0, state['momentum'])
    return params, {
        'inner': inner_state,
        'params': written,
        'momentum': momentum,
    }

  def apply(params, state, h, *, train=False, mask=None, axis_name=None, **_):
    quantized, _ = inner.apply(
        state['params'], state['inner'], h, mask=mask, axis_name=axis_name
    )
    h, mask = base.apply_mask(h, mask, inner.heads)
    z_hat, rows = numerics.promote(h, read(params, state))
    fixed = jax.lax.stop_gradient(z_hat)

    def error(rows):
      return base.mean_square(rows[quantized.codes] - fixed, mask, axis_name)

    if not train:
      return quantized._replace(loss=error(rows)), state
    counts, sums = base.sums_of_latents(
        fixed, quantized.codes, inner.num_codes, mask, axis_name
    )
    values = jnp.maximum(counts.sum(), 1) * rows.shape[-1]
    momentum, moved = state['momentum'], jax.lax.stop_gradient(rows)
    for _ in range(opt_steps):
      gradient = 2 * (counts[:, None] * moved - sums) / values
      momentum = opt_momentum * momentum + gradient
      moved = moved - opt_learning_rate * momentum
    codewords = moved[quantized.codes]
    result = base.hard(
        numerics.straight_through(codewords, z_hat),
        quantized.codes,
        z_hat,
        codewords,
        # The value at the new rows, the gradient through the given ones.
        error(numerics.straight_through(moved, rows)),
        inner.num_codes,
        mask,
        axis_name,
    )
    everywhere = jnp.ones(inner.num_codes, bool)
    _, state = write(params, state, moved, everywhere)
    return result, {**state, 'momentum': momentum}

  def embed(params, state, codes):
    del params
    return inner.embed(state['params'], state['inner'], codes)

  def logits(params, state, h):
    del params
    return inner.logits(state['params'], state['inner'], h)

  return inner._replace(
      init=init,
      apply=apply,
      embed=embed,
      read=read,
      write=write,
      finish=base.nothing_to_finish,
      logits=logits,
  )


def with_replacement(
    inner: base.Quantizer,
    *,
    replace_after: int = 20,
    replace_noise: float = 0.01,
) -> base.Quantizer:
  """Brings back codes that nobody chose for some steps.

  Zeghidour 2021 (https://arxiv.org/abs/2107.03312) and Dhariwal 2020
  (https://arxiv.org/abs/2005.00341): a code that no position of the last
  `replace_after` training steps has taken gets a random latent of the batch,
  plus Gaussian noise, and starts anew: its counter, whatever `inner` counts of
  it, and its moments in the optimiser.

  Within a shared `residual` each level counts as a step.

  Parameters are those of `inner`. State: `{'inner': ..., 'unused': [C] int32,
  'rows': [C, L], 'dead': [C]}`; what `apply` finds dead, `finish` writes.

  Args:
    inner: what searches the codebook.
    replace_after: steps.
    replace_noise: its norm, relative to the latent's.

  Raises:
    ValueError: if `inner` has no codebook that latents are compared with, or
      it is frozen.
  """
  _check_searched('replace', inner)
  if _is_frozen(inner):
    raise ValueError('replace: the codebook is frozen; freeze it after this')
  if replace_after < 1:
    raise ValueError(f'replace: replace_after={replace_after}: at least 1')
  num_codes = inner.num_codes

  def init(key):
    params, state = inner.init(key)
    return params, {
        'inner': state,
        'unused': jnp.zeros(num_codes, jnp.int32),
        'rows': inner.read(params, state),
        'dead': jnp.zeros(num_codes, bool),
    }

  def apply(params, state, h, *, key=None, train=False, **kwargs):
    base.check_key('replace', key, train)
    inner_key = noise_key = None
    if train:
      inner_key, noise_key = jax.random.split(key)
    quantized, inner_state = inner.apply(
        params, state['inner'], h, key=inner_key, train=train, **kwargs
    )
    if not train:
      return quantized, {**state, 'inner': inner_state}
    mask, axis_name = kwargs.get('mask'), kwargs.get('axis_name')
    h, mask = base.apply_mask(h, mask, inner.heads)
    taken = base.shares(quantized.codes, num_codes, mask, axis_name) > 0
    # Where all is masked out, codes had no chance, and there is no latent.
    seen = jnp.any(taken)
    unused = jnp.where(taken, 0, state['unused'] + seen)
    # Found before, where one codebook is searched several times a step.
    found = state['dead']
    dead = (unused >= replace_after) | (found & ~taken)
    latents = jax.lax.stop_gradient(h[..., : inner.heads[0]])
    drawn = _draw(noise_key, latents, mask, axis_name)
    kept = (found | ~seen)[:, None]
    return quantized, {
        'inner': inner_state,
        'unused': jnp.where(dead, 0, unused),
        'rows': jnp.where(kept, state['rows'], drawn),
        'dead': dead,
    }

  def _draw(key, latents, mask, axis_name):
    """Returns noisy latents of positions that count, `[C, L]`."""
    choice_key, owner_key, noise_key = jax.random.split(key, 3)
    if axis_name is not None:
      index = jax.lax.axis_index(axis_name)
      choice_key = jax.random.fold_in(choice_key, index)
    up_to = jnp.cumsum(mask.reshape(-1))
    chosen = jax.random.randint(
        choice_key, (num_codes,), 0, jnp.maximum(up_to[-1], 1)
    )
    (latents,) = numerics.promote(latents)
    flat = latents.reshape(-1, latents.shape[-1])
    rows = flat[jnp.searchsorted(up_to, chosen, side='right')]
    if axis_name is not None:
      # Each row is of one device, the same for all; of as many as it has.
      counts = jax.lax.all_gather(up_to[-1], axis_name)
      owner = jax.random.categorical(
          owner_key, jnp.log(counts), shape=(num_codes,)
      )[:, None]
      rows = jax.lax.psum(jnp.where(owner == index, rows, 0), axis_name)
    noise = jax.random.normal(noise_key, rows.shape, rows.dtype)
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows + replace_noise * norm / rows.shape[-1] ** 0.5 * noise

  def finish(params, state):
    finished, inner_state, fresh = inner.finish(params, state['inner'])
    written, inner_state = inner.write(
        finished, inner_state, state['rows'], state['dead']
    )
    fresh = jax.tree.map(
        lambda old, new, fresh: (old != new) | fresh, finished, written, fresh
    )
    dead = jnp.zeros_like(state['dead'])
    return written, {**state, 'inner': inner_state, 'dead': dead}, fresh

  def embed(params, state, codes):
    return inner.embed(params, state['inner'], codes)

  def logits(params, state, h):
    return inner.logits(params, state['inner'], h)

  def read(params, state):
    return inner.read(params, state['inner'])

  def write(params, state, rows, where):
    written, inner_state = inner.write(params, state['inner'], rows, where)
    unused = jnp.where(where, 0, state['unused'])
    return written, {**state, 'inner': inner_state, 'unused': unused}

  return inner._replace(
      init=init,
      apply=apply,
      embed=embed,
      read=read,
      write=write,
      finish=finish,
      logits=logits,
  )


def with_frozen_codebook(inner: base.Quantizer) -> base.Quantizer:
  """Leaves everything of the quantizer as it starts: an anchor.

  Parameters: none, so that no optimiser and no weight decay moves them. State:
  `{'params': ..., 'state': ...}` of `inner`.
  """

  def init(key):
    params, state = inner.init(key)
    return {}, {'params': params, 'state': state}

  def apply(params, state, h, **kwargs):
    del params
    frozen = jax.lax.stop_gradient(state)
    quantized, _ = inner.apply(frozen['params'], frozen['state'], h, **kwargs)
    return quantized, state

  def embed(params, state, codes):
    del params
    return inner.embed(state['params'], state['state'], codes)

  def logits(params, state, h):
    del params
    return inner.logits(state['params'], state['state'], h)

  def read(params, state):
    del params
    return inner.read(state['params'], state['state'])

  def write(params, state, rows, where):
    written, inner_state = inner.write(
        state['params'], state['state'], rows, where
    )
    return params, {'params': written, 'state': inner_state}

  def start(key, params, state, h, **kwargs):
    started = inner.start(key, state['params'], state['state'], h, **kwargs)
    return params, dict(zip(('params', 'state'), started, strict=True))

  return inner._replace(
      init=init,
      apply=apply,
      embed=embed,
      read=inner.read and read,
      write=inner.write and write,
      finish=base.nothing_to_finish,
      logits=logits,
      start=inner.start and start,
  )


def _write_all(inner, params, state, rows):
  return inner.write(params, state, rows, jnp.ones(len(rows), bool))


def _check_searched(name, inner):
  """Raises a ValueError unless latents are compared with codewords."""
  if inner.read is None or inner.write is None:
    raise ValueError(
        f'{name}: goes with quantizers that compare latents with codewords,'
        ' such as vqvae, gmvq or sqvae; this one does not'
        if not inner.code_shape and inner.start is None
        else f'{name}: goes inside of residual, grouped and projected'
    )


def _check_unmapped(name, inner):
  """Raises a ValueError where gradients reach a map of the codebook alone."""
  params, _ = _shapes(inner)
  if 'transform' in params:
    raise ValueError(
        f'{name}: does not go with simvq, whose codebook has a map of its own'
    )


def _has_averages(inner):
  return 'sums' in _shapes(inner)[1]


def _is_frozen(inner):
  return {'params', 'state'} == set(_shapes(inner)[1])


def _shapes(inner):
  return jax.eval_shape(inner.init, jax.random.key(0))
