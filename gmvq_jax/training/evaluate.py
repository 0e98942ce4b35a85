"""Evaluation of a split, as in the paper: the most probable code, no noise.

Sums are kept per batch under a mask, so that a padded last batch counts as what
it holds.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from gmvq_jax import data
from gmvq_jax.nn import autoencoder
from gmvq_jax.nn import losses
from gmvq_jax.ops import bits
from gmvq_jax.ops import clustering
from gmvq_jax.runtime import distributed

EvalStep = Callable[..., dict[str, jax.Array]]

# The window of SSIM, where images are large enough for it (Wang 2004).
_SSIM_WINDOW = 11


class Evaluation(NamedTuple):
  """What is known of a model on a split.

  Attributes:
    metrics: see `evaluate`.
    code_counts: `[C]`, over all positions of the split.
  """

  metrics: dict[str, float]
  code_counts: np.ndarray


def make_eval_step(model: autoencoder.Autoencoder, mesh: Mesh) -> EvalStep:
  """Returns the jitted `(variables, images, mask) -> sums` of one batch.

  `images` are uint8 `[B, H, W, channels]`, `mask [B]` is True for those that
  count. The sums are over images that count; `hard_counts` and `soft_counts`
  are `[C]`, over positions; the quantizer's metrics are means over positions
  times the number of images.
  """
  batched = distributed.batched(mesh)

  def eval_step(variables, images, mask):
    images = autoencoder.to_unit(images)
    h, _ = model.encode(variables, images)
    positions = jnp.broadcast_to(mask[:, None, None], h.shape[:-1])
    quantized, _ = model.quantize(variables, h, mask=positions)
    decoded, _ = model.decode(variables, quantized.z)
    error = losses.mse(decoded, images)
    sums = {
        'mse': error,
        'psnr_mean': losses.psnr(error),
        'ssim': dm_pix.ssim(
            images, decoded, filter_size=min(_SSIM_WINDOW, *images.shape[1:3])
        ),
    }
    count = jnp.sum(mask)
    sums = {k: jnp.sum(jnp.where(mask, v, 0)) for k, v in sums.items()}
    sums |= {k: count * v for k, v in quantized.metrics.items()}
    hard = clustering.code_counts(
        quantized.codes, model.quantizer.num_codes, mask=positions
    )
    soft = quantized.q_c * hard.sum()
    return sums | {'count': count, 'hard_counts': hard, 'soft_counts': soft}

  return jax.jit(eval_step, in_shardings=(None, batched, batched))


def evaluate(
    eval_step: EvalStep,
    variables: autoencoder.Variables,
    images: data.Images,
    *,
    batch_size: int = 256,
) -> Evaluation:
  """Evaluates images.

  Args:
    eval_step: of `make_eval_step`.
    variables: of its model.
    images: uint8 `[N, H, W, channels]`.
    batch_size: images per batch. Perplexity per batch depends on it; the
      paper's, and the default, is 256.

  Returns:
    How often each code occurs, and these metrics:
    - `mse`, on [0, 1], per pixel and channel; `psnr` of it in dB, `psnr_mean`
      the mean of each image's; `ssim`;
    - `perplexity` of the codes and `soft_perplexity` of the posterior, averaged
      over full batches; `split_perplexity` and `split_soft_perplexity` over
      the whole split;
    - `codes_used`, the share of codes that occur; `bits_per_image`, the
      positions times the entropy of the codes;
    - every metric of the quantizer, averaged over positions.
  """
  sums = []
  for start in range(0, len(images), batch_size):
    part = images[start : start + batch_size]
    batch, mask = distributed.pad(part, batch_size)
    # Read at once: of two programs in flight on the devices of a CPU, each may
    # hold threads that the other's collectives wait for.
    batch_sums = jax.device_get(eval_step(variables, batch, mask))
    sums.append(jax.tree.map(lambda x: np.asarray(x, np.float64), batch_sums))
  counts = sum(s['hard_counts'] for s in sums)
  return Evaluation(summarise(sums, batch_size), counts)


def make_calibrate(
    model: autoencoder.Autoencoder, mesh: Mesh
) -> Callable[[autoencoder.Variables, jax.Array], Any]:
  """Returns the jitted `(variables, images) -> batch_stats` of one batch.

  The statistics of the batch norms are those of the quantizer without noise.
  In training it adds noise, so the decoder's running statistics are of latents
  more spread than it meets at evaluation.
  """

  def still(network):
    return network.clone(style=network.style._replace(momentum=0.0))

  still_model = model._replace(
      encoder=still(model.encoder), decoder=still(model.decoder)
  )

  def calibrate(variables, images):
    images = autoencoder.to_unit(images)
    h, variables = still_model.encode(variables, images, train=True)
    quantized, _ = still_model.quantize(variables, h)
    _, variables = still_model.decode(variables, quantized.z, train=True)
    return variables.batch_stats

  return jax.jit(
      calibrate, in_shardings=(None, distributed.batched(mesh))
  )


def calibrated_batch_stats(
    calibrate: Callable[[autoencoder.Variables, np.ndarray], Any],
    variables: autoencoder.Variables,
    images: data.Images,
    *,
    batch_size: int = 256,
) -> Any:
  """Returns batch statistics gathered without noise.

  Args:
    calibrate: of `make_calibrate`.
    variables: of its model.
    images: uint8 `[N, H, W, channels]`, of the training split. Only whole
      batches are used.
    batch_size: images per batch.

  Returns:
    Like `variables.batch_stats`; those themselves if there is no whole batch.
  """
  starts = range(0, len(images) - batch_size + 1, batch_size)
  # One at a time; see `evaluate`.
  stats = [
      jax.block_until_ready(calibrate(variables, images[i : i + batch_size]))
      for i in starts
  ]
  if not stats:
    return variables.batch_stats
  return jax.tree.map(lambda *x: sum(x) / len(x), *stats)


def summarise(
    sums: list[dict[str, np.ndarray]], batch_size: int
) -> dict[str, float]:
  """Turns the sums of batches, as an `EvalStep` gives them, into metrics."""
  count = sum(s['count'] for s in sums)
  hard, soft = (
      functools.reduce(np.add, [s[key] for s in sums])
      for key in ('hard_counts', 'soft_counts')
  )
  # A split smaller than a batch has no full one: it is its own.
  full = [s for s in sums if s['count'] == batch_size] or sums

  def mean_perplexity(counts: str) -> float:
    return float(np.mean([_perplexity(s[counts]) for s in full]))

  special = ('count', 'hard_counts', 'soft_counts')
  metrics = {
      key: float(sum(s[key] for s in sums) / count)
      for key in sums[0]
      if key not in special
  }
  metrics |= {
      'psnr': losses.psnr(metrics['mse']),
      'perplexity': mean_perplexity('hard_counts'),
      'soft_perplexity': mean_perplexity('soft_counts'),
      'split_perplexity': _perplexity(hard),
      'split_soft_perplexity': _perplexity(soft),
      'codes_used': float(np.mean(hard > 0)),
      'bits_per_image': hard.sum() / count * bits.entropy(hard),
  }
  return {key: float(value) for key, value in sorted(metrics.items())}


def _perplexity(counts):
  return 2 ** bits.entropy(counts)
