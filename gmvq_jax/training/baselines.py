"""What can be had without a network at the same bits: anchors for a number.

    python -m gmvq_jax.anchors --config=configs/cifar10.py [--bits=640]

Perplexity says little of merit, and an MSE by itself not much more. These show
how good it is: k-means on raw patches, which anything learnt should beat; the
rate-distortion function of a Gaussian with the covariance of the data, which is
the hardest source of that covariance, so a codec of real images can lie below
it; and for CIFAR10 published figures of codecs.
"""

import json
import math
from typing import Any
from typing import NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections import config_flags
import numpy as np

from gmvq_jax import data
from gmvq_jax import quantizers
from gmvq_jax.nn import losses
from gmvq_jax.ops import clustering
from gmvq_jax.reporting import codecs
from gmvq_jax.runtime import cache
from gmvq_jax.runtime import digests
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import progress
from gmvq_jax.training import command_line
from gmvq_jax.training import config_checks
from gmvq_jax.training import evaluate

# What is learnt from: more changes the third digit, and takes longer.
_IMAGES = 2**14
_IMAGE_BYTES = 2**28
_PATCHES = 2**19
_PATCH_VALUES = 2**26
_FIRST_PATCHES = 2**16
_ITERATIONS = 15
_MAX_CODES = 2**12
# Values in the largest block whose covariance is taken.
_BLOCK_VALUES = 3072


class Patches(NamedTuple):
  """How images are cut for k-means.

  Attributes:
    side: of a patch.
    num_codes: centroids.
    bits: per image, at a fixed length: positions times log2(num_codes).
  """

  side: int
  num_codes: int
  bits: float


