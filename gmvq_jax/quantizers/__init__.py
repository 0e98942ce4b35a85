"""Vector quantizers as tuples of pure functions, made by factories."""

from gmvq_jax.quantizers.base import Quantized
from gmvq_jax.quantizers.base import Quantizer
from gmvq_jax.quantizers.base import check_choice
from gmvq_jax.quantizers.gmvq import AGGREGATES
from gmvq_jax.quantizers.gmvq import LATENT_TERMS
from gmvq_jax.quantizers.gmvq import gmvq

FACTORIES = {'gmvq': gmvq}


def make(name: str, **hyperparameters) -> Quantizer:
  """Returns the quantizer of that name.

  Args:
    name: a key of `FACTORIES`.
    **hyperparameters: the arguments of the factory.

  Raises:
    ValueError: for an unknown name.
  """
  check_choice('quantizer', 'name', name, tuple(FACTORIES))
  return FACTORIES[name](**hyperparameters)


__all__ = [
    'AGGREGATES',
    'FACTORIES',
    'LATENT_TERMS',
    'Quantized',
    'Quantizer',
    'gmvq',
    'make',
]
