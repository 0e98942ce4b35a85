"""The GM-VQ posterior: eqs 12 and 15-18 of arXiv 2410.10180, as pure functions.

Shapes: leading dimensions are free. `L` is the dimension of a latent and `C`
the number of codes. Computations are in float32 at least; float64 stays.
"""

from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics
from gmvq_jax.ops import placement
from gmvq_jax.ops import soft_assignment
from gmvq_jax.ops.categorical import gumbel_softmax
from gmvq_jax.ops.categorical import posterior_entropy

# Added to eq 18 under the square root, whose derivative at 0 is infinite.
VARIANCE_EPS = 1e-8


class Latents(NamedTuple):
  """One sample from the posterior of each position, and the posterior's means.

  Attributes:
    z: `[..., L]`, the sampled latents, reparameterised.
    codes: `[...]` int32, the code each latent was sampled with.
    codewords: `[..., L]`, the means of those codes.
    log_probs: `[..., C]`, log q(c|x) in nats; None where computed in tiles.
    variance: `[...]`, the variance of each latent's noise, eq 18.
    entropy: `[...]`, H(q(c|x)) in nats.
    q_c: `[C]`, the aggregated posterior, eq 12.
  """

  z: jax.Array
  codes: jax.Array
  codewords: jax.Array
  log_probs: jax.Array | None
  variance: jax.Array
  entropy: jax.Array
  q_c: jax.Array


def log_posterior(
    z_hat: jax.Array, weights: jax.Array, codebook: jax.Array
) -> jax.Array:
  """Returns log q(c|x) in nats, eqs 16-17.

  The logit of code c is `-1/2 sum_i w_i (z_i - mu_ci)^2`. Expanded, its term in
  z^2 is the same for every code and cancels in the softmax, which leaves a
  matrix product and no array of shape `[..., C, L]`.

  Args:
    z_hat: `[..., L]`, the encoder's latents.
    weights: `[..., L]`, non-negative precisions, eq 15 (`softplus` of the
      encoder's second head).
    codebook: `[C, L]`, the means of the mixture.

  Returns:
    `[..., C]` log-probabilities.
  """
  z_hat, weights, codebook = numerics.promote(z_hat, weights, codebook)
  chex.assert_equal_shape([z_hat, weights])
  chex.assert_shape(codebook, (None, z_hat.shape[-1]))
  centre = centre_of(codebook)
  logits = jnp.matmul(
      queries(z_hat, weights, centre),
      keys(codebook, centre).T,
      precision=numerics.PRECISION,
  )
  return jax.nn.log_softmax(logits)


def centre_of(codebook: jax.Array) -> jax.Array:
  """Returns the mean codeword `[L]`, from which logits are best computed.

  Far from the origin they would be small differences of large numbers. They
  differ by a constant of each position, so there is no gradient to it.
  """
  return jax.lax.stop_gradient(jnp.mean(codebook, axis=0))


def queries(
    z_hat: jax.Array, weights: jax.Array, centre: jax.Array
) -> jax.Array:
  """Returns `[..., 2 L]`, whose products with `keys` are the logits of eq 16.

  Up to a constant of each position. The first arguments are `[..., L]`.
  """
  return jnp.concatenate([weights * (z_hat - centre), -0.5 * weights], axis=-1)


def keys(codebook: jax.Array, centre: jax.Array) -> jax.Array:
  """Returns `[C, 2 L]` from `[C, L]`; see `queries`."""
  codebook = codebook - centre
  return jnp.concatenate([codebook, jnp.square(codebook)], axis=-1)


def component_variance(
    z_hat: jax.Array, codewords: jax.Array, *, two_sigma2: chex.Numeric = 1.0
) -> jax.Array:
  """Returns the variance of a latent around its codeword, eq 18.

  Args:
    z_hat: `[..., L]`, the encoder's latents.
    codewords: `[..., L]`, the mean of the code each latent is drawn with.
    two_sigma2: 2 sigma^2 of eq 18. At 1 the energy of the noise equals the
      quantisation error.

  Returns:
    `[...]`: `(|z_hat - mu|^2 / L) / two_sigma2`.
  """
  z_hat, codewords = numerics.promote(z_hat, codewords)
  chex.assert_equal_shape([z_hat, codewords])
  return jnp.mean(jnp.square(z_hat - codewords), axis=-1) / two_sigma2


