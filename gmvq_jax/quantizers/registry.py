"""Quantizers by name, such as `vqvae+l2+replace`."""

from collections.abc import Callable
import inspect
from typing import Any

from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common
from gmvq_jax.quantizers.methods.bsq import bsq
from gmvq_jax.quantizers.methods.diveq import diveq
from gmvq_jax.quantizers.methods.fsp import fsp
from gmvq_jax.quantizers.methods.fsq import fsq
from gmvq_jax.quantizers.methods.gmvq import gmvq
from gmvq_jax.quantizers.methods.gumbel import gumbel
from gmvq_jax.quantizers.methods.lfq import lfq
from gmvq_jax.quantizers.methods.simvq import simvq
from gmvq_jax.quantizers.methods.sqvae import sqvae
from gmvq_jax.quantizers.methods.vqvae import vqvae
from gmvq_jax.quantizers.methods.vqvae import vqvae_ema
from gmvq_jax.quantizers.wrappers.affine import with_affine
from gmvq_jax.quantizers.wrappers.alternate import with_alternate_optimization
from gmvq_jax.quantizers.wrappers.frozen import with_frozen_codebook
from gmvq_jax.quantizers.wrappers.l2 import with_l2_normalization
from gmvq_jax.quantizers.wrappers.replacement import with_replacement
from gmvq_jax.quantizers.wrappers.rotation import with_rotation_trick

FACTORIES: dict[str, Callable[..., base.Quantizer]] = {
    'gmvq': gmvq,
    'vqvae': vqvae,
    'vqvae+ema': vqvae_ema,
    'sqvae': sqvae,
    'gumbel': gumbel,
    'fsq': fsq,
    'fsp': fsp,
    'lfq': lfq,
    'bsq': bsq,
    'simvq': simvq,
    'diveq': diveq,
}
# Wrappers are applied in this order: the first is the innermost. The order in a
# name, such as `vqvae+replace+l2`, does not matter.
WRAPPERS: dict[str, Callable[..., base.Quantizer]] = {
    'opt': with_alternate_optimization,
    'affine': with_affine,
    'rotation': with_rotation_trick,
    'l2': with_l2_normalization,
    'replace': with_replacement,
    'frozen': with_frozen_codebook,
}


def make(name: str, **hyperparameters: Any) -> base.Quantizer:
  """Returns the quantizer of a name.

  Args:
    name: a key of `FACTORIES`, with any of `WRAPPERS` after a `+`, such as
      `vqvae+l2+replace`; `frozen` alone is `vqvae+frozen`.
    **hyperparameters: the arguments of the factory and of the wrappers.

  Raises:
    ValueError: for an unknown name, for parts that do not go together, and for
      hyperparameters out of range.
    TypeError: for a hyperparameter that no part has.
  """
  common.check_keywords(
      f'quantizer {name}',
      [key for key in hyperparameters if key not in fields(name)],
      fields(name),
  )
  factory, *wrappers = parts(name)
  quantizer = factory(**_arguments(factory, hyperparameters))
  for wrapper in wrappers:
    quantizer = wrapper(quantizer, **_arguments(wrapper, hyperparameters))
  return quantizer


def parts(name: str) -> list[Callable[..., base.Quantizer]]:
  """Returns the factory and the wrappers of a name, from the inside out.

  Raises:
    ValueError: for an unknown name.
  """
  factory, *added = name.split('+')
  if factory == 'frozen':
    factory, added = 'vqvae', ['frozen', *added]
  if factory == 'vqvae' and 'ema' in added:
    factory = 'vqvae+ema'
    added.remove('ema')
  common.check_choice('quantizer', 'name', factory, tuple(FACTORIES))
  for wrapper in added:
    common.check_choice(f'quantizer {name}', 'part', wrapper, tuple(WRAPPERS))
  return [FACTORIES[factory], *(WRAPPERS[w] for w in WRAPPERS if w in added)]


def fields(name: str) -> dict[str, inspect.Parameter]:
  """Returns the hyperparameters of a name.

  Raises:
    ValueError: for an unknown name.
  """
  return {
      key: parameter
      for part in parts(name)
      for key, parameter in inspect.signature(part).parameters.items()
      if key != 'inner'
  }


def _arguments(
    part: Callable[..., base.Quantizer], hyperparameters: dict[str, Any]
) -> dict[str, Any]:
  """Returns the hyperparameters that a part takes."""
  known = inspect.signature(part).parameters
  return {k: v for k, v in hyperparameters.items() if k in known}
