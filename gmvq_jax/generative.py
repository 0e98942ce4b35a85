"""A trained GM-VQ as the generative model it stands for: bounds and samples.

What a run does not fix are the variances of the model. Those whose ALBO is the
loss follow from it: appendix A.3 sets beta = 2 sigma_z^2 and gamma = sigma_x^2
/ sigma_z^2.
"""

import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax import autoencoder
from gmvq_jax import bounds as bounds_lib
from gmvq_jax import charts
from gmvq_jax import distributed
from gmvq_jax import errors
from gmvq_jax import mixture as mixture_lib
from gmvq_jax import pictures
from gmvq_jax import posterior as posterior_lib
from gmvq_jax import progress
from gmvq_jax import tokenizer as tokenizer_lib
from gmvq_jax import workdir
from gmvq_jax.data import whole

# Images times positions times codes that a device takes at a time.
_LOGITS = {'cpu': 2**21}
_ACCELERATOR_LOGITS = 2**25
_SHEET = 64
_LABELS = {
    'albo': 'ALBO, eq 11',
    'albo_coupled': 'ALBO, as trained',
    'albo_repaired': 'ALBO, eq 11, repaired',
    'albo_coupled_repaired': 'ALBO, as trained, with H(z|c, x)',
    'elbo': 'ELBO',
}


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
    errors.UserError: for another quantizer, and for what is not positive.
  """
  quantizer = tokenizer.stored.config.quantizer
  if quantizer.name != 'gmvq':
    raise errors.UserError(
        f'the model is of {quantizer.name}: only that of gmvq is a generative'
        ' model of images with a posterior'
    )
  if latent is None:
    latent = quantizer.beta / 2
  if not 0 < latent < math.inf:
    raise errors.UserError(
        f'--latent_variance={latent:g}: must be positive and finite; by'
        ' default it is config.quantizer.beta / 2'
    )
  if not observation:
    observation = str(quantizer.gamma * latent)
  try:
    values = tuple(float(value) for value in observation.split(','))
  except ValueError:
    values = ()
  if not values or not all(0 < value < math.inf for value in values):
    raise errors.UserError(
        f'--observation_variance={observation}: must be positive numbers, with'
        ' commas between them; by default it is config.quantizer.gamma times'
        ' the latent variance'
    )
  return Variances(values, latent)


def bound(
    tokenizer: tokenizer_lib.Tokenizer,
    loaded: whole.NamedImages,
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
    loaded: of `encoding.load_images`. Their mean q(c|x) is the q(c) of the
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
    errors.UserError: when the output holds something else.
  """
  path = workdir.create(output, 'output')
  count, *image_shape = loaded.images.shape
  model = _Model(tokenizer, image_shape, count)
  sizes = tuple(
      10**i for i in range(9) if 10**i < num_samples and not num_samples % 10**i
  ) + (num_samples,)
  settings = {
      'tokenizer': tokenizer.hash,
      'input': loaded.source,
      'images': count,
      'identity': loaded.identity,
      'samples': num_samples,
      'seed': seed,
      'observation_variances': list(variances.observation),
      'latent_variance': variances.latent,
  }
  done = workdir.read_json(path / 'bounds.json')
  partial = path / 'bounds.partial.json'
  kept = done or workdir.read_json(partial) or {'settings': settings}
  if kept.get('settings') != settings:
    raise errors.UserError(
        f'--output={output}: holds the bounds of another model, other images or'
        ' other settings; give another folder'
    )
  if done is not None:
    return done
  q_c = model.aggregated_posterior(loaded.images)
  rows = kept.get('rows', [])
  batches = range(len(rows), count, model.batch_size)
  steps = progress.track(
      range(len(batches) * num_samples), 'Sampling the posterior'
  )
  for start in batches:
    images = loaded.images[start : start + model.batch_size]
    rows += model.bound(images, start, q_c, variances, sizes, seed, steps)
    workdir.write_json(partial, {'settings': settings, 'rows': rows})
  steps.close()
  data_dim = math.prod(image_shape)
  result = {
      'settings': settings,
      'data_dim': data_dim,
      'perplexity_of_q_c': float(2 ** -np.sum(q_c * np.log2(q_c + 1e-30))),
      'bounds': {
          f'{value:g}': _summarise([row[index] for row in rows], data_dim)
          for index, value in enumerate(variances.observation)
      },
  }
  workdir.write_bytes(path / 'bounds.svg', figure(result).encode())
  workdir.write_json(path / 'bounds.json', result)
  partial.unlink(missing_ok=True)
  return result