def _specs(z_hat: PartitionSpec, arguments: dict[str, Any]) -> Latents:
  """Returns the partition specs of `Latents`."""
  del arguments
  x: Any = placement.leading(z_hat)
  replicated: Any = placement.REPLICATED
  return Latents(x, x, x, x, x, x, q_c=replicated)


@placement.with_auto_axes('z_hat', _specs)
def sample_latents(
    key: chex.PRNGKey,
    z_hat: jax.Array,
    weights: jax.Array,
    codebook: jax.Array,
    *,
    temperature: chex.Numeric,
    two_sigma2: chex.Numeric = 1.0,
    hard: bool = True,
    gaussian_noise: bool = True,
    stop_variance_gradient: bool = False,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    method: str = 'plain',
) -> Latents:
  """Samples z from q(z|x): a code by eq 17, then Gaussian noise by eq 18.

  `z = c_q^T M + sigma_j eps`, where j is the sampled code. There is no identity
  path from z to `z_hat`: the encoder learns through the posterior and sigma.

  Args:
    key: random key.
    z_hat: `[..., L]`, the encoder's latents.
    weights: `[..., L]`, non-negative precisions.
    codebook: `[C, L]`.
    temperature: of the Gumbel-softmax; positive.
    two_sigma2: 2 sigma^2 of eq 18.
    hard: whether z is around one codeword (True) or the relaxed mixture.
    gaussian_noise: whether the noise of eq 18 is added.
    stop_variance_gradient: whether sigma is a constant to the gradient.
    mask: `[...]`, positions that count in `q_c`; all by default.
    axis_name: a mapped axis (of `pmap` or `shard_map`), of which positions are
      a part.
    method: `plain`, `kept`, `tiled` or `auto`, which differ in the memory they
      take; see `soft_assignment.plan`. Values and gradients are the same.

  Returns:
    The sampled `Latents`.
  """
  z_hat, weights, codebook = numerics.promote(z_hat, weights, codebook)
  key_code, key_noise = jax.random.split(key)
  num_rows, num_codes = z_hat[..., 0].size, len(codebook)
  devices = placement.num_devices(z_hat)
  plan = soft_assignment.plan(method, num_rows, num_codes, devices, keep=True)
  log_probs = None
  if plan.plain:
    # q(c|x), a code from it, and the mixture weighted by its one-hot.
    log_probs = log_posterior(z_hat, weights, codebook)
    c_q, codes = gumbel_softmax(
        key_code,
        log_probs,
        temperature=temperature,
        hard=hard,
        axis_name=axis_name,
    )
    mean = jnp.matmul(c_q, codebook, precision=numerics.PRECISION)
    codewords = codebook[codes]
    entropy = posterior_entropy(log_probs)
    q_c = aggregated_posterior(
        jnp.exp(log_probs), axis_name=axis_name, mask=mask
    )
  else:
    mean, codes, codewords, entropy, q_c = _assign(
        z_hat,
        weights,
        codebook,
        key=key_code,
        temperature=temperature,
        hard=hard,
        mask=mask,
        axis_name=axis_name,
        method=method,
    )
  variance = component_variance(z_hat, codewords, two_sigma2=two_sigma2)
  z = mean
  if gaussian_noise:
    seeds = counter_rng.row_seeds(key_noise, num_rows, axis_name=axis_name)
    eps = counter_rng.normal(seeds, z_hat.shape[-1], dtype=z_hat.dtype)
    z = reparameterise(
        mean,
        variance,
        eps.reshape(mean.shape),
        stop_gradient=stop_variance_gradient,
    )
  return Latents(z, codes, codewords, log_probs, variance, entropy, q_c)


def reparameterise(
    mean: jax.Array,
    variance: jax.Array,
    eps: jax.Array,
    *,
    stop_gradient: bool = False,
) -> jax.Array:
  """Returns `mean + sigma eps`, `[..., L]`.

  Args:
    mean: `[..., L]`.
    variance: `[...]`.
    eps: `[..., L]`, standard normal.
    stop_gradient: whether sigma is a constant to the gradient.
  """
  sigma = jnp.sqrt(variance + VARIANCE_EPS)
  if stop_gradient:
    sigma = jax.lax.stop_gradient(sigma)
  return mean + sigma[..., None] * eps


