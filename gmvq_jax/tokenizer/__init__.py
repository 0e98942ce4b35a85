"""A trained model in use: images to codes and back, files of codes, exports.

Nothing here trains.
"""

from gmvq_jax.tokenizer.tokenizer import Tokenizer

__all__ = ['Tokenizer']
