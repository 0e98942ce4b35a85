"""What a quantizer is: a tuple of pure functions of parameters and state.

Shapes: `[...]` are positions, `L` the channels of a latent, `C` the codes.
"""

from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import Protocol

import chex
import jax

Params = Any  # A pytree of arrays that the optimiser trains.
State = Any  # A pytree of arrays that the quantizer itself updates.

# How the codewords are updated: by the gradient of the loss, by moving
# averages of latents, by an optimiser of their own, through a learnt map of
# fixed vectors, not at all, or there are none.
Updates = Literal[
    'gradient', 'average', 'alternate', 'map', 'frozen', 'no codebook'
]


class Quantized(NamedTuple):
  """Output of `Quantizer.apply`.

  Attributes:
    z: `[..., L]`, the input of the decoder; 0 at masked positions.
    codes: `[..., *code_shape]` int32; -1 at masked positions.
    q_c: `[C]`, the aggregated posterior of this batch; without a posterior, the
      share of each code. With several codebooks `[..., C]`.
    loss: `[]`, the quantizer's own terms, averaged over positions. Their weight
      against the squared error is up to `Quantizer.objective`.
    metrics: each term, `[]`, averaged over positions, and `perplexity` of the
      codes of this batch, from 1 to C, and `usage`, the share of codes used.
  """

  z: jax.Array
  codes: jax.Array
  q_c: jax.Array
  loss: jax.Array
  metrics: dict[str, jax.Array]


class InitFn(Protocol):
  """Returns new parameters and state."""

  def __call__(self, key: chex.PRNGKey) -> tuple[Params, State]:
    """Initialises a quantizer.

    Args:
      key: random key.
    """


class ApplyFn(Protocol):
  """Quantizes latents."""

  def __call__(
      self,
      params: Params,
      state: State,
      h: jax.Array,
      *,
      key: chex.PRNGKey | None = None,
      temperature: chex.Numeric | None = None,
      train: bool = False,
      mask: jax.Array | None = None,
      axis_name: str | None = None,
  ) -> tuple[Quantized, State]:
    """Quantizes `h`, and returns the new state as well.

    Args:
      params: of the quantizer.
      state: of the quantizer.
      h: `[..., sum(heads)]`, the heads of the encoder side by side.
      key: random key; training needs one where noise is sampled.
      temperature: of relaxed codes, positive; training needs one for gmvq,
        sqvae and gumbel.
      train: whether this is a training step. Evaluation is deterministic, and
        needs neither key nor temperature.
      mask: `[...]`, True at positions that count; all by default. Masked
        positions are ignored, NaNs included.
      axis_name: the mapped axis of `pmap` or `shard_map`, over which statistics
        are averaged. Under `jit` on sharded arrays they are global already.

    Raises:
      ValueError: for shapes that do not fit, and for a missing key or
        temperature.
    """


class EmbedFn(Protocol):
  """Returns the decoder's input for codes."""

  def __call__(
      self, params: Params, state: State, codes: jax.Array
  ) -> jax.Array:
    """Returns `z [..., L]` of evaluation for codes.

    Args:
      params: of the quantizer.
      state: of the quantizer.
      codes: `[..., *code_shape]` integers in [0, C), or -1, which gives 0.
    """


class ObjectiveFn(Protocol):
  """Returns the loss to minimise."""

  def __call__(
      self,
      error: jax.Array,
      quantized: Quantized,
      *,
      data_shape: tuple[int, ...],
  ) -> jax.Array:
    """Returns the loss `[]` of a batch, weighted as the method's paper does.

    Args:
      error: `[]`, the mean squared error of the batch, per value, or another
        reconstruction loss in its place.
      quantized: of the batch, its codes `[B, ...]`.
      data_shape: `(B, ...)`, the shape of the data that is reconstructed.

    Raises:
      ValueError: for an error that is not a mean, and for other batch sizes.
    """


class ReadFn(Protocol):
  """Returns the codebook."""

  def __call__(self, params: Params, state: State) -> jax.Array:
    """Returns the codebook `[C, L]` as it is searched."""


class WriteFn(Protocol):
  """Writes rows of the codebook: the inverse of `ReadFn`."""

  def __call__(
      self, params: Params, state: State, rows: jax.Array, where: jax.Array
  ) -> tuple[Params, State]:
    """Returns parameters and state with some rows written.

    Args:
      params: of the quantizer.
      state: of the quantizer.
      rows: `[C, L]`.
      where: `[C]`, True for the rows to write.
    """


class FinishFn(Protocol):
  """Moves replaced codewords from the state to the parameters."""

  def __call__(
      self, params: Params, state: State
  ) -> tuple[Params, State, Params]:
    """Returns parameters, state, and which parameters are fresh.

    Training works without it: `apply` replaces codewords in the state, and
    `gmvq_jax.optimizer` resets their moments.

    Returns:
      `(params, state, fresh)`. `fresh` is like `params`, of int32 arrays that
      broadcast to them: how often each entry was replaced since the last
      `finish`. Where it is not 0, reset the moments of the optimiser.
    """


class LogitsFn(Protocol):
  """Returns the logits of the codes."""

  def __call__(self, params: Params, state: State, h: jax.Array) -> jax.Array:
    """Returns `[..., *code_shape, C]`; evaluation takes the largest.

    Log-probabilities up to a constant of each position, or without a posterior
    negative squared distances.
    """


class InitializeFn(Protocol):
  """Initialises codebooks by k-means."""

  def __call__(
      self,
      key: chex.PRNGKey,
      params: Params,
      state: State,
      h: jax.Array,
      *,
      mask: jax.Array | None = None,
      num_iterations: int = 10,
  ) -> tuple[Params, State]:
    """Returns parameters and state; see `initialization.kmeans_start`."""


class Quantizer(NamedTuple):
  """A vector quantizer, in the manner of `optax.GradientTransformation`.

  Attributes:
    heads: channels of each head of the encoder; `apply` takes them side by
      side. The first is quantized.
    num_codes: C.
    init: `(key) -> (params, state)`.
    apply: `(params, state, h, *, key, temperature, train, mask, axis_name) ->
      (Quantized, state)`.
    embed: `(params, state, codes) -> z`.
    objective: `(error, quantized, *, data_shape) -> loss`.
    read: `(params, state) -> [C, L]`; None where there is no codebook.
    write: `(params, state, rows, where) -> (params, state)`; None where no
      codeword is compared with latents.
    finish: `(params, state) -> (params, state, fresh)`.
    logits: `(params, state, h) -> [..., *code_shape, C]`.
    updates: how the codewords are updated; see `Updates`.
    straight_through: whether z is a constant in training whose gradient is
      passed to the latents, and to nothing else.
    code_shape: shape of the codes of one position; () but for compositions.
    initialize: where k-means initialisation is more than to `write` centroids.
    wrappers: names of the wrappers inside, from the inside out.
  """

  heads: tuple[int, ...]
  num_codes: int
  init: InitFn
  apply: ApplyFn
  embed: EmbedFn
  objective: ObjectiveFn
  read: ReadFn | None
  write: WriteFn | None
  finish: FinishFn
  logits: LogitsFn
  updates: Updates
  straight_through: bool = False
  code_shape: tuple[int, ...] = ()
  initialize: InitializeFn | None = None
  wrappers: tuple[str, ...] = ()