@placement.with_auto_axes('z_hat', _specs)
def most_probable_latents(
    z_hat: jax.Array,
    weights: jax.Array,
    codebook: jax.Array,
    *,
    two_sigma2: chex.Numeric = 1.0,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    method: str = 'plain',
) -> Latents:
  """Returns the codeword of each position's most probable code, without noise.

  The paper's evaluation. Of equally probable codes the first wins. Arguments
  are those of `sample_latents`.
  """
  z_hat, weights, codebook = numerics.promote(z_hat, weights, codebook)
  num_rows, num_codes = z_hat[..., 0].size, len(codebook)
  devices = placement.num_devices(z_hat)
  plan = soft_assignment.plan(method, num_rows, num_codes, devices)
  log_probs = None
  if plan.plain:
    log_probs = log_posterior(z_hat, weights, codebook)
    _, codes = numerics.argmax(log_probs)
    codewords = codebook[codes]
    entropy = posterior_entropy(log_probs)
    q_c = aggregated_posterior(
        jnp.exp(log_probs), axis_name=axis_name, mask=mask
    )
  else:
    _, codes, codewords, entropy, q_c = _assign(
        z_hat,
        weights,
        codebook,
        mask=mask,
        axis_name=axis_name,
        method=method,
    )
  variance = component_variance(z_hat, codewords, two_sigma2=two_sigma2)
  return Latents(
      codewords, codes, codewords, log_probs, variance, entropy, q_c
  )


def aggregated_posterior(
    probs: jax.Array,
    *,
    axis_name: str | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
  """Returns q(c), the posterior averaged over the batch, eq 12.

  Args:
    probs: `[..., C]`, q(c|x) of each position.
    axis_name: a mapped axis (of `pmap` or `shard_map`) to average over as well.
      Under `jit` on sharded arrays the mean is global already.
    mask: `[...]`, positions that count (True or a weight); all by default.

  Returns:
    `[C]`. All 0 if the mask leaves nothing.
  """
  if mask is None:
    mask = jnp.ones(probs.shape[:-1], bool)
  chex.assert_shape(mask, probs.shape[:-1])
  return numerics.masked_mean(probs, mask, axis_name=axis_name)


def _assign(
    z_hat: jax.Array,
    weights: jax.Array,
    codebook: jax.Array,
    *,
    key: chex.PRNGKey | None = None,
    temperature: chex.Numeric = 1.0,
    hard: bool = True,
    mask: jax.Array | None,
    axis_name: str | None,
    method: str,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns means, codes, codewords, entropies and q(c).

  In tiles it holds no array of `[N, C]`, and all gradients of the codebook are
  added up within them, so that devices send one sum.
  """

  def of_rows(
      plan: soft_assignment.Plan,
      params: Any,
      rows: jax.Array,
      row_weights: jax.Array,
      seeds: jax.Array | None,
  ) -> tuple[jax.Array, Any]:
    z_hat, weights = jnp.split(rows, 2, axis=-1)
    codebook, centre = params['codebook'], params['centre']
    assigned = soft_assignment.assign(
        plan,
        queries(z_hat, weights, centre),
        keys(codebook, centre),
        codebook,
        weights=row_weights,
        seeds=seeds,
        temperature=params['temperature'],
        hard=hard,
    )
    of_each = assigned.codes, assigned.codewords, assigned.entropy
    return assigned.posterior, (assigned.z, *of_each)

  q_c, (mean, codes, codewords, entropy) = soft_assignment.map_positions(
      of_rows,
      {
          'codebook': codebook,
          'centre': centre_of(codebook),
          'temperature': jnp.asarray(temperature, codebook.dtype),
      },
      jnp.concatenate([z_hat, weights], axis=-1),
      num_codes=len(codebook),
      mask=jnp.ones(z_hat.shape[:-1], bool) if mask is None else mask,
      keys=key,
      axis_name=axis_name,
      method=method,
      keep=key is not None,
  )
  return mean, codes, codewords, entropy, q_c
