"""Flax: networks, the autoencoder made of them, losses, and Linen modules.

Everything that knows Flax is here, in thin files.
"""

from gmvq_jax.nn.autoencoder import Autoencoder
from gmvq_jax.nn.autoencoder import Variables
from gmvq_jax.nn.vector_quantizer import VectorQuantizer

__all__ = ['Autoencoder', 'Variables', 'VectorQuantizer']