def patches_of(config: ConfigDict, image_shape: tuple[int, ...]) -> Patches:
  """Returns patches with the positions and the codes of a configuration.

  Raises:
    errors.UserError: when images cannot be halved as often as it says.
  """
  height, width, _ = image_shape
  side = 2**config.network.num_downsamplings
  if height % side or width % side:
    raise errors.UserError(
        f'config.network.num_downsamplings={config.network.num_downsamplings}:'
        f' images of {height} x {width} cannot be halved that often'
    )
  num_codes = quantizers.make(**config.quantizer).num_codes
  positions = (height // side) * (width // side)
  return Patches(side, num_codes, positions * math.log2(num_codes))


def patches_for_bits(
    bits: float, image_shape: tuple[int, ...]
) -> Patches | None:
  """Returns the patches that come nearest to a number of bits per image.

  Of those within 0.5 % the largest, which are the best. None where all would
  need fewer than 2 or more than 4,096 centroids.
  """
  height, width, _ = image_shape
  candidates = []
  for side in _divisors(math.gcd(height, width)):
    positions = (height // side) * (width // side)
    num_codes = round(2 ** min(bits / positions, 64))
    if 2 <= num_codes <= _MAX_CODES:
      actual = positions * math.log2(num_codes)
      candidates.append(Patches(side, num_codes, actual))
  if not candidates:
    return None

  def badness(patches):
    off = abs(patches.bits - bits) / bits
    return (0 if off < 0.005 else off, -patches.side)

  return min(candidates, key=badness)


def kmeans_patches(
    train: np.ndarray,
    test: data.Images,
    patches: Patches,
    *,
    batch_size: int = 256,
) -> dict[str, float]:
  """Replaces patches by the nearest of the centroids of training patches.

  Args:
    train: uint8 `[n, H, W, channels]`.
    test: like it.
    patches: how to cut them.
    batch_size: images over which perplexity is measured, and averaged.

  Returns:
    Metrics as of `evaluate.evaluate`, and `side`, `num_codes` and `bits`.
  """
  cut = _cut(train, patches.side)
  points = cut.reshape(-1, cut.shape[-1])
  count = min(_PATCHES, _PATCH_VALUES // points.shape[1])
  order = np.random.default_rng(0).permutation(len(points))[:count]
  points = jnp.asarray(points[order], jnp.float32) / 255
  num_codes = min(patches.num_codes, len(points))
  centroids, _ = clustering.kmeans(
      jax.random.key(0), points[:_FIRST_PATCHES], num_codes, num_iterations=5
  )
  weights = jnp.ones(len(points))
  for _ in progress.track(range(_ITERATIONS), 'Clustering patches'):
    centroids = clustering.lloyd(points, weights, centroids).block_until_ready()

  sums = []
  for start in range(0, len(test), batch_size):
    cut = _cut(test[start : start + batch_size], patches.side)
    sums.append({
        'count': len(cut),
        **jax.tree.map(np.float64, jax.device_get(_assign(cut, centroids))),
    })
  metrics = evaluate.summarise(sums, batch_size)
  metrics = {k: v for k, v in metrics.items() if 'soft' not in k}
  return metrics | patches._asdict()


def gaussian(train: np.ndarray, bits: float) -> dict[str, Any]:
  """Returns the MSE of a Gaussian's rate-distortion function.

  By reverse water-filling over the eigenvalues of the covariance of blocks of
  pixels (Cover and Thomas 2006, theorem 10.3.3). A block is the whole image, or
  a square part where that has over 3,072 values or too few examples to tell its
  covariance.

  Args:
    train: uint8 `[n, H, W, channels]`.
    bits: per image.

  Returns:
    `mse` on [0, 1], its `psnr`, the `block`'s side, and whether that is the
    `whole` image.
  """
  _, height, width, channels = train.shape
  pixels = len(train) * height * width
  side = max(
      side
      for side in _divisors(math.gcd(height, width))
      if side == 1
      or side**2 * channels <= min(_BLOCK_VALUES, pixels / side**2 / 2)
  )
  blocks = _cut(train, side)
  covariance = _covariance(blocks.reshape(-1, blocks.shape[-1]))
  mse = water_filling(
      np.linalg.eigvalsh(covariance), bits * side**2 / (height * width)
  )
  return {
      'mse': mse,
      'psnr': float(losses.psnr(mse)),
      'block': side,
      'whole': side == height == width,
  }


def water_filling(variances: np.ndarray, bits: float) -> float:
  """Returns the distortion, per component, of independent Gaussians.

  Args:
    variances: `[n]`.
    bits: for all of them together.
  """
  positive = np.asarray(variances, np.float64)
  positive = positive[positive > 0]
  if not len(positive):
    return 0.0
  logs = np.log2(positive)
  # As the level of the water falls from the largest variance, the rate grows.
  low, high = logs.min() - 2 * bits, logs.max()
  for _ in range(200):
    level = (low + high) / 2
    rate = np.sum(np.maximum(logs - level, 0)) / 2
    low, high = (level, high) if rate > bits else (low, level)
  return float(np.minimum(positive, 2**high).sum() / len(variances))


def compute(
    splits: data.Splits,
    name: str,
    bits: float,
    patches: Patches | None,
    *,
    batch_size: int = 256,
) -> dict[str, Any]:
  """Returns the anchors, from the cache if they are there.

  Args:
    splits: of the data.
    name: of the data, for the name of the cache's file.
    bits: per image, of the Gaussian.
    patches: how to cut images for k-means. With more than 4,096 centroids it
      takes long, and is left out; so it is without any.
    batch_size: images over which the perplexity of k-means is measured.

  Returns:
    `bits`; `gaussian`, see `gaussian`; `kmeans`, see `kmeans_patches`, or None;
    `codecs`, a list of `reporting.codecs.Codec` as dictionaries.
  """
  if patches and patches.num_codes > _MAX_CODES:
    patches = None
  shown = [_identity(images) for images in (splits.train, splits.test)]

  def both():
    train = _some(splits.train)
    kmeans = None
    if patches:
      kmeans = kmeans_patches(
          train, splits.test, patches, batch_size=batch_size
      )
    return {'bits': bits, 'kmeans': kmeans, 'gaussian': gaussian(train, bits)}

  identity = f'2 {shown} {bits} {patches} {batch_size}'
  published = [codec._asdict() for codec in codecs.at_most(name, bits)]
  computed = cache.remember(f'anchors-{name}', identity, both)
  return {**computed, 'codecs': published}


def of_config(config: ConfigDict, splits: data.Splits) -> dict[str, Any]:
  """Returns the anchors of a run at its own bits; see `compute`."""
  patches = patches_of(config, splits.test.shape[1:])
  return compute(
      splits,
      config.data.name,
      patches.bits,
      patches,
      batch_size=config.eval_batch_size,
  )


def _some(images):
  """Returns an array of images at random, as many as can be afforded."""
  order = np.random.default_rng(0).permutation(len(images))
  each = max(int(np.prod(images.shape[1:])), 1)
  count = min(_IMAGES, max(_IMAGE_BYTES // each, 1))
  return images[np.sort(order[:count])]


def _identity(images):
  if isinstance(images, data.Lazy) and images.identity:
    return images.identity
  return f'{len(images)} {digests.sha256(_some(images))}'


def _divisors(number):
  return [d for d in range(1, number + 1) if number % d == 0]


def _cut(images, side):
  """Returns patches `[n, positions, side * side * channels]`."""
  n, height, width, channels = images.shape
  rows, columns = height // side, width // side
  cut = images.reshape(n, rows, side, columns, side, channels)
  return cut.swapaxes(2, 3).reshape(n, rows * columns, -1)


@jax.jit
def _assign(patches, centroids):
  """Returns the sums of a batch, as an `evaluate.EvalStep` does."""
  points = patches.astype(jnp.float32) / 255
  codes = clustering.nearest_codes(points, centroids)
  error = jnp.mean(jnp.square(points - centroids[codes]), axis=(1, 2))
  counts = clustering.code_counts(codes, len(centroids))
  return {
      'mse': error.sum(),
      'psnr_mean': losses.psnr(error).sum(),
      'hard_counts': counts,
      'soft_counts': counts,
  }


def _covariance(points):
  """Returns the covariance of uint8 `[n, d]` on [0, 1], in float64."""
  mean = points.mean(axis=0) / 255
  total = np.zeros((points.shape[1],) * 2)
  for start in range(0, len(points), 4096):
    part = (points[start : start + 4096] / 255 - mean).astype(np.float32)
    total += part.T @ part
  return total / len(points)


def _main(argv):
  if len(argv) > 1:
    raise errors.UserError(f'{argv[1]!r}: unexpected; flags begin with --')
  config, bits = flags.FLAGS.config, flags.FLAGS.bits
  if config is None:
    raise errors.UserError(
        '--config is missing; give a file or a name, such as --config=cifar10'
    )
  if bits is not None and not 0 < bits < math.inf:
    raise errors.UserError(f'--bits={bits}: must be greater than 0 and finite')
  config_checks.validate(config)
  splits, _ = data.load(**config.data)
  shape = splits.train.shape[1:]
  patches = patches_for_bits(bits, shape) if bits else patches_of(config, shape)
  result = compute(
      splits,
      config.data.name,
      bits or patches.bits,
      patches,
      batch_size=config.eval_batch_size,
  )
  print(json.dumps(result, indent=2))


def main() -> None:
  """Runs the program."""
  config_flags.DEFINE_config_file('config')
  flags.DEFINE_float('bits', None, "Bits per image; by default, the model's.")
  command_line.run(_main)
