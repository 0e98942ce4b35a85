"""Vector quantizers as tuples of pure functions, made by factories."""

from collections.abc import Callable
import inspect

from gmvq_jax.quantizers.base import Quantized
from gmvq_jax.quantizers.base import Quantizer
from gmvq_jax.quantizers.base import check_choice
from gmvq_jax.quantizers.methods.bsq import bsq
from gmvq_jax.quantizers.methods.diveq import diveq
from gmvq_jax.quantizers.methods.fsq import fsq
from gmvq_jax.quantizers.methods.gmvq import AGGREGATES
from gmvq_jax.quantizers.methods.gmvq import LATENT_TERMS
from gmvq_jax.quantizers.methods.gmvq import gmvq
from gmvq_jax.quantizers.compose.grouped import grouped
from gmvq_jax.quantizers.methods.gumbel import gumbel
from gmvq_jax.quantizers.methods.lfq import lfq
from gmvq_jax.quantizers.compose.projected import projected
from gmvq_jax.quantizers.ranking import top_codes
from gmvq_jax.quantizers.compose.residual import residual
from gmvq_jax.quantizers.wrappers.rotation import with_rotation_trick
from gmvq_jax.quantizers.methods.simvq import simvq
from gmvq_jax.quantizers.methods.sqvae import VARIANCES
from gmvq_jax.quantizers.methods.sqvae import sqvae
from gmvq_jax.quantizers.initialization import kmeans_start
from gmvq_jax.quantizers.methods.vqvae import vqvae
from gmvq_jax.quantizers.methods.vqvae import vqvae_ema
from gmvq_jax.quantizers.wrappers.codebooks import with_affine
from gmvq_jax.quantizers.wrappers.codebooks import with_alternate_optimization
from gmvq_jax.quantizers.wrappers.codebooks import with_frozen_codebook
from gmvq_jax.quantizers.wrappers.codebooks import with_l2_normalization
from gmvq_jax.quantizers.wrappers.codebooks import with_replacement

FACTORIES = {
    'gmvq': gmvq,
    'vqvae': vqvae,
    'vqvae+ema': vqvae_ema,
    'sqvae': sqvae,
    'gumbel': gumbel,
    'fsq': fsq,
    'lfq': lfq,
    'bsq': bsq,
    'simvq': simvq,
    'diveq': diveq,
}
# From the inside out, whatever the order in a name.
WRAPPERS = {
    'opt': with_alternate_optimization,
    'affine': with_affine,
    'rotation': with_rotation_trick,
    'l2': with_l2_normalization,
    'replace': with_replacement,
    'frozen': with_frozen_codebook,
}


def make(name: str, **hyperparameters) -> Quantizer:
  """Returns the quantizer of a name.

  Args:
    name: a key of `FACTORIES`, with any of `WRAPPERS` after a `+`, such as
      `vqvae+l2+replace`; `frozen` alone is `vqvae+frozen`.
    **hyperparameters: the arguments of the factory and of the wrappers; those
      that none of them has are left out.

  Raises:
    ValueError: for an unknown name, and for parts that do not go together.
  """
  quantizer = None
  for part in parts(name):
    arguments = {
        key: value
        for key, value in hyperparameters.items()
        if key in inspect.signature(part).parameters
    }
    first = () if quantizer is None else (quantizer,)
    quantizer = part(*first, **arguments)
  return quantizer


def parts(name: str) -> list[Callable[..., Quantizer]]:
  """Returns the factory and the wrappers of a name, from the inside out.

  Raises:
    ValueError: for an unknown name.
  """
  base, *added = name.split('+')
  if base == 'frozen':
    base, added = 'vqvae', ['frozen', *added]
  if base == 'vqvae' and 'ema' in added:
    base = 'vqvae+ema'
    added.remove('ema')
  check_choice('quantizer', 'name', base, tuple(FACTORIES))
  for wrapper in added:
    check_choice(f'quantizer {name}', 'part', wrapper, tuple(WRAPPERS))
  return [FACTORIES[base], *(WRAPPERS[w] for w in WRAPPERS if w in added)]


def fields(name: str) -> dict[str, inspect.Parameter]:
  """Returns the hyperparameters of a name, by their own names.

  Raises:
    ValueError: for an unknown name.
  """
  return {
      key: parameter
      for part in parts(name)
      for key, parameter in inspect.signature(part).parameters.items()
      if key != 'inner'
  }


__all__ = [
    'AGGREGATES',
    'FACTORIES',
    'LATENT_TERMS',
    'Quantized',
    'Quantizer',
    'VARIANCES',
    'WRAPPERS',
    'bsq',
    'diveq',
    'fields',
    'fsq',
    'gmvq',
    'grouped',
    'gumbel',
    'kmeans_start',
    'lfq',
    'make',
    'parts',
    'projected',
    'residual',
    'simvq',
    'sqvae',
    'top_codes',
    'vqvae',
    'vqvae_ema',
    'with_affine',
    'with_alternate_optimization',
    'with_frozen_codebook',
    'with_l2_normalization',
    'with_replacement',
    'with_rotation_trick',
]
