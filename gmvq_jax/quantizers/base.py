"""What a quantizer is: a tuple of pure functions over params and state."""

from collections.abc import Callable
import numbers
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import clustering
from gmvq_jax.ops import numerics
from gmvq_jax.ops import posterior
from gmvq_jax.ops.albo import perplexity

Params = Any  # A pytree of arrays; the optimiser's.
State = Any  # A pytree of arrays; the quantizer's own.


class Quantized(NamedTuple):
  """What a quantizer makes of a batch of positions.

  Attributes:
    z: `[..., L]`, what the decoder sees; 0 where masked out.
    codes: `[..., *code_shape]` int32; -1 where masked out.
    q_c: `[C]`, this batch's aggregated posterior; the shares of the codes where
      there is no posterior. Of several codebooks `[..., C]`.
    loss: `[]`, the quantizer's own terms, averaged over positions. How they are
      weighed against the squared error is up to `Quantizer.objective`.
    metrics: every term by itself, each `[]`, averaged over positions; and of
      the codes of this batch `perplexity`, from 1 to C, and `usage`, the share
      of codes that occur.
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
      `h [..., sum(heads)]`. Training needs a key where something is drawn, and
      a temperature for relaxed codes (gmvq, sqvae, gumbel); evaluation needs
      neither and is deterministic. `mask [...]` is True where a position
      counts; the others take no part in anything, whatever they hold.
      `axis_name` is the mapped axis of `pmap` or `shard_map`.
    embed: `(params, state, codes [..., *code_shape]) -> [..., L]`, what the
      decoder sees for codes at evaluation; 0 for -1.
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
    logits: `(params, state, h) -> [..., *code_shape, C]`, of which evaluation
      takes the largest: log-probabilities up to a constant of each position.
      Where there is no posterior, minus squared distances.
    straight_through: whether z is a constant whose gradient is handed to the
      latents, and to nothing else.
    code_shape: axes of the codes of one position: none, but where quantizers
      are composed.
    start: `(key, params, state, h, *, mask=None, num_iterations=10) -> (params,
      state)`, where a k-means start is more than to `write` centres; see
      `kmeans_start`.
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
  logits: Callable[..., jax.Array]
  straight_through: bool = False
  code_shape: tuple[int, ...] = ()
  start: Callable[..., tuple[Params, State]] | None = None


def plain_codebook() -> dict[str, Callable]:
  """Returns what a quantizer has whose params are just `{'codebook'}`."""

  def embed(params, state, codes):
    del state
    return look_up(params['codebook'], codes)

  def read(params, state):
    del state
    return params['codebook']

  def write(params, state, rows, where):
    codebook = params['codebook']
    rows = jnp.where(where[:, None], rows.astype(codebook.dtype), codebook)
    return {**params, 'codebook': rows}, state

  return dict(embed=embed, read=read, write=write, finish=nothing_to_finish)


def no_codebook() -> dict[str, Any]:
  """Returns what a quantizer has that has neither params nor state."""
  return dict(
      init=lambda key: ({}, {}),
      objective=mean_objective,
      read=None,
      write=None,
      finish=nothing_to_finish,
      straight_through=True,
  )


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


def check_sizes(where: str, **sizes: int) -> None:
  """Raises a ValueError unless sizes are integers of at least 1."""
  for name, size in sizes.items():
    if not isinstance(size, numbers.Integral) or size < 1:
      raise ValueError(
          f'{where}: {name}={size!r}: must be an integer of at least 1'
      )


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
  given = {'key': key, 'temperature': temperature}
  missing = ' and '.join(name for name, x in given.items() if x is None)
  if missing:
    raise ValueError(f'train=True without {missing}: must be given')
  return key


def check_key(name: str, key: chex.PRNGKey | None, train: bool) -> None:
  """Raises a ValueError where training lacks its key."""
  if train and key is None:
    raise ValueError(f'{name}: train=True with key=None: a key must be given')


def apply_mask(
    h: jax.Array, mask: jax.Array | None, heads: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Returns `h [..., K]` with 0 where masked out, and the mask `[...]` itself.

  Zeros, because a padded position may hold a NaN, which would otherwise reach
  the gradient of every other.

  Raises:
    ValueError: for a last dimension that is not the sum of the heads, or a mask
      of another shape.
  """
  if h.shape[-1:] != (sum(heads),):
    raise ValueError(
        f'h of shape {h.shape}: the last dimension must be {sum(heads)}, that'
        f' of heads={tuple(heads)}'
    )
  if mask is None:
    return h, jnp.ones(h.shape[:-1], bool)
  mask = jnp.asarray(mask, bool)
  if mask.shape != h.shape[:-1]:
    raise ValueError(
        f'mask of shape {mask.shape}: must be {h.shape[:-1]}, that of h without'
        ' its last dimension'
    )
  return zero_unless(mask, h), mask


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


def look_up(rows: jax.Array, codes: jax.Array) -> jax.Array:
  """Returns the rows `[..., L]` of codes `[...]`; 0 for -1."""
  return zero_unless(codes >= 0, rows[codes])


def zero_unless(mask: jax.Array, values: jax.Array) -> jax.Array:
  """Returns `values [..., L]`, with 0 where the mask `[...]` is False."""
  return jnp.where(mask[..., None], values, 0)


def distance_logits(z_hat: jax.Array, rows: jax.Array) -> jax.Array:
  """Returns `-|z - e|^2` up to a constant of each position, `[..., C]`.

  Args:
    z_hat: `[..., L]`.
    rows: `[C, L]`, the codewords.
  """
  z_hat, rows = numerics.promote(z_hat, rows)
  centre = posterior.centre_of(rows)
  centred = rows - centre
  products = jnp.matmul(z_hat - centre, centred.T, precision=numerics.PRECISION)
  return 2 * products - jnp.sum(jnp.square(centred), axis=-1)


def shares(
    codes: jax.Array, num_codes: int, mask: jax.Array, axis_name: str | None
) -> jax.Array:
  """Returns the share of positions of each code, `[C]`."""
  counts = clustering.code_counts(codes, num_codes, mask=mask)
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

  error = jnp.mean(jnp.square(z_hat - codewords), axis=-1)
  metrics = latent_metrics(z_hat, error, mean)
  return result(z, codes, loss, metrics, num_codes, mask, axis_name)


def result(
    z: jax.Array,
    codes: jax.Array,
    loss: jax.Array,
    metrics: dict[str, jax.Array],
    num_codes: int,
    mask: jax.Array,
    axis_name: str | None,
    *,
    q_c: jax.Array | None = None,
) -> Quantized:
  """Returns a result, less what is masked out, with the use of its codes."""
  used = shares(codes, num_codes, mask, axis_name)
  return Quantized(
      z=zero_unless(mask, z),
      codes=jnp.where(mask, codes, -1),
      q_c=used if q_c is None else q_c,
      loss=loss,
      metrics={
          **metrics,
          'perplexity': perplexity(used),
          'usage': jnp.mean(used > 0),
      },
  )
