"""Residual quantization: each level takes what those before it leave."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers.compose import stack
from gmvq_jax.quantizers import initialization


def residual(
    inner: base.Quantizer,
    depth: int,
    *,
    shared: bool = False,
    dropout: bool = False,
    min_depth: int = 1,
    scale: float = 1.0,
) -> base.Quantizer:
  """Quantizes what is left, again and again.

  Residual vector quantization (Zeghidour 2021, algorithm 1,
  https://arxiv.org/abs/2107.03312): with `r_0` the latents, level d quantizes
  `r_d` to `z_d`, and `r_(d+1) = r_d - z_d`. The decoder sees their sum. Codes
  are `[..., depth]`, `q_c [depth, C]`.

  `loss` is the sum over levels, metrics are means over levels, but for
  `quantization_error` and `latent_variance`, which are those of the sum and of
  the latents. Where z is passed straight through, the gradient of the decoder
  reaches the latents once, shared among the levels, and each level's loss
  reaches them as if those before it were constants.

  Around GM-VQ turn off its noise (`gmvq(..., gaussian_noise=False)`): later
  levels would spend their codes on that of the first. Every level has a head of
  precisions of its own.

  Parameters and state are those of `inner`, stacked, or once if `shared`.

  Args:
    inner: of each level. Its first head is what is quantized.
    depth: how many levels.
    shared: whether there is one codebook for all levels.
    dropout: whether in training each example keeps a random number of levels,
      the first ones; the rest have code -1 and add nothing. Needs a key.
      `embed` takes the codes of any number of first levels.
    min_depth: the least that `dropout` keeps.
    scale: of a level's latents against those before: level d quantizes
      `r_d / scale^d`. Less than 1 where codewords do not learn to be smaller:
      fsq, lfq and bsq.

  Raises:
    ValueError: for a depth, min_depth or scale out of range.
  """
  base.check_sizes('residual', depth=depth, min_depth=min_depth)
  if min_depth > depth:
    raise ValueError(
        f'residual: min_depth={min_depth}: must be at most depth={depth}'
    )
  if not scale > 0:
    raise ValueError(f'residual: scale={scale}: must be greater than 0')
  dim, *others = inner.heads
  heads = (dim, *(others * depth))
  factors = jnp.float32(scale) ** jnp.arange(depth)
  code_axis = -1 - len(inner.code_shape)

  def scan(step, params, state, h, xs):
    """Returns what is left, the sum, the new state, and outputs of levels.

    `step(params, state, h, factor, x) -> (z, state, output)`.
    """
    latents, rest = split(h, (params, state))

    def level(carry, x):
      left, total, common = carry
      own, rest, factor, x = x
      h = jnp.concatenate([left / factor, rest], axis=-1)
      both = common if shared else own
      z, state, output = step(*both, h, factor, x)
      common = (both[0], state) if shared else None
      constant = jax.lax.stop_gradient(z) if inner.straight_through else z
      return (left - constant, total + z, common), (state, output)

    both = (params, state)
    (left, total, common), (states, outputs) = jax.lax.scan(
        level,
        (latents, jnp.zeros_like(latents), both if shared else None),
        (None if shared else both, rest, factors, xs),
    )
    return left, total, common[1] if shared else states, outputs

  def split(h, arrays):
    """Returns the latents, and the other heads of levels, `[depth, ..., K]`."""
    # Of the type that z will have.
    types = {x.dtype for x in jax.tree.leaves(arrays)}
    floats = [t for t in types if jnp.issubdtype(t, jnp.inexact)]
    h = h.astype(jnp.result_type(jnp.float32, h, *floats))
    rest = h[..., dim:].reshape(*h.shape[:-1], depth, sum(others))
    return h[..., :dim], jnp.moveaxis(rest, -2, 0)

  def apply(
      params,
      state,
      h,
      *,
      key=None,
      temperature=None,
      train=False,
      mask=None,
      axis_name=None,
  ):
    h, mask = base.apply_mask(h, mask, heads)
    keys, kept = None, jnp.full(mask.shape, depth)
    if key is not None:
      drop_key, *keys = jax.random.split(key, depth + 1)
      keys = jnp.stack(keys)
    if dropout and train:
      base.check_key('residual with dropout', key, train)
      kept = _draw_depths(drop_key, mask, min_depth, depth, axis_name)

    def step(params, state, h, factor, x):
      index, key = x
      quantized, state = inner.apply(
          params,
          state,
          h,
          key=key,
          temperature=temperature,
          train=train,
          mask=mask & (index < kept),
          axis_name=axis_name,
      )
      return factor * quantized.z, state, quantized

    left, z, state, levels = scan(
        step, params, state, h, (jnp.arange(depth), keys)
    )
    if inner.straight_through:
      z = numerics.straight_through(z, z / kept[..., None])

    def mean(values):
      return numerics.masked_mean(values, mask, axis_name=axis_name)

    error = jnp.mean(jnp.square(left), axis=-1)
    metrics = {k: jnp.mean(v) for k, v in levels.metrics.items()}
    metrics |= base.latent_metrics(h[..., :dim], error, mean)
    quantized = base.Quantized(
        z=z,
        codes=jnp.moveaxis(levels.codes, 0, mask.ndim),
        q_c=levels.q_c,
        loss=jnp.sum(levels.loss),
        metrics=metrics,
    )
    return quantized, state

  def embed(params, state, codes):
    codes = jnp.moveaxis(codes, code_axis, 0)
    if len(codes) > depth:
      raise ValueError(
          f'residual: codes of {len(codes)} levels: there are {depth}'
      )
    if not shared:
      params, state = jax.tree.map(lambda x: x[: len(codes)], (params, state))
    axis = None if shared else 0
    levels = jax.vmap(inner.embed, (axis, axis, 0))(params, state, codes)
    # In the order of `apply`, to round alike.
    total = jnp.zeros_like(levels[0])
    for factor, z in zip(factors[: len(levels)], levels, strict=True):
      total = total + factor * z
    return total

  def still(params, state, h, factor, mask=None):
    return factor * inner.apply(params, state, h, mask=mask)[0].z

  def logits(params, state, h):
    def step(params, state, h, factor, _):
      z = still(params, state, h, factor)
      return z, state, inner.logits(params, state, h)

    *_, levels = scan(step, params, state, h, None)
    return jnp.moveaxis(levels, 0, code_axis - 1)

  def start(key, params, state, h, *, mask=None, **kwargs):
    h, mask = base.apply_mask(h, mask, heads)
    latents, rest = split(h, (params, state))
    started = []
    for level, level_key in enumerate(jax.random.split(key, depth)):
      h = jnp.concatenate([latents / factors[level], rest[level]], axis=-1)
      this = (params, state)
      if not shared:
        this = jax.tree.map(lambda x, level=level: x[level], this)
      this = initialization.kmeans_start(
          level_key, inner, *this, h, mask=mask, **kwargs
      )
      if shared:
        return this
      started.append(this)
      latents = latents - still(*this, h, factors[level], mask)
    return jax.tree.map(lambda *x: jnp.stack(x), *started)

  return inner._replace(
      heads=heads,
      init=inner.init if shared else stack.init_all(inner, depth),
      apply=apply,
      embed=embed,
      read=None,
      write=None,
      finish=inner.finish if shared else stack.finish_all(inner, depth),
      logits=logits,
      code_shape=(depth, *inner.code_shape),
      start=start,
  )


def _draw_depths(key, mask, least, most, axis_name):
  """Returns for each example a number, the same at its positions."""
  if axis_name is not None:
    key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
  shape = (*mask.shape[:1], *(1,) * (mask.ndim - 1))
  numbers = jax.random.randint(key, shape, least, most + 1)
  return jnp.broadcast_to(numbers, mask.shape)
