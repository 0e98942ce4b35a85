"""Images: where they come from, and the batches they are seen in.

Images are uint8 `[N, H, W, channels]` until they are on the device.
"""

from gmvq_jax.data.images import Images
from gmvq_jax.data.images import Lazy
from gmvq_jax.data.images import fingerprint
from gmvq_jax.data.loading import Splits
from gmvq_jax.data.loading import load
from gmvq_jax.data.pipeline import batches

__all__ = ['Images', 'Lazy', 'Splits', 'batches', 'fingerprint', 'load']
