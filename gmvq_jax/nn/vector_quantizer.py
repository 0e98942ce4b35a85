"""A quantizer as a module of Flax Linen."""

from typing import Any

import chex
from flax import linen as nn
import jax

from gmvq_jax.quantizers import base


class VectorQuantizer(nn.Module):
  """Puts a quantizer into a Linen model.

  Its params are in the collection `params`; its state, where it has any, in
  `quantizer`, which is to be mutable in training. Training needs the random
  stream `quantizer`.

  `with_replacement` works without further steps. `gmvq_jax.optimizer` resets
  the moments of replaced codewords.

  Attributes:
    quantizer: what a factory such as `gmvq_jax.gmvq` returned.
  """

  quantizer: base.Quantizer

  def setup(self):
    """Makes params and state, of one key, so that they belong together."""
    key = jax.random.key(0)
    if self.is_initializing():
      key = self.make_rng('params')
    params, state = jax.eval_shape(self.quantizer.init, key)
    # Flax, and what wraps it, forget what is empty.
    if jax.tree.leaves(params):
      self.param('quantizer', lambda _: self.quantizer.init(key)[0])
    if jax.tree.leaves(state):
      self.variable('quantizer', 'state', lambda: self.quantizer.init(key)[1])

  def __call__(
      self,
      h: jax.Array,
      *,
      temperature: chex.Numeric | None = None,
      train: bool = False,
      mask: jax.Array | None = None,
      axis_name: str | None = None,
  ) -> base.Quantized:
    """Quantizes `h [..., sum(quantizer.heads)]`; see `Quantizer.apply`."""
    params, before = self._both()
    draws = train and self.has_rng('quantizer')
    quantized, state = self.quantizer.apply(
        params,
        before,
        h,
        key=self.make_rng('quantizer') if draws else None,
        temperature=temperature,
        train=train,
        mask=mask,
        axis_name=axis_name,
    )
    # A frozen one gives back what it was given.
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True)
    changed = any(x is not y for x, y in pairs)
    if train and changed and not self.is_initializing():
      if not self.is_mutable_collection('quantizer'):
        raise ValueError(
            "VectorQuantizer: train=True, and this quantizer's state would be"
            " lost: give mutable=['quantizer'], and keep what is returned"
        )
      self.put_variable('quantizer', 'state', state)
    return quantized

  def embed(self, codes: jax.Array) -> jax.Array:
    """Returns what the decoder sees for codes; see `Quantizer.embed`."""
    return self.quantizer.embed(*self._both(), codes)

  def finish(self) -> Any:
    """Moves replaced codewords to the parameters, and returns what is fresh.

    With `apply(..., method='finish', mutable=['params', 'quantizer'])`; see
    `Quantizer.finish`.
    """
    params, state, fresh = self.quantizer.finish(*self._both())
    if jax.tree.leaves(params):
      self.put_variable('params', 'quantizer', params)
    if jax.tree.leaves(state):
      self.put_variable('quantizer', 'state', state)
    return fresh

  def _both(self) -> tuple[base.Params, base.State]:
    shapes = jax.eval_shape(self.quantizer.init, jax.random.key(0))
    stored: tuple[base.Params, base.State] = (
        self.get_variable('params', 'quantizer', {}),
        self.get_variable('quantizer', 'state', {}),
    )
    # With what is empty in its place.
    params, state = jax.tree.unflatten(
        jax.tree.structure(shapes), jax.tree.leaves(stored)
    )
    return params, state
