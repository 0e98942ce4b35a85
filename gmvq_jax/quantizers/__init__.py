"""Vector quantizers as tuples of pure functions, made by factories."""

from gmvq_jax.quantizers.base import Quantized
from gmvq_jax.quantizers.base import Quantizer
from gmvq_jax.quantizers.compose.grouped import grouped
from gmvq_jax.quantizers.compose.projected import projected
from gmvq_jax.quantizers.compose.residual import residual
from gmvq_jax.quantizers.initialization import kmeans_start
from gmvq_jax.quantizers.methods.bsq import bsq
from gmvq_jax.quantizers.methods.diveq import diveq
from gmvq_jax.quantizers.methods.fsp import fsp
from gmvq_jax.quantizers.methods.fsq import fsq
from gmvq_jax.quantizers.methods.gmvq import AGGREGATES
from gmvq_jax.quantizers.methods.gmvq import LATENT_TERMS
from gmvq_jax.quantizers.methods.gmvq import gmvq
from gmvq_jax.quantizers.methods.gumbel import gumbel
from gmvq_jax.quantizers.methods.lfq import lfq
from gmvq_jax.quantizers.methods.simvq import simvq
from gmvq_jax.quantizers.methods.sqvae import VARIANCES
from gmvq_jax.quantizers.methods.sqvae import sqvae
from gmvq_jax.quantizers.methods.vqvae import vqvae
from gmvq_jax.quantizers.methods.vqvae import vqvae_ema
from gmvq_jax.quantizers.optimizer import optimizer
from gmvq_jax.quantizers.ranking import top_codes
from gmvq_jax.quantizers.registry import FACTORIES
from gmvq_jax.quantizers.registry import WRAPPERS
from gmvq_jax.quantizers.registry import fields
from gmvq_jax.quantizers.registry import make
from gmvq_jax.quantizers.registry import parts
from gmvq_jax.quantizers.wrappers.affine import with_affine
from gmvq_jax.quantizers.wrappers.alternate import with_alternate_optimization
from gmvq_jax.quantizers.wrappers.frozen import with_frozen_codebook
from gmvq_jax.quantizers.wrappers.l2 import with_l2_normalization
from gmvq_jax.quantizers.wrappers.replacement import with_replacement
from gmvq_jax.quantizers.wrappers.rotation import with_rotation_trick

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
    'fsp',
    'fsq',
    'gmvq',
    'grouped',
    'gumbel',
    'kmeans_start',
    'lfq',
    'make',
    'optimizer',
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
