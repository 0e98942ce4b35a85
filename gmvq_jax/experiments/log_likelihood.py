"""Bounds on the log-density of images, as `--mode=bound` writes them."""

import contextlib
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.data import named_images
from gmvq_jax.experiments import sampling
from gmvq_jax.nn import autoencoder
from gmvq_jax.ops import bits as bits_lib
from gmvq_jax.ops import bounds as bounds_lib
from gmvq_jax.ops import mixture as mixture_lib
from gmvq_jax.reporting import charts
from gmvq_jax.reporting import pages
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.runtime import progress
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib

_LABELS = {
    'albo': 'ALBO, eq 11',
    'albo_coupled': 'ALBO, coupled',
    'albo_repaired': 'ALBO, eq 11, repaired',
    'albo_coupled_repaired': 'ALBO, coupled, with H(z|c, x)',
    'elbo': 'ELBO',
}
# What is called a bound, or might be taken for one.
_SUSPECTS = ('albo', 'albo_coupled', 'albo_coupled_repaired')


class Variances(NamedTuple):
  """Those of the generative model.

  Attributes:
    observation: values of sigma_x^2, of pixels on [0, 1], each to be tried.
    latent: sigma_z^2, of latents around their codeword.
  """

  observation: tuple[float, ...]
  latent: float


def variances_of(
    tokenizer: tokenizer_lib.Tokenizer,
    observation: str = '',
    latent: float | None = None,
) -> Variances:
  """Returns the variances given, or else those of the loss.

  Args:
    tokenizer: of a GM-VQ.
    observation: numbers, with commas between them.
    latent: one.

  Raises:
    errors.UserError: for what is not positive, or there twice; and as
      `generative.latent_variance_of`.
  """
  latent = sampling.latent_variance_of(tokenizer, latent)
  if not observation:
    observation = str(tokenizer.stored.config.quantizer.gamma * latent)
  try:
    values = tuple(float(value) for value in observation.split(','))
  except ValueError:
    values = ()
  fits = all(0 < value < math.inf for value in values)
  if not values or not fits or len(set(values)) < len(values):
    raise errors.UserError(
        f'--observation_variance={observation}: must be positive numbers, all'
        ' different, with commas between them; by default it is'
        ' config.quantizer.gamma times the latent variance'
    )
  return Variances(values, latent)