def sample(
    tokenizer: tokenizer_lib.Tokenizer,
    variances: Variances,
    output: str,
    *,
    images: whole.NamedImages | None = None,
    count: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
  """Writes images of the generative model, eq 6, on a sheet.

  Each position's code is drawn apart, then its latent around the codeword; what
  is shown is the mean of p(x|z).

  Args:
    tokenizer: of a GM-VQ.
    variances: of `variances_of`; only the latent's is used.
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
  path = workdir.output_file(output)
  count = count or _SHEET
  q_c = None
  if images is not None:
    number, *shape = images.images.shape
    q_c = _Model(tokenizer, shape, number).aggregated_posterior(images.images)
  model = _Model(tokenizer, tokenizer.image_shape, count)
  drawn = model.sample(count, q_c, variances.latent, seed)
  picture = pictures.to_png(pictures.sheet(pictures.to_uint8(drawn)), zoom=2)
  workdir.write_bytes(path, picture, replace=False)
  return {
      'output': output,
      'images': count,
      'latent_variance': variances.latent,
      'codes': 'uniform' if images is None else f'q(c) of {images.source}',
  }


def figure(result: dict[str, Any]) -> str:
  """Returns the bounds of `bound` in rows, those of each variance apart."""
  best = f'iwae_{result["settings"]["samples"]}'
  return charts.rows(
      {
          f'nats per image, σₓ² = {variance}': {
              label_of(name): [value['nats']]
              for name, value in of.items()
              if 'nats' in value
          }
          for variance, of in result['bounds'].items()
      },
      highlighted=label_of(best),
  )


def label_of(name: str) -> str:
  """Returns what a bound is called in figures and tables."""
  return _LABELS.get(name, name.replace('iwae_', 'IWAE, k = '))


class _Model:
  """The programs of a tokenizer's model, on the devices of this process."""

  def __init__(self, tokenizer, image_shape, count):
    self._model = tokenizer.model
    self._variables = tokenizer.variables
    self._config = tokenizer.stored.config.quantizer
    self._mesh = distributed.local_mesh()
    self._grid = tokenizer.grid(*image_shape[:2])
    self._data_dim = math.prod(image_shape)
    each = math.prod(self._grid) * tokenizer.num_codes
    limit = _LOGITS.get(jax.default_backend(), _ACCELERATOR_LOGITS)
    share = min(max(limit // each, 1), -(-count // self._mesh.size))
    self.batch_size = share * self._mesh.size

  def aggregated_posterior(self, images):
    """Returns q(c) of images, `[C]` float64."""
    total = 0
    for start in progress.track(
        range(0, len(images), self.batch_size), 'Averaging q(c|x)'
    ):
      part = images[start : start + self.batch_size]
      padded, mask = self._divide(part)
      q_c = self._aggregate(self._variables, padded, mask)
      total += len(part) * np.asarray(q_c, np.float64)
    return total / len(images)

  def bound(self, images, start, q_c, variances, sizes, seed, steps):
    """Returns the bounds of each image, by observation variance, by name."""
    count = len(images)
    images, _ = self._divide(images)
    keys = self._keys(seed, start)
    posterior = self._posterior(self._variables, images)
    below = jax.jit(mixture_lib.cumulative)(posterior)
    shape = (len(variances.observation), len(images))
    state = jnp.zeros(shape), bounds_lib.no_weights(sizes, shape)
    for index in range(sizes[-1]):
      next(steps)
      state = self._add_sample(
          self._variables, images, posterior, below, keys, index, state,
          variances, sizes,
      )  # fmt: skip
      jax.block_until_ready(state)
    likelihood, importance = state
    terms = bounds_lib.terms(
        posterior, q_c, latent_variance=variances.latent
    )
    found = bounds_lib.bounds(likelihood / sizes[-1], terms)._asdict()
    weighted = bounds_lib.importance_bounds(importance, sizes)
    found |= {f'iwae_{k}': weighted[i] for i, k in enumerate(sizes)}
    found = {name: np.asarray(x, np.float64) for name, x in found.items()}
    return [
        [
            {name: float(x[variance, image]) for name, x in found.items()}
            for variance in range(shape[0])
        ]
        for image in range(count)
    ]

  def sample(self, count, q_c, variance, seed):
    """Returns images float `[count, H, W, channels]`."""
    images = []
    for start in range(0, count, self.batch_size):
      keys = self._keys(seed, start)
      images.append(self._sample(self._variables, keys, q_c, variance))
    return np.concatenate(images)[:count]

  def _keys(self, seed, start):
    """Returns a key for each image of a batch, that of its number."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.key(seed), start + jnp.arange(self.batch_size)
    )

  def _divide(self, images):
    """Returns images and a mask, padded, on the devices."""
    missing = self.batch_size - len(images)
    mask = np.arange(self.batch_size) < len(images)
    padding = [(0, missing)] + [(0, 0)] * (images.ndim - 1)
    return distributed.divide((np.pad(images, padding), mask), self._mesh)

  @functools.partial(jax.jit, static_argnums=0)
  def _posterior(self, variables, images):
    """Returns q(z|x), weights and variances `[B, P, C]`."""
    h, _ = self._model.encode(variables, autoencoder.to_unit(images))
    h = h.reshape(len(h), -1, h.shape[-1])
    params = variables.params['quantizer'], variables.quantizer_state
    z_hat = h[..., : h.shape[-1] // 2]
    return mixture_lib.posterior(
        z_hat,
        self._model.quantizer.logits(*params, h),
        self._model.quantizer.read(*params),
        two_sigma2=self._config.two_sigma2,
    )

  @functools.partial(jax.jit, static_argnums=0)
  def _aggregate(self, variables, images, mask):
    posterior = self._posterior(variables, images)
    probs = jnp.exp(posterior.log_weights)
    mask = jnp.broadcast_to(mask[:, None], probs.shape[:-1])
    return posterior_lib.aggregated_posterior(probs, mask=mask)

  @functools.partial(jax.jit, static_argnums=(0, 8, 9), donate_argnums=7)
  def _add_sample(
      self, variables, images, posterior, below, keys, index, state, variances,
      sizes,
  ):  # fmt: skip
    """Draws from the posterior of each image once, and adds what comes of it.

    `state` is the sum of the log-likelihoods, `[variances, B]`, and the
    `bounds.Importance`.
    """
    total, importance = state
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
    by_image = mixture_lib.Mixture(0, None, 0)
    z, _ = jax.vmap(mixture_lib.sample, in_axes=(0, by_image, 0))(
        keys, posterior, below
    )
    grid = z.reshape(len(z), *self._grid, z.shape[-1])
    decoded, _ = self._model.decode(variables, grid)
    error = jnp.square(decoded - autoencoder.to_unit(images))
    error = jnp.sum(error, axis=(1, 2, 3))
    likelihood = jnp.stack([
        bounds_lib.log_likelihood(error, value, data_dim=self._data_dim)
        for value in variances.observation
    ])
    prior = mixture_lib.prior(posterior.means, variances.latent)
    weights = likelihood + bounds_lib.log_ratio(posterior, prior, z)
    importance = bounds_lib.add_weights(importance, weights, sizes)
    return total + likelihood, importance

  @functools.partial(jax.jit, static_argnums=0)
  def _sample(self, variables, keys, q_c, variance):
    params = variables.params['quantizer'], variables.quantizer_state
    codebook = self._model.quantizer.read(*params)
    prior = mixture_lib.prior(codebook, variance, q_c=q_c)
    shape = (*self._grid, len(codebook))
    prior = prior._replace(
        log_weights=jnp.broadcast_to(prior.log_weights, shape),
        variances=jnp.broadcast_to(prior.variances, shape),
    )
    z, _ = jax.vmap(mixture_lib.sample, in_axes=(0, None))(keys, prior)
    return self._model.decode(variables, z)[0]


def _summarise(rows, data_dim):
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
  best = columns[list(columns)[-1]]
  for name in ('albo', 'albo_coupled', 'albo_coupled_repaired'):
    mean, error = mean_and_se(columns[name] - best)
    summary[f'{name}_over_best'] = {
        'mean': mean,
        'se': error,
        'share_of_images': float(np.mean(columns[name] > best)),
    }
  return summary
