"""What wrappers ask of the quantizer that they wrap."""

import jax
import jax.numpy as jnp

from gmvq_jax.quantizers import base

# From the inside out. The rotation trick concerns the decoder's gradient alone,
# and goes anywhere but inside of `opt`, which has a gradient of its own.
ORDER = ('opt', 'affine', 'l2', 'replace', 'frozen')


def wrap(
    name: str, inner: base.Quantizer, *refused: base.Updates
) -> tuple[str, ...]:
  """Returns the `wrappers` of a quantizer after one more wrapper.

  Args:
    name: of the wrapper.
    inner: what it wraps.
    *refused: codebooks that it does not go with.

  Raises:
    ValueError: if the wrapper is there already, or must be further inside, or
      if there is no codebook of the right kind.
  """
  if name in inner.wrappers:
    raise ValueError(f'{name}: is there already; wrap once')
  if name in ORDER:
    outer = ORDER[ORDER.index(name) + 1 :]
    if name == 'opt':
      outer = ('rotation', *outer)
    for other in inner.wrappers:
      if other in outer:
        raise ValueError(
            f'{name}: goes inside of {other}; wrap in the order'
            f' {", ".join(ORDER)}'
        )
  if inner.updates in refused:
    raise ValueError(f'{name}: {_REASONS[inner.updates]}')
  return (*inner.wrappers, name)


_REASONS: dict[base.Updates, str] = {
    'gradient': 'does not go with a codebook that is trained by gradients',
    'average': 'does not go with ema, whose codewords no gradient reaches',
    'alternate': 'does not go with opt',
    'map': 'does not go with simvq, whose codebook has a map of its own',
    'frozen': 'the codebook is frozen; freeze it after this',
    'no codebook': 'there is no codebook',
}


def check_searched(name: str, inner: base.Quantizer) -> None:
  """Raises a ValueError unless latents are compared with codewords."""
  if inner.read is None or inner.write is None:
    raise ValueError(
        f'{name}: goes with quantizers that compare latents with codewords,'
        ' such as vqvae, gmvq or sqvae; this one does not'
        if not inner.code_shape and inner.initialize is None
        else f'{name}: goes inside of residual, grouped and projected'
    )


def codebook_of(
    name: str, inner: base.Quantizer
) -> tuple[base.ReadFn, base.WriteFn]:
  """Returns `read` and `write` of a quantizer that has both.

  Raises:
    ValueError: if it has not; see `check_searched`.
  """
  check_searched(name, inner)
  assert inner.read is not None and inner.write is not None
  return inner.read, inner.write


def everywhere(rows: jax.Array) -> jax.Array:
  """Returns `where [C]` of all rows `[C, L]`."""
  return jnp.ones(len(rows), bool)
