"""What methods share: checks of arguments, statistics of a call, results."""

from collections.abc import Callable
from collections.abc import Iterable
import difflib
import math
import numbers
from typing import Any
from typing import NamedTuple
from typing import TypedDict

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gmvq_jax.ops import clustering
from gmvq_jax.ops import numerics
from gmvq_jax.ops import placement
from gmvq_jax.ops import posterior
from gmvq_jax.ops.albo import perplexity
from gmvq_jax.quantizers import base

# What a hyperparameter may be.
_RANGES: dict[str, Callable[[float], bool]] = {
    'at least 0': lambda x: x >= 0,
    'greater than 0': lambda x: x > 0,
    'from 0 to 1': lambda x: 0 <= x <= 1,
    'at least 0 and less than 1': lambda x: 0 <= x < 1,
}


class Call(NamedTuple):
  """The arguments of one `Quantizer.apply`, checked.

  Attributes:
    h: `[..., sum(heads)]`, 0 at masked positions: there may be NaNs, which
      would reach the gradient of every other position.
    mask: `[...]`, True at positions that count.
    key: see `base.ApplyFn`; None at evaluation.
    temperature: see `base.ApplyFn`.
    train: see `base.ApplyFn`.
    axis_name: see `base.ApplyFn`.
  """

  h: jax.Array
  mask: jax.Array
  key: chex.PRNGKey | None
  temperature: chex.Numeric | None
  train: bool
  axis_name: str | None

  def apply(
      self,
      quantizer: base.Quantizer,
      params: base.Params,
      state: base.State,
  ) -> tuple[base.Quantized, base.State]:
    """Returns the result of another quantizer for the same arguments."""
    return quantizer.apply(
        params,
        state,
        self.h,
        key=self.key,
        temperature=self.temperature,
        train=self.train,
        mask=self.mask,
        axis_name=self.axis_name,
    )

  def mean(self, values: jax.Array) -> jax.Array:
    """Returns the mean `[*rest]` of `values [..., *rest]` over positions."""
    return numerics.masked_mean(values, self.mask, axis_name=self.axis_name)

  def mean_square(self, difference: jax.Array) -> jax.Array:
    """Returns the mean square `[]` of `[..., L]` over positions, channels."""
    return self.mean(jnp.mean(jnp.square(difference), axis=-1))

  def shares(self, codes: jax.Array, num_codes: int) -> jax.Array:
    """Returns the share of positions `[C]` of each code."""
    counts = clustering.code_counts(codes, num_codes, mask=self.mask)
    if self.axis_name is not None:
      counts = jax.lax.psum(counts, self.axis_name)
    return counts / jnp.maximum(counts.sum(), jnp.finfo(counts.dtype).tiny)

  def sums(
      self, latents: jax.Array, codes: jax.Array, num_codes: int
  ) -> tuple[jax.Array, jax.Array]:
    """Returns how many latents each code has, `[C]`, and their sum `[C, L]`."""
    codes = codes.reshape(-1)
    weights = self.mask.reshape(-1).astype(latents.dtype)
    flat = weights[:, None] * latents.reshape(-1, latents.shape[-1])
    counts = jnp.zeros(num_codes, latents.dtype).at[codes].add(weights)
    sums = jnp.zeros((num_codes, flat.shape[1]), flat.dtype).at[codes].add(flat)
    if self.axis_name is not None:
      counts, sums = jax.lax.psum((counts, sums), self.axis_name)
    return counts, sums

  def latent_metrics(
      self, z_hat: jax.Array, error: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns what every quantizer reports of its latents, per channel.

    Args:
      z_hat: `[..., L]`, the latents as they are searched.
      error: `[...]`, the mean square of their difference from the codewords.
    """
    centred = z_hat - self.mean(z_hat)
    return {
        'quantization_error': self.mean(error),
        'latent_variance': self.mean(jnp.mean(jnp.square(centred), axis=-1)),
    }

  def quantized(
      self,
      z: jax.Array,
      codes: jax.Array,
      loss: jax.Array,
      metrics: dict[str, jax.Array],
      num_codes: int,
      *,
      q_c: jax.Array | None = None,
  ) -> base.Quantized:
    """Returns the result, with the use of its codes among the metrics.

    Args:
      z: `[..., L]`; masked positions are set to 0.
      codes: `[...]`; masked positions are set to -1.
      loss: `[]`.
      metrics: each `[]`.
      num_codes: C.
      q_c: `[C]`; the shares of the codes by default.
    """
    used = self.shares(codes, num_codes)
    return base.Quantized(
        z=zero_unless(self.mask, z),
        codes=jnp.where(self.mask, codes, -1),
        q_c=used if q_c is None else q_c,
        loss=loss,
        metrics={
            **metrics,
            'perplexity': perplexity(used),
            'usage': jnp.mean(used > 0),
        },
    )

  def nearest(
      self,
      z: jax.Array,
      codes: jax.Array,
      z_hat: jax.Array,
      codewords: jax.Array,
      loss: jax.Array,
      num_codes: int,
  ) -> base.Quantized:
    """Returns the result of a quantizer without a posterior.

    Args:
      z: `[..., L]`.
      codes: `[...]`.
      z_hat: `[..., L]`, the latents as they are searched.
      codewords: `[..., L]`, the nearest.
      loss: `[]`.
      num_codes: C.
    """
    error = jnp.mean(jnp.square(z_hat - codewords), axis=-1)
    metrics = self.latent_metrics(z_hat, error)
    return self.quantized(z, codes, loss, metrics, num_codes)


QuantizeFn = Callable[
    [base.Params, base.State, Call], tuple[base.Quantized, base.State]
]


def _specs(h: PartitionSpec, arguments: dict[str, Any]) -> Any:
  """Returns the partition specs of the results of `apply`."""
  x: Any = placement.leading(h)
  replicated: Any = placement.REPLICATED
  quantized = base.Quantized(x, x, replicated, replicated, replicated)
  return quantized, jax.tree.map(placement.spec_of, arguments['state'])


def as_apply(
    name: str,
    heads: tuple[int, ...],
    quantize: QuantizeFn,
    *,
    needs: tuple[str, ...] = (),
) -> base.ApplyFn:
  """Returns the `apply` of a quantizer.

  Args:
    name: of the quantizer, for its errors.
    heads: channels of each head.
    quantize: `(params, state, call) -> (Quantized, state)`.
    needs: what training needs: 'key', 'temperature', both or neither.
  """

  @placement.with_auto_axes('h', _specs)
  def apply(
      params: base.Params,
      state: base.State,
      h: jax.Array,
      *,
      key: chex.PRNGKey | None = None,
      temperature: chex.Numeric | None = None,
      train: bool = False,
      mask: jax.Array | None = None,
      axis_name: str | None = None,
      **unknown: object,
  ) -> tuple[base.Quantized, base.State]:
    check_keywords(f'{name}: apply', unknown, _KEYWORDS)
    h, mask = apply_mask(h, mask, heads)
    given = {'key': key, 'temperature': temperature}
    missing = [x for x in needs if given[x] is None]
    if train and missing:
      raise ValueError(
          f'{name}: train=True without {" and ".join(missing)}: must be given'
      )
    call = Call(h, mask, key if train else None, temperature, train, axis_name)
    return quantize(params, state, call)

  return apply


_KEYWORDS = ('key', 'temperature', 'train', 'mask', 'axis_name')


def check_keywords(
    where: str, unknown: Iterable[str], known: Iterable[str]
) -> None:
  """Raises a TypeError for the first of some unknown keywords."""
  for keyword in unknown:
    close = difflib.get_close_matches(keyword, known, n=1)
    raise TypeError(
        f'{where}: unexpected keyword {keyword!r}; '
        + (f'did you mean {close[0]!r}?' if close else 'there are ')
        + ('' if close else ', '.join(known))
    )


def check_sizes(where: str, **sizes: int) -> None:
  """Raises a ValueError unless sizes are integers of at least 1."""
  for name, size in sizes.items():
    integral = isinstance(size, numbers.Integral) and size is not True
    if not integral or size < 1:
      raise ValueError(
          f'{where}: {name}={size!r}: must be an integer of at least 1'
      )


def check_choice(
    where: str, name: str, value: str, choices: tuple[str, ...]
) -> None:
  """Raises a ValueError unless `value` is one of `choices`."""
  if value not in choices:
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    raise ValueError(
        f'{where}: {name}={value!r} is unknown; it must be one of'
        f' {", ".join(choices)}{hint}'
    )


def check_range(where: str, wanted: str, **values: float) -> None:
  """Raises a ValueError unless numbers are finite and in a range.

  Args:
    where: the name of the quantizer.
    wanted: a key of `_RANGES`, such as 'at least 0'.
    **values: the numbers; traced ones are not checked.
  """
  for name, value in values.items():
    if isinstance(value, jax.core.Tracer):
      continue
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    real = real or (isinstance(value, jax.Array) and value.ndim == 0)
    if not real or not math.isfinite(value) or not _RANGES[wanted](value):
      raise ValueError(f'{where}: {name}={value!r}: must be {wanted}')


def apply_mask(
    h: jax.Array, mask: jax.Array | None, heads: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Returns `h [..., K]`, 0 at masked positions, and the mask `[...]`.

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


class PlainCodebook(TypedDict):
  """Parts of a `Quantizer`."""

  embed: base.EmbedFn
  read: base.ReadFn
  write: base.WriteFn | None
  finish: base.FinishFn
  updates: base.Updates


def plain_codebook() -> PlainCodebook:
  """Returns the parts of a quantizer whose params are `{'codebook'}`."""

  def embed(
      params: base.Params, state: base.State, codes: jax.Array
  ) -> jax.Array:
    del state
    return look_up(params['codebook'], codes)

  def read(params: base.Params, state: base.State) -> jax.Array:
    del state
    rows: jax.Array = params['codebook']
    return rows

  def write(
      params: base.Params, state: base.State, rows: jax.Array, where: jax.Array
  ) -> tuple[base.Params, base.State]:
    codebook = params['codebook']
    rows = jnp.where(where[:, None], rows.astype(codebook.dtype), codebook)
    return {**params, 'codebook': rows}, state

  return {
      'embed': embed,
      'read': read,
      'write': write,
      'finish': nothing_to_finish,
      'updates': 'gradient',
  }


class NoCodebook(TypedDict):
  """Parts of a `Quantizer`."""

  init: base.InitFn
  objective: base.ObjectiveFn
  read: None
  write: None
  finish: base.FinishFn
  updates: base.Updates
  straight_through: bool


def no_codebook() -> NoCodebook:
  """Returns the parts of a quantizer with neither params nor state."""

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    del key
    return {}, {}

  return {
      'init': init,
      'objective': mean_objective,
      'read': None,
      'write': None,
      'finish': nothing_to_finish,
      'updates': 'no codebook',
      'straight_through': True,
  }


def nothing_to_finish(
    params: base.Params, state: base.State
) -> tuple[base.Params, base.State, base.Params]:
  """The `finish` of a quantizer that replaces nothing."""
  never = jnp.zeros((), jnp.int32)
  return params, state, jax.tree.map(lambda _: never, params)


def mean_objective(
    error: jax.Array,
    quantized: base.Quantized,
    *,
    data_shape: tuple[int, ...],
) -> jax.Array:
  """The `objective` that adds the loss to the mean squared error."""
  loss_shape(error, quantized, data_shape)
  return error + quantized.loss


def loss_shape(
    error: jax.Array, quantized: base.Quantized, data_shape: tuple[int, ...]
) -> tuple[int, int]:
  """Returns the positions and the values of one example.

  Args:
    error: `[]`.
    quantized: its codes `[B, ...]` of a quantizer without `code_shape`.
    data_shape: `(B, ...)`.

  Raises:
    ValueError: for an error that is not a mean, and for other batch sizes.
  """
  shape = quantized.codes.shape
  if jnp.ndim(error):
    raise ValueError(
        f'objective: error of shape {jnp.shape(error)}: must be [], the mean'
        ' over the batch and the values of each example'
    )
  if not shape or tuple(data_shape[:1]) != shape[:1]:
    raise ValueError(
        f'objective: data_shape={tuple(data_shape)} with codes of shape'
        f' {shape}: both must begin with the batch size'
    )
  return math.prod(shape[1:]), math.prod(data_shape[1:])


@placement.with_auto_axes('codes', lambda codes, _: codes)
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
