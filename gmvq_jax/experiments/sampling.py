"""A trained GM-VQ as the generative model it stands for, and its samples.

What a run does not fix are the variances of the model. Those whose ALBO is the
loss follow from it: appendix A.3 sets beta = 2 sigma_z^2 and gamma = sigma_x^2
/ sigma_z^2.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax import data
from gmvq_jax.data import named_images
from gmvq_jax.nn import autoencoder
from gmvq_jax.ops import mixture as mixture_lib
from gmvq_jax.ops import posterior as posterior_lib
from gmvq_jax.reporting import pictures
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.runtime import progress
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib

# Images times positions times codes that a device takes at a time.
_LOGITS = {'cpu': 2**21}
_ACCELERATOR_LOGITS = 2**25
_SHEET = 64


def latent_variance_of(
    tokenizer: tokenizer_lib.Tokenizer, given: float | None = None
) -> float:
  """Returns sigma_z^2 as it is given, or else that of the loss.

  Raises:
    errors.UserError: for a model that is no such mixture, and for what is not
      positive.
  """
  quantizer = tokenizer.stored.config.quantizer
  if quantizer.name != 'gmvq':
    raise errors.UserError(
        f'the model is of {quantizer.name}: only that of gmvq is a generative'
        ' model of images with a posterior'
    )
  for field in ('hard', 'gaussian_noise'):
    if not quantizer[field]:
      raise errors.UserError(
          f'the model was trained with config.quantizer.{field}=False, on'
          ' latents that are not those of eqs 9 and 18; give one that was not'
      )
  variance = quantizer.beta / 2 if given is None else given
  if not 0 < variance < math.inf:
    raise errors.UserError(
        f'--latent_variance={variance:g}: must be positive and finite; by'
        ' default it is config.quantizer.beta / 2'
    )
  return variance


def sample(
    tokenizer: tokenizer_lib.Tokenizer,
    latent_variance: float,
    output: str,
    *,
    images: named_images.NamedImages | None = None,
    count: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
  """Writes images of the generative model, eq 6, on a sheet.

  Each position's code is drawn apart, then its latent around the codeword; what
  is shown is the mean of p(x|z). An image depends on the seed and its number
  alone.

  Args:
    tokenizer: of a GM-VQ.
    latent_variance: of `latent_variance_of`.
    output: `FILE.png`.
    images: whose mean q(c|x) codes are drawn by; uniformly if there are none.
    count: of images; 0: 64.
    seed: of the samples.

  Returns:
    A summary.

  Raises:
    errors.UserError: when the output is there, or is no PNG.
  """
  if not output.endswith('.png'):
    raise errors.UserError(f'--output={output}: must be a .png')
  path = files.output_file(output)
  q_c = None
  if images is not None:
    q_c = aggregated_posterior(tokenizer, images.images)
  count = count or _SHEET
  batches = Batches(tokenizer, tokenizer.image_shape, count)
  drawn = [
      _sample(
          tokenizer.model,
          tokenizer.variables,
          batches.keys(seed, start),
          q_c,
          latent_variance,
          batches.grid,
      )
      for start in range(0, count, batches.size)
  ]
  sheet = pictures.sheet(pictures.to_uint8(np.concatenate(drawn)[:count]))
  picture = pictures.to_png(sheet, zoom=2)
  files.write_bytes(path, picture, replace=False)
  return {
      'output': output,
      'images': count,
      'latent_variance': latent_variance,
      'codes': 'uniform' if images is None else f'q(c) of {images.source}',
  }


def aggregated_posterior(
    tokenizer: tokenizer_lib.Tokenizer, images: data.Images
) -> np.ndarray:
  """Returns q(c) of images, eq 12, `[C]` float64.

  Args:
    tokenizer: of a GM-VQ.
    images: uint8 `[N, H, W, channels]`.
  """
  count, *image_shape = images.shape
  batches = Batches(tokenizer, tuple(image_shape), count)
  starts = range(0, count, batches.size)
  total = np.zeros(tokenizer.model.quantizer.num_codes)
  for start in progress.track(starts, 'Averaging q(c|x)'):
    part = images[start : start + batches.size]
    q_c = _aggregate(
        tokenizer.model,
        tokenizer.variables,
        *batches.divide(part),
        tokenizer.stored.config.quantizer.two_sigma2,
    )
    total += len(part) * np.asarray(q_c, np.float64)
  return total / count


class Batches:
  """How images are divided over the devices of this process.

  Attributes:
    size: images that all devices take at a time.
    grid: `(h, w)`, of the positions of an image.
  """

  def __init__(
      self,
      tokenizer: tokenizer_lib.Tokenizer,
      image_shape: tuple[int, ...],
      count: int,
  ):
    """Divides `count` images of `image_shape`."""
    self._mesh = distributed.local_mesh()
    self.grid = tokenizer.grid(*image_shape[:2])
    each = math.prod(self.grid) * tokenizer.num_codes
    limit = _LOGITS.get(jax.default_backend(), _ACCELERATOR_LOGITS)
    share = min(max(limit // each, 1), -(-count // self._mesh.size))
    self.size = share * self._mesh.size

  def divide(self, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Returns `[size, ...]` images on the devices, padded, and a mask."""
    return distributed.divide(
        distributed.pad(images, self.size), self._mesh
    )

  def keys(self, seed: int, start: int) -> jax.Array:
    """Returns a key for each image of the batch that begins at `start`."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.key(seed), start + jnp.arange(self.size)
    )
    return jax.device_put(keys, distributed.batched(self._mesh))


@functools.partial(jax.jit, static_argnames='model')
def posterior_of(
    model: autoencoder.Autoencoder,
    variables: autoencoder.Variables,
    images: jax.Array,
    two_sigma2: float,
) -> mixture_lib.Mixture:
  """Returns q(z|x) of the P positions of images.

  Args:
    model: of a GM-VQ.
    variables: of it.
    images: uint8 `[B, H, W, channels]`.
    two_sigma2: 2 sigma^2 of eq 18.

  Returns:
    Weights and variances `[B, P, C]`.
  """
  h, _ = model.encode(variables, autoencoder.to_unit(images))
  h = h.reshape(len(h), -1, h.shape[-1])
  params = variables.params['quantizer'], variables.quantizer_state
  assert model.quantizer.read is not None
  return mixture_lib.posterior(
      h[..., : model.quantizer.heads[0]],
      model.quantizer.logits(*params, h),
      model.quantizer.read(*params),
      two_sigma2=two_sigma2,
  )


@functools.partial(jax.jit, static_argnames='model')
def _aggregate(model, variables, images, mask, two_sigma2):
  posterior = posterior_of(model, variables, images, two_sigma2)
  probs = jnp.exp(posterior.log_weights)
  mask = jnp.broadcast_to(mask[:, None], probs.shape[:-1])
  return posterior_lib.aggregated_posterior(probs, mask=mask)


@functools.partial(jax.jit, static_argnames=('model', 'grid'))
def _sample(model, variables, keys, q_c, latent_variance, grid):
  """Returns an image for each key, `[n, H, W, channels]`."""
  codebook = model.quantizer.read(
      variables.params['quantizer'], variables.quantizer_state
  )
  prior = mixture_lib.prior(codebook, latent_variance, q_c=q_c)
  shape = (*grid, len(codebook))
  prior = prior._replace(
      log_weights=jnp.broadcast_to(prior.log_weights, shape),
      variances=jnp.broadcast_to(prior.variances, shape),
  )
  z, _ = jax.vmap(mixture_lib.sample, in_axes=(0, None))(keys, prior)
  return model.decode(variables, z)[0]
