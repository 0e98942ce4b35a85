"""Residual quantization: each level takes what those before it leave."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics
from gmvq_jax.ops import placement
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers import initialization
from gmvq_jax.quantizers.compose import stack


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
  common.check_sizes('residual', depth=depth, min_depth=min_depth)
  if min_depth > depth:
    raise ValueError(
        f'residual: min_depth={min_depth}: must be at most depth={depth}'
    )
  common.check_range('residual', 'greater than 0', scale=scale)
  dim, *others = inner.heads
  heads = (dim, *(others * depth))
  factors = jnp.float32(scale) ** jnp.arange(depth)
  code_axis = -1 - len(inner.code_shape)

  def scan(
      step: Callable[..., tuple[jax.Array, base.State, Any]],
      params: base.Params,
      state: base.State,
      h: jax.Array,
      xs: Any,
  ) -> tuple[jax.Array, jax.Array, base.State, Any]:
    """Returns the last residual, the sum, the new state, outputs of levels.

    `step(params, state, h, factor, x) -> (z, state, output)`.
    """
    latents, rest = split(h, (params, state))

    def level(carry: Any, x: Any) -> tuple[Any, Any]:
      left, total, common_state = carry
      own, rest, factor, x = x
      h = jnp.concatenate([left / factor, rest], axis=-1)
      both = common_state if shared else own
      z, state, output = step(*both, h, factor, x)
      common_state = (both[0], state) if shared else None
      constant = jax.lax.stop_gradient(z) if inner.straight_through else z
      return (left - constant, total + z, common_state), (state, output)

    both = (params, state)
    (left, total, common_state), (states, outputs) = jax.lax.scan(
        level,
        (latents, jnp.zeros_like(latents), both if shared else None),
        (None if shared else both, rest, factors, xs),
    )
    if common_state is not None:
      states = common_state[1]
    return left, total, states, outputs

  def split(h: jax.Array, arrays: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the latents, and the other heads of levels, `[depth, ..., K]`."""
    # Of the type that z will have.
    types = {x.dtype for x in jax.tree.leaves(arrays)}
    floats = [t for t in types if jnp.issubdtype(t, jnp.inexact)]
    h = h.astype(jnp.result_type(jnp.float32, h, *floats))
    if not others:
      return h, jnp.zeros((depth, *h.shape[:-1], 0), h.dtype)
    rest = h[..., dim:].reshape(*h.shape[:-1], depth, sum(others))
    return h[..., :dim], jnp.moveaxis(rest, -2, 0)

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    mask = call.mask
    keys: jax.Array | None = None
    kept = jnp.full(mask.shape, depth)
    if call.key is not None:
      drop_key, *level_keys = jax.random.split(call.key, depth + 1)
      keys = jnp.stack(level_keys)
      if dropout:
        kept = _sample_depths(drop_key, mask, min_depth, depth, call.axis_name)

    def step(
        params: base.Params,
        state: base.State,
        h: jax.Array,
        factor: jax.Array,
        x: Any,
    ) -> tuple[jax.Array, base.State, base.Quantized]:
      index, key = x
      of_level = call._replace(h=h, key=key, mask=mask & (index < kept))
      quantized, state = of_level.apply(inner, params, state)
      return scaled(factor, quantized.z), state, quantized

    left, z, state, levels = scan(
        step, params, state, call.h, (jnp.arange(depth), keys)
    )
    if inner.straight_through:
      z = numerics.straight_through(z, z / kept[..., None])
    error = jnp.mean(jnp.square(left), axis=-1)
    metrics = {k: jnp.mean(v) for k, v in levels.metrics.items()}
    metrics |= call.latent_metrics(call.h[..., :dim], error)
    quantized = base.Quantized(
        z=z,
        codes=jnp.moveaxis(levels.codes, 0, mask.ndim),
        q_c=levels.q_c,
        loss=jnp.sum(levels.loss),
        metrics=metrics,
    )
    return quantized, state

  def scaled(factor: jax.Array, z: jax.Array) -> jax.Array:
    """Returns `factor z`."""
    # Fused with the sum, the product would be rounded otherwise in `embed`.
    return z if scale == 1 else jax.lax.optimization_barrier(factor * z)

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
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
      total = total + scaled(factor, z)
    return total

  @placement.with_auto_axes('h', lambda h, _: placement.leading(h))
  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:

    def step(
        params: base.Params,
        state: base.State,
        h: jax.Array,
        factor: jax.Array,
        x: None,
    ) -> tuple[jax.Array, base.State, jax.Array]:
      del x
      z = scaled(factor, inner.apply(params, state, h)[0].z)
      return z, state, inner.logits(params, state, h)

    *_, levels = scan(step, params, state, h, None)
    return jnp.moveaxis(levels, 0, code_axis - 1)

  def initialize(
      key: chex.PRNGKey,
      params: base.Params,
      state: base.State,
      h: jax.Array,
      *,
      mask: jax.Array | None = None,
      num_iterations: int = 10,
  ) -> tuple[base.Params, base.State]:
    h, mask = common.apply_mask(h, mask, heads)
    latents, rest = split(h, (params, state))
    initialized = []
    for level, level_key in enumerate(jax.random.split(key, depth)):
      factor = factors[level]
      h = jnp.concatenate([latents / factor, rest[level]], axis=-1)
      this = (params, state)
      if not shared:
        this = jax.tree.map(lambda x, level=level: x[level], this)
      this = initialization.kmeans_start(
          level_key, inner, *this, h, mask=mask, num_iterations=num_iterations
      )
      if shared:
        return this
      initialized.append(this)
      quantized, _ = inner.apply(*this, h, mask=mask)
      latents = latents - factor * quantized.z
    both: tuple[base.Params, base.State] = jax.tree.map(
        lambda *x: jnp.stack(x), *initialized
    )
    return both

  def objective(
      error: jax.Array,
      quantized: base.Quantized,
      *,
      data_shape: tuple[int, ...],
  ) -> jax.Array:
    # Levels are no positions.
    codes = jnp.take(quantized.codes, 0, axis=code_axis)
    return inner.objective(
        error, quantized._replace(codes=codes), data_shape=data_shape
    )

  return inner._replace(
      heads=heads,
      init=inner.init if shared else stack.init_all(inner, depth),
      apply=common.as_apply(
          'residual with dropout' if dropout else 'residual',
          heads,
          quantize,
          needs=('key',) if dropout else (),
      ),
      embed=embed,
      objective=objective,
      read=None,
      write=None,
      finish=inner.finish if shared else stack.finish_all(inner, depth),
      logits=logits,
      code_shape=(depth, *inner.code_shape),
      initialize=initialize,
      wrappers=(),
  )


def _sample_depths(
    key: chex.PRNGKey,
    mask: jax.Array,
    least: int,
    most: int,
    axis_name: str | None,
) -> jax.Array:
  """Returns a random depth for each example, the same at its positions."""
  # A depth depends on the index of its example in the global batch alone.
  count = mask.shape[0] if mask.ndim else 1
  seeds = counter_rng.row_seeds(key, count, axis_name=axis_name)
  uniform = counter_rng.uniform(seeds, 1)
  depths = least + jnp.floor((most + 1 - least) * uniform).astype(jnp.int32)
  shape = (*mask.shape[:1], *(1,) * (mask.ndim - 1))
  return jnp.broadcast_to(depths.reshape(shape), mask.shape)
