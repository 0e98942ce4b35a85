"""What can be had without a network at the same bits: anchors for a number.

    python -m gmvq_jax.anchors --config=configs/cifar10.py [--bits=640]

Perplexity says little of merit, and an MSE by itself not much more. Two figures
show how good it is: k-means on raw patches, which anything learnt should beat,
and the rate-distortion function of a Gaussian with the covariance of the data,
which is hard to reach with codes of a fixed length.
"""

import hashlib
import json
import math
from typing import NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections import config_flags
import numpy as np

from gmvq_jax import codebook
from gmvq_jax import command_line
from gmvq_jax import config as config_lib
from gmvq_jax import data
from gmvq_jax import errors
from gmvq_jax import evaluate
from gmvq_jax import progress
from gmvq_jax import quantizers
from gmvq_jax.data import sources

# What is learnt from: more changes the third digit, and takes longer.
_IMAGES = 2**14
_PATCHES = 2**19
_FIRST_PATCHES = 2**16
_ITERATIONS = 15
_PIXELS = 3072  # Values in the largest block whose covariance is taken.
_MAX_CODES = 2**14
_BATCH = 256


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


def patches_for_bits(
    bits: float, image_shape: tuple[int, int, int], side: int
) -> Patches:
  """Returns patches near a number of bits per image.

  Args:
    bits: per image.
    image_shape: `(H, W, channels)`.
    side: of a patch to start from: halved while it would need more than 2^14
      centroids, doubled while less than two.

  Raises:
    errors.UserError: when no patch gives so many bits, or so few.
  """
  height, width, _ = image_shape
  tried = set()
  while side and side not in tried and not (height % side or width % side):
    tried.add(side)
    positions = (height // side) * (width // side)
    num_codes = round(2 ** min(bits / positions, 64))
    if 2 <= num_codes <= _MAX_CODES:
      return Patches(side, num_codes, positions * math.log2(num_codes))
    side = side // 2 if num_codes > _MAX_CODES else 2 * side
  raise errors.UserError(
      f'--bits={bits:g}: no square patch of images of {height} x {width} gives'
      f' that with 2 to {_MAX_CODES} centroids; give a number between'
  )


def kmeans_patches(
    train: np.ndarray, test: data.Images, patches: Patches
) -> dict[str, float]:
  """Replaces patches by the nearest of the centroids of training patches.

  Args:
    train: uint8 `[n, H, W, channels]`.
    test: like it.
    patches: how to cut them.

  Returns:
    Metrics as of `evaluate.evaluate`, with perplexity per batch of 256.
  """
  points = np.concatenate(_cut(train, patches.side))
  order = np.random.default_rng(0).permutation(len(points))[:_PATCHES]
  points = jnp.asarray(points[order], jnp.float32) / 255
  num_codes = min(patches.num_codes, len(points))
  first = max(_FIRST_PATCHES, 4 * num_codes)
  centroids, _ = codebook.kmeans(
      jax.random.key(0), points[:first], num_codes, num_iterations=5
  )
  weights = jnp.ones(len(points))
  for _ in progress.track(range(_ITERATIONS), 'Clustering patches'):
    centroids = codebook.lloyd(points, weights, centroids).block_until_ready()

  sums = []
  for start in range(0, len(test), _BATCH):
    sums.append(_assign(test[start : start + _BATCH], centroids, patches.side))
  metrics = evaluate.summarise(sums, _BATCH)
  return {k: v for k, v in metrics.items() if 'soft' not in k}


def gaussian(train: np.ndarray, bits: float) -> dict[str, float]:
  """Returns the MSE of a Gaussian's rate-distortion function.

  By reverse water-filling over the eigenvalues of the covariance of blocks of
  pixels (Cover and Thomas 2006, theorem 10.3.3). A block is the whole image, or
  a part where that has over 3,072 values or too few examples to tell its
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
  side = math.gcd(height, width)
  while side % 2 == 0 and side**2 * channels > min(
      _PIXELS, pixels / side**2 / 2
  ):
    side //= 2
  blocks = np.concatenate(_cut(train, side))
  eigenvalues = np.linalg.eigvalsh(_covariance(blocks))
  mse = water_filling(eigenvalues, bits * side**2 / (height * width))
  return {
      'mse': mse,
      'psnr': -10 * math.log10(mse),
      'block': side,
      'whole': side == height == width,
  }


def water_filling(variances: np.ndarray, bits: float) -> float:
  """Returns the distortion, per component, of independent Gaussians.

  Args:
    variances: `[n]`.
    bits: for all of them together.
  """
  variances = np.maximum(np.asarray(variances, np.float64), 0)
  # In a level of water falling from the largest variance, the rate grows from
  # 0 without bound.
  low, high = -80.0, math.log2(variances.max())
  for _ in range(200):
    level = (low + high) / 2
    rate = np.sum(np.maximum(np.log2(np.maximum(variances, 2**low)) - level, 0))
    low, high = (level, high) if rate / 2 > bits else (low, level)
  return float(np.minimum(variances, 2**high).mean())


def compute(
    splits: data.Splits, name: str, patches: Patches
) -> dict[str, dict[str, float]]:
  """Returns both anchors at the same bits, from the cache if they are there.

  Args:
    splits: of the data.
    name: of the data, for the name of the cache's file.
    patches: how to cut images; its bits are those of the Gaussian too.
  """
  order = np.random.default_rng(0).permutation(len(splits.train))
  train = splits.train[np.sort(order[:_IMAGES])]
  digest = hashlib.sha256(np.ascontiguousarray(train))
  digest.update(np.ascontiguousarray(splits.test[:_IMAGES]))
  identity = f'anchors 1 {digest.hexdigest()} {len(splits.test)} {patches}'
  return sources.remember(
      f'anchors-{name}',
      identity,
      lambda: {
          'kmeans': kmeans_patches(train, splits.test, patches)
          | {'side': patches.side, 'num_codes': patches.num_codes},
          'gaussian': gaussian(train, patches.bits),
          'bits': patches.bits,
      },
  )


def patches_of(
    config: ConfigDict, image_shape: tuple[int, int, int]
) -> Patches:
  """Returns patches with the positions and the codes of a configuration."""
  side = 2**config.network.num_downsamplings
  num_codes = quantizers.make(**config.quantizer).num_codes
  positions = (image_shape[0] // side) * (image_shape[1] // side)
  return Patches(side, num_codes, positions * math.log2(num_codes))


def _cut(images, side):
  """Returns patches `[n, positions, side * side * channels]`."""
  n, height, width, channels = images.shape
  rows, columns = height // side, width // side
  cut = images.reshape(n, rows, side, columns, side, channels)
  return cut.swapaxes(2, 3).reshape(n, rows * columns, -1)


def _assign(images, centroids, side):
  """Returns the sums of a batch, as an `evaluate.EvalStep` does."""
  points = jnp.asarray(_cut(images, side), jnp.float32) / 255
  codes = codebook.nearest_codes(points, centroids)
  error = jnp.mean(jnp.square(points - centroids[codes]), axis=(1, 2))
  counts = codebook.code_counts(codes, len(centroids))
  sums = {
      'count': len(images),
      'mse': error.sum(),
      'psnr_mean': -10 * jnp.log10(jnp.maximum(error, 1e-10)).sum(),
      'hard_counts': counts,
      'soft_counts': counts,
  }
  return {k: np.asarray(v, np.float64) for k, v in sums.items()}


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
  config = flags.FLAGS.config
  if config is None:
    raise errors.UserError(
        '--config is missing; give a file, such as --config=configs/cifar10.py'
    )
  config_lib.validate(config)
  splits, _ = data.load(**config.data)
  shape = splits.train.shape[1:]
  patches = patches_of(config, shape)
  if flags.FLAGS.bits:
    patches = patches_for_bits(flags.FLAGS.bits, shape, patches.side)
  print(json.dumps(compute(splits, config.data.name, patches), indent=2))


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config')
  flags.DEFINE_float('bits', 0, 'Bits per image; 0: those of the model.')
  command_line.run(_main)
