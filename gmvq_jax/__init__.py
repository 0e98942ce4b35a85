"""GM-VQ and vector quantization in JAX: pure functions and Flax modules."""

import importlib
from typing import TYPE_CHECKING
from typing import Any

from gmvq_jax.nn.vector_quantizer import VectorQuantizer
from gmvq_jax.ops import bounds
from gmvq_jax.ops import mixture
from gmvq_jax.ops.albo import Albo
from gmvq_jax.ops.albo import albo
from gmvq_jax.ops.albo import kl_to_uniform
from gmvq_jax.ops.albo import latent_aggregated
from gmvq_jax.ops.albo import latent_coupled
from gmvq_jax.ops.albo import latent_expected
from gmvq_jax.ops.albo import perplexity
from gmvq_jax.ops.categorical import gumbel_softmax
from gmvq_jax.ops.categorical import posterior_entropy
from gmvq_jax.ops.clustering import code_counts
from gmvq_jax.ops.clustering import kmeans
from gmvq_jax.ops.clustering import nearest_codes
from gmvq_jax.ops.posterior import Latents
from gmvq_jax.ops.posterior import aggregated_posterior
from gmvq_jax.ops.posterior import component_variance
from gmvq_jax.ops.posterior import log_posterior
from gmvq_jax.ops.posterior import most_probable_latents
from gmvq_jax.ops.posterior import sample_latents
from gmvq_jax.quantizers import Quantized
from gmvq_jax.quantizers import Quantizer
from gmvq_jax.quantizers import bsq
from gmvq_jax.quantizers import diveq
from gmvq_jax.quantizers import fsp
from gmvq_jax.quantizers import fsq
from gmvq_jax.quantizers import gmvq
from gmvq_jax.quantizers import grouped
from gmvq_jax.quantizers import gumbel
from gmvq_jax.quantizers import kmeans_start
from gmvq_jax.quantizers import lfq
from gmvq_jax.quantizers import optimizer
from gmvq_jax.quantizers import projected
from gmvq_jax.quantizers import residual
from gmvq_jax.quantizers import simvq
from gmvq_jax.quantizers import sqvae
from gmvq_jax.quantizers import top_codes
from gmvq_jax.quantizers import vqvae
from gmvq_jax.quantizers import vqvae_ema
from gmvq_jax.quantizers import with_affine
from gmvq_jax.quantizers import with_alternate_optimization
from gmvq_jax.quantizers import with_frozen_codebook
from gmvq_jax.quantizers import with_l2_normalization
from gmvq_jax.quantizers import with_replacement
from gmvq_jax.quantizers import with_rotation_trick

if TYPE_CHECKING:
  from gmvq_jax.tokenizer import Tokenizer
  from gmvq_jax.tokenizer import code_files as codes
  from gmvq_jax.training import config as config

__all__ = [
    'Albo',
    'Latents',
    'Quantized',
    'Quantizer',
    'Tokenizer',
    'VectorQuantizer',
    'aggregated_posterior',
    'albo',
    'bounds',
    'bsq',
    'code_counts',
    'codes',
    'component_variance',
    'diveq',
    'fsp',
    'fsq',
    'gmvq',
    'grouped',
    'gumbel',
    'gumbel_softmax',
    'kl_to_uniform',
    'kmeans',
    'kmeans_start',
    'latent_aggregated',
    'latent_coupled',
    'latent_expected',
    'lfq',
    'log_posterior',
    'mixture',
    'most_probable_latents',
    'nearest_codes',
    'optimizer',
    'perplexity',
    'posterior_entropy',
    'projected',
    'residual',
    'sample_latents',
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

# Imported when they are used: they read and write files.
_LAZY = {
    'Tokenizer': ('gmvq_jax.tokenizer', 'Tokenizer'),
    'codes': ('gmvq_jax.tokenizer.code_files', None),
    'config': ('gmvq_jax.training.config', None),
}


# Type checkers, which see the imports above, report all other names.
if not TYPE_CHECKING:

  def __getattr__(name: str) -> Any:
    """Imports `Tokenizer`, `codes` or `config` when it is used."""
    if name not in _LAZY:
      raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, attribute = _LAZY[name]
    value = importlib.import_module(module)
    return getattr(value, attribute) if attribute else value


def __dir__() -> list[str]:
  """Returns all public names, those that are imported when used as well."""
  return sorted({*globals(), *_LAZY})