def bound(
    tokenizer: tokenizer_lib.Tokenizer,
    loaded: named_images.NamedImages,
    variances: Variances,
    output: str,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
  """Writes the bounds on the log-density of images; see `bounds`.

  The same call goes on with what is missing. What is drawn for an image depends
  on the seed and the image's number alone.

  Args:
    tokenizer: of a GM-VQ.
    loaded: of `encode.load_images`. Their mean q(c|x) is the q(c) of the
      ALBO.
    variances: of `variances_of`.
    output: a folder, for `bounds.json` and `bounds.svg`.
    num_samples: of each image's posterior. The importance-weighted bounds are
      of it and of the powers of ten that divide it.
    seed: of the samples.

  Returns:
    What `bounds.json` holds: the settings, and for each observation variance
    every bound's mean over images, in `nats` per image and `bits_per_dim`, with
    standard errors `_se` (of the images; None of a single one), and how far
    what is called ALBO lies over the best bound.

  Raises:
    errors.UserError: when the output holds something else, or is in use.
  """
  files.check_folder(output, 'another name')
  path = files.create(output, 'output')
  count, *image_shape = loaded.images.shape
  settings = {
      'tokenizer': tokenizer.hash,
      'images': count,
      'identity': loaded.identity,
      'samples': num_samples,
      'seed': seed,
      'observation_variances': list(variances.observation),
      'latent_variance': variances.latent,
  }
  with files.lock(path):
    done = files.read_json(path / 'bounds.json')
    partial = path / 'bounds.partial.json'
    kept = done or files.read_json(partial) or {'settings': settings}
    if kept.get('settings') != settings:
      known = kept.get('settings', {})
      differing = ', '.join(
          f'{name} is {known.get(name)!r}, given {value!r}'
          for name, value in settings.items()
          if known.get(name) != value
      )
      raise errors.UserError(
          f'--output={output}: holds other bounds ({differing}); give another'
          ' folder'
      )
    if done is not None:
      return done
    sizes = tuple(10**i for i in range(9) if 10**i < num_samples)
    sizes = (*(k for k in sizes if num_samples % k == 0), num_samples)
    q_c = sampling.aggregated_posterior(tokenizer, loaded.images)
    rows = kept.get('rows', [])
    for more in _of_batches(
        tokenizer, loaded.images, len(rows), q_c, variances, sizes, seed
    ):
      rows += more
      files.write_json(partial, {'settings': settings, 'rows': rows})
    data_dim = math.prod(image_shape)
    result = {
        'settings': settings,
        'input': loaded.source,
        'data_dim': data_dim,
        'perplexity_of_q_c': 2 ** bits_lib.entropy(q_c),
        'bounds': {
            str(value): _summarise([row[i] for row in rows], sizes, data_dim)
            for i, value in enumerate(variances.observation)
        },
        **pages.provenance(),
    }
    files.write_bytes(path / 'bounds.svg', figure(result).encode())
    files.write_json(path / 'bounds.json', result)
    partial.unlink(missing_ok=True)
  return result


def figure(result: dict[str, Any]) -> str:
  """Returns the bounds of `bound` in rows, those of each variance apart."""
  return charts.rows(
      {
          f'nats per image, σₓ² = {variance}': {
              label_of(name): [of[name]['nats']] for name in names_in(of)
          }
          for variance, of in sorted(
              result['bounds'].items(), key=lambda item: float(item[0])
          )
      },
      highlighted=label_of(f'iwae_{result["settings"]["samples"]}'),
  )


def names_in(of: dict[str, Any]) -> list[str]:
  """Returns the names of bounds among those of one variance, in their order."""
  weighted = (name for name in of if name.startswith('iwae_'))
  numbered = sorted(weighted, key=lambda name: int(name.removeprefix('iwae_')))
  return [*bounds_lib.Bounds._fields, *numbered]


def label_of(name: str) -> str:
  """Returns what a bound is called in figures and tables."""
  return _LABELS.get(name, name.replace('iwae_', 'IWAE, k = '))


def _of_batches(tokenizer, images, first, q_c, variances, sizes, seed):
  """Yields the rows of each batch of images from the `first` on."""
  count, *image_shape = images.shape
  batches = sampling.Batches(tokenizer, image_shape, count)
  starts = range(first, count, batches.size)
  steps = progress.track(
      range(len(starts) * sizes[-1]), 'Sampling the posterior'
  )
  with contextlib.closing(steps):
    for start in starts:
      part = images[start : start + batches.size]
      likelihood, importance, posterior = _sampled(
          tokenizer,
          batches.divide(part)[0],
          batches.keys(seed, start),
          batches.grid,
          variances,
          sizes,
          steps,
      )
      terms = bounds_lib.terms(posterior, q_c, latent_variance=variances.latent)
      found = bounds_lib.bounds(likelihood, terms)._asdict() | {
          f'iwae_{k}': bound for k, bound in zip(sizes, importance, strict=True)
      }
      yield _rows(found)[: len(part)]


def _sampled(tokenizer, images, keys, grid, variances, sizes, steps):
  """Returns what is drawn for, of images, and the posterior it is drawn from.

  The mean log-likelihood `[variances, B]`, and the importance-weighted bounds
  `[sizes, variances, B]`.
  """
  model, variables = tokenizer.model, tokenizer.variables
  two_sigma2 = tokenizer.stored.config.quantizer.two_sigma2
  posterior = sampling.posterior_of(model, variables, images, two_sigma2)
  below = jax.jit(mixture_lib.cumulative)(posterior)
  shape = (len(variances.observation), len(images))
  state = jnp.zeros(shape), bounds_lib.no_weights(sizes, shape)
  for index in range(sizes[-1]):
    next(steps)
    state = _add_sample(
        model,
        variables,
        images,
        (posterior, below, keys, index),
        state,
        grid,
        variances,
        sizes,
    )
    jax.block_until_ready(state)  # So that progress is what was computed.
  total, importance = state
  bounds = bounds_lib.importance_bounds(importance, sizes)
  return total / sizes[-1], bounds, posterior


def _rows(found):
  """Returns for each image, for each variance, the bounds by name."""
  found = {name: np.asarray(x, np.float64) for name, x in found.items()}
  variances, images = next(iter(found.values())).shape
  return [
      [
          {name: float(x[variance, image]) for name, x in found.items()}
          for variance in range(variances)
      ]
      for image in range(images)
  ]


@functools.partial(
    jax.jit,
    static_argnames=('model', 'grid', 'variances', 'sizes'),
    donate_argnames='state',
)
def _add_sample(
    model, variables, images, drawn, state, grid, variances, sizes
):
  """Draws from the posterior of each image once, and adds what comes of it.

  `state` is the sum of the log-likelihoods, `[variances, B]`, and the
  `bounds.Importance`.
  """
  posterior, below, keys, index = drawn
  total, importance = state
  keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
  by_image = mixture_lib.Mixture(0, None, 0)
  z, _ = jax.vmap(mixture_lib.sample, in_axes=(0, by_image, 0))(
      keys, posterior, below
  )
  z_grid = z.reshape(len(z), *grid, z.shape[-1])
  decoded, _ = model.decode(variables, z_grid)
  error = jnp.square(decoded - autoencoder.to_unit(images))
  error = jnp.sum(error, axis=(1, 2, 3))
  likelihood = jnp.stack([
      bounds_lib.log_likelihood(error, value, data_dim=images[0].size)
      for value in variances.observation
  ])
  prior = mixture_lib.prior(posterior.means, variances.latent)
  weights = likelihood + bounds_lib.log_ratio(posterior, prior, z)
  importance = bounds_lib.add_weights(importance, weights, sizes)
  return total + likelihood, importance


def _summarise(rows, sizes, data_dim):
  """Returns means over images with standard errors, of one variance."""
  columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}

  def mean_and_se(values):
    count = len(values)
    error = float(np.std(values, ddof=1) / count**0.5) if count > 1 else None
    return float(np.mean(values)), error

  summary = {}
  for name, values in columns.items():
    nats, nats_se = mean_and_se(values)
    bits, bits_se = mean_and_se(bounds_lib.bits_per_dim(values, data_dim))
    summary[name] = {
        'nats': nats,
        'nats_se': nats_se,
        'bits_per_dim': bits,
        'bits_per_dim_se': bits_se,
    }
  best = columns[f'iwae_{sizes[-1]}']
  for name in _SUSPECTS:
    mean, error = mean_and_se(columns[name] - best)
    summary[f'{name}_over_best'] = {
        'mean': mean,
        'se': error,
        'share_of_images': float(np.mean(columns[name] > best)),
    }
  return summary
