"""GM-VQ: the codebook is the means of a Gaussian mixture."""

import jax
import jax.numpy as jnp

from gmvq_jax import numerics
from gmvq_jax import posterior
from gmvq_jax.albo import combine
from gmvq_jax.albo import kl_to_uniform
from gmvq_jax.albo import latent_aggregated
from gmvq_jax.albo import latent_coupled
from gmvq_jax.albo import latent_expected
from gmvq_jax.quantizers import base

LATENT_TERMS = ('coupled', 'expected', 'aggregated')
AGGREGATES = ('positions', 'batch')


def gmvq(
    num_codes: int,
    dim: int,
    *,
    gamma: float,
    beta: float,
    two_sigma2: float = 1.0,
    latent: str = 'coupled',
    aggregate: str = 'positions',
    hard: bool = True,
    stop_variance_gradient: bool = False,
    weight_scale: float = 1.0,
) -> base.Quantizer:
  """Gaussian mixture vector quantization (https://arxiv.org/abs/2410.10180).

  The encoder has two heads of `dim` channels: latents z_hat and raw precisions,
  made positive by softplus (eq 15). In training z is drawn from
  `posterior.sample_latents`; at evaluation it is the codeword of the most
  probable code, without noise. The loss is `albo.albo`.

  Parameters: `{'codebook': [C, L]}`. State: none.

  Metrics: `latent` (summed over L), `kl` and `posterior_entropy` (nats),
  `variance` (eq 18), `quantization_error` (mean of `(z_hat - codeword)^2`, the
  codeword that was drawn), `latent_variance` (of z_hat over positions, mean
  over channels), `precision` (mean weight).

  Args:
    num_codes: C.
    dim: L.
    gamma: weight of the regulariser, eq 13.
    beta: weight of the KL within the regulariser, eq 14; 1 is the paper's
      GM-VQ, more is its "GM-VQ + Entropy".
    two_sigma2: 2 sigma^2 of eq 18.
    latent: the reading of the latent term of eq 14: `coupled`, `expected` or
      `aggregated`; see the functions of these names in `albo`.
    aggregate: what the KL's q(c) averages over: every position of the batch, or
      the `batch` (the first dimension) alone, which gives each position a q(c)
      of its own, whose KLs are averaged. The reported `q_c` is the former.
    hard: whether the decoder is trained on one codeword (True) or on the
      relaxed mixture of them.
    stop_variance_gradient: whether eq 18 is a constant to the gradient.
    weight_scale: factor on the precisions of eq 15. Not in the paper: it sets
      how sharp posteriors are at the start.

  Raises:
    ValueError: for a `latent` or an `aggregate` that is none of these.
  """
  base.check_choice('gmvq', 'latent', latent, LATENT_TERMS)
  base.check_choice('gmvq', 'aggregate', aggregate, AGGREGATES)

  def init(key):
    codebook = jax.random.normal(key, (num_codes, dim))
    return {'codebook': codebook}, {}

  def apply(
      params,
      state,
      h,
      *,
      key=None,
      temperature=None,
      train=False,
      mask=None,
      axis_name=None,
  ):
    h, mask = base.apply_mask(h, mask)
    key = base.training_key(train, key, temperature, axis_name)
    codebook = params['codebook']
    z_hat, raw = jnp.split(h, 2, axis=-1)
    z_hat, raw, codebook = numerics.promote(z_hat, raw, codebook)
    weights = weight_scale * jax.nn.softplus(raw)
    if train:
      drawn = posterior.sample_latents(
          key,
          z_hat,
          weights,
          codebook,
          temperature=temperature,
          two_sigma2=two_sigma2,
          hard=hard,
          stop_variance_gradient=stop_variance_gradient,
      )
    else:
      drawn = posterior.most_probable_latents(
          z_hat, weights, codebook, two_sigma2=two_sigma2
      )
    probs = jnp.exp(drawn.log_probs)
    q_c = posterior.aggregated_posterior(
        probs, axis_name=axis_name, mask=mask
    )

    def mean(values):
      return numerics.masked_mean(values, mask, axis_name=axis_name)

    if latent == 'coupled':
      term = latent_coupled(
          z_hat, drawn.codewords, two_sigma2=two_sigma2
      )
    elif latent == 'expected':
      term = latent_expected(
          z_hat, drawn.log_probs, codebook, two_sigma2=two_sigma2
      )
    else:
      term = latent_aggregated(drawn.z, q_c, codebook)
    term = mean(term)
    kl = kl_to_uniform(q_c)
    if aggregate == 'batch':
      per_position = jax.vmap(
          lambda p, m: posterior.aggregated_posterior(
              p, axis_name=axis_name, mask=m
          ),
          in_axes=1,
      )
      shape = (h.shape[0], -1)
      q_position = per_position(
          probs.reshape(*shape, num_codes), mask.reshape(shape)
      )
      seen = jnp.sum(q_position, axis=-1) > 0  # Not masked in every image.
      kl = numerics.masked_mean(kl_to_uniform(q_position), seen)
    metrics = {
        'latent': term,
        'kl': kl,
        'posterior_entropy': mean(posterior.posterior_entropy(drawn.log_probs)),
        'variance': mean(drawn.variance),
        'precision': mean(weights.mean(axis=-1)),
        **base.latent_metrics(z_hat, drawn.codewords, mean),
    }
    loss = gamma * (term + beta * kl)
    return base.Quantized(drawn.z, drawn.codes, q_c, loss, metrics), state

  def objective(squared_error, quantized, *, data_dim, positions):
    return combine(
        jnp.mean(squared_error) / data_dim,
        quantized.metrics['latent'],
        quantized.metrics['kl'],
        gamma=gamma,
        beta=beta,
        data_dim=data_dim,
        positions=positions,
    ).loss

  return base.Quantizer(
      heads=(dim, dim),
      num_codes=num_codes,
      init=init,
      apply=apply,
      objective=objective,
      **base.plain_codebook(),
  )
