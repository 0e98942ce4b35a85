"""What a quantizer is: a tuple of pure functions over params and state."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gmvq_jax import codebook
from gmvq_jax import numerics

Params = Any  # A pytree of arrays; the optimiser's.
State = Any  # A pytree of arrays; the quantizer's own.


class Quantized(NamedTuple):
  """What a quantizer makes of a batch of positions.

  Attributes:
    z: `[..., L]`, what the decoder sees.
    codes: `[...]` int32.
    q_c: `[C]`, this batch's aggregated posterior; the shares of the codes where
      there is no posterior.
    loss: `[]`, the quantizer's own terms, averaged over positions. How they are
      weighed against the squared error is up to `Quantizer.objective`.
    metrics: every term by itself, each `[]`, averaged over positions.
  """

  z: jax.Array
  codes: jax.Array
  q_c: jax.Array
  loss: jax.Array
  metrics: dict[str, jax.Array]


class Quantizer(NamedTuple):
  """A vector quantizer, in the manner of `optax.GradientTransformation`.

  Attributes:
    heads: channels of each head of the encoder; `apply` takes them side by
      side.
    num_codes: C.
    init: `(key) -> (params, state)`.
    apply: `(params, state, h, *, key=None, temperature=None, train=False,
      mask=None, axis_name=None) -> (Quantized, state)`, with
      `h [..., sum(heads)]`. Training needs a key and a temperature. Evaluation
      needs neither and is deterministic. `mask [...]` is True where a position
      counts. `axis_name` is the mapped axis of `pmap` or `shard_map`.
    embed: `(params, state, codes [...]) -> [..., L]`, what the decoder sees for
      codes at evaluation.
    objective: `(squared_error [B], quantized, *, data_dim, positions) -> []`,
      the loss to minimise, from each image's squared error (or whatever stands
      in its place), summed over its `data_dim` values.
    read: `(params, state) -> [C, L]`, the codebook as it is searched. None:
      there is none.
    write: `(params, state, rows [C, L], where [C]) -> (params, state)`, the
      inverse of `read` for the rows where `where`.
    finish: `(params, state) -> (params, state, fresh)`, to be called after each
      step of the optimiser. `fresh` is like params, of booleans that broadcast
      to them: True where an entry was rewritten, and its moments in the
      optimiser should be zeroed.
  """

  heads: tuple[int, ...]
  num_codes: int
  init: Callable[..., tuple[Params, State]]
  apply: Callable[..., tuple[Quantized, State]]
  embed: Callable[..., jax.Array]
  objective: Callable[..., jax.Array]
  read: Callable[..., jax.Array] | None
  write: Callable[..., tuple[Params, State]] | None
  finish: Callable[..., tuple[Params, State, Any]]


def plain_codebook() -> dict[str, Callable]:
  """Returns what a quantizer has whose params are just `{'codebook'}`."""

  def embed(params, state, codes):
    del state
    return params['codebook'][codes]

  def read(params, state):
    del state
    return params['codebook']

  def write(params, state, rows, where):
    codebook = params['codebook']
    rows = jnp.where(where[:, None], rows.astype(codebook.dtype), codebook)
    return {**params, 'codebook': rows}, state

  return dict(embed=embed, read=read, write=write, finish=nothing_to_finish)


def nothing_to_finish(params: Params, state: State) -> tuple:
  """The `finish` of a quantizer that rewrites nothing."""
  return params, state, jax.tree.map(lambda _: jnp.zeros((), bool), params)


def mean_objective(
    squared_error: jax.Array,
    quantized: Quantized,
    *,
    data_dim: int,
    positions: int,
) -> jax.Array:
  """The `objective` that adds the loss to the mean squared error."""
  del positions
  return jnp.mean(squared_error) / data_dim + quantized.loss


def check_choice(
    where: str, name: str, value: str, choices: tuple[str, ...]
) -> None:
  """Raises a ValueError unless `value` is one of `choices`."""
  if value not in choices:
    raise ValueError(
        f'{where}: {name}={value!r} is unknown; it must be one of'
        f' {", ".join(choices)}'
    )


def training_key(
    train: bool,
    key: chex.PRNGKey | None,
    temperature: chex.Numeric | None,
) -> chex.PRNGKey | None:
  """Returns the key to draw noise with; None at evaluation, which draws none.

  Raises:
    ValueError: where training lacks its key or its temperature.
  """
  if not train:
    return None
  if key is None or temperature is None:
    raise ValueError(
        f'train=True with key={key} and temperature={temperature}: both must'
        ' be given'
    )
  return key


def apply_mask(
    h: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Returns `h [..., K]` with 0 where masked out, and the mask `[...]` itself.

  Zeros, because a padded position may hold a NaN, which would otherwise reach
  the gradient of every other.
  """
  if mask is None:
    return h, jnp.ones(h.shape[:-1], bool)
  chex.assert_shape(mask, h.shape[:-1])
  return jnp.where(mask[..., None], h, 0), mask


def latent_metrics(
    z_hat: jax.Array,
    error: jax.Array,
    mean: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
  """Returns what every quantizer reports of its latents, each per channel.

  Args:
    z_hat: `[..., L]`, the latents as they are searched.
    error: `[...]`, the mean square of what they are from their codewords.
    mean: averages `[..., *rest]` over the positions that count.
  """
  centred = z_hat - mean(z_hat)
  return {
      'quantization_error': mean(error),
      'latent_variance': mean(jnp.mean(jnp.square(centred), axis=-1)),
  }


def mean_square(
    difference: jax.Array, mask: jax.Array, axis_name: str | None
) -> jax.Array:
  """Returns the mean square of `[..., L]` over channels and positions, `[]`."""
  square = jnp.mean(jnp.square(difference), axis=-1)
  return numerics.masked_mean(square, mask, axis_name=axis_name)


def sums_of_latents(
    latents: jax.Array,
    codes: jax.Array,
    num_codes: int,
    mask: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array]:
  """Returns how many latents each code has, `[C]`, and their sum, `[C, L]`."""
  codes, weights = codes.reshape(-1), mask.reshape(-1).astype(latents.dtype)
  flat = weights[:, None] * latents.reshape(-1, latents.shape[-1])
  counts = jnp.zeros(num_codes, latents.dtype).at[codes].add(weights)
  sums = jnp.zeros((num_codes, flat.shape[1]), flat.dtype).at[codes].add(flat)
  if axis_name is not None:
    counts, sums = jax.lax.psum((counts, sums), axis_name)
  return counts, sums


def shares(
    codes: jax.Array, num_codes: int, mask: jax.Array, axis_name: str | None
) -> jax.Array:
  """Returns the share of positions of each code, `[C]`."""
  counts = codebook.code_counts(codes, num_codes, mask=mask)
  if axis_name is not None:
    counts = jax.lax.psum(counts, axis_name)
  return counts / jnp.maximum(counts.sum(), jnp.finfo(counts.dtype).tiny)


def hard(
    z: jax.Array,
    codes: jax.Array,
    z_hat: jax.Array,
    codewords: jax.Array,
    loss: jax.Array,
    num_codes: int,
    mask: jax.Array,
    axis_name: str | None,
) -> Quantized:
  """Returns the result of a quantizer without a posterior."""

  def mean(values):
    return numerics.masked_mean(values, mask, axis_name=axis_name)

  q_c = shares(codes, num_codes, mask, axis_name)
  error = jnp.mean(jnp.square(z_hat - codewords), axis=-1)
  return Quantized(z, codes, q_c, loss, latent_metrics(z_hat, error, mean))
