"""GM-VQ: the codebook holds the means of a Gaussian mixture.

Equations of arXiv 2410.10180. Shapes: `[...]` are positions, of all images of
the batch; `L` the channels of a latent, `C` the codes.
"""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import albo
from gmvq_jax.ops import numerics
from gmvq_jax.ops import posterior
from gmvq_jax.ops import soft_assignment
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common

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
    gaussian_noise: bool = True,
    stop_variance_gradient: bool = False,
    weight_scale: float = 1.0,
    sharpening: float = 0.0,
    identity: float = 0.0,
    assignment: str = 'auto',
) -> base.Quantizer:
  """Gaussian mixture vector quantization (https://arxiv.org/abs/2410.10180).

  The encoder has two heads of `dim` channels: latents z_hat and raw precisions,
  made positive by softplus (eq 15). In training z is a sample of
  `posterior.sample_latents`; at evaluation it is the codeword of the most
  probable code, without noise. The loss is `albo.albo`.

  Parameters: `{'codebook': [C, L]}`. State: none.

  Metrics: `latent` (summed over L), `kl` and `posterior_entropy` (nats),
  `variance` (eq 18), `quantization_error` (mean of `(z_hat - codeword)^2`, the
  codeword that was sampled), `latent_variance` (of z_hat over positions, mean
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
    gaussian_noise: whether z is sampled around its codeword (True) or is the
      codeword itself, as later levels of `residual` need it.
    stop_variance_gradient: whether eq 18 is a constant to the gradient.
    weight_scale: factor on the precisions of eq 15. Not in the paper: it sets
      how sharp posteriors are at initialisation.
    sharpening: exponent a of a factor `temperature**-a` on the precisions, in
      training: as the temperature falls the posterior sharpens. Not in the
      paper, where it is 0.
    identity: factor on a straight-through path from z to z_hat, beside that
      through the posterior, in training. Not in the paper, where it is 0.
    assignment: `plain`, `kept`, `tiled`, whose memory does not grow with N x C,
      or `auto`; see `soft_assignment.plan`. The aggregate `batch` holds arrays
      of [N, C] in any case.

  Raises:
    ValueError: for an argument out of range.
  """
  common.check_sizes('gmvq', num_codes=num_codes, dim=dim)
  common.check_choice('gmvq', 'latent', latent, LATENT_TERMS)
  common.check_choice('gmvq', 'aggregate', aggregate, AGGREGATES)
  common.check_choice(
      'gmvq', 'assignment', assignment, soft_assignment.METHODS
  )
  common.check_range(
      'gmvq',
      'at least 0',
      gamma=gamma,
      beta=beta,
      sharpening=sharpening,
      identity=identity,
  )
  common.check_range(
      'gmvq', 'greater than 0', two_sigma2=two_sigma2, weight_scale=weight_scale
  )

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    return {'codebook': jax.random.normal(key, (num_codes, dim))}, {}

  def heads_of(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns latents and precisions `[..., L]`, eq 15."""
    z_hat, raw = numerics.promote(*jnp.split(h, 2, axis=-1))
    return z_hat, weight_scale * jax.nn.softplus(raw)

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    # The two heads of the encoder, eq 15.
    z_hat, weights = heads_of(call.h)
    (codebook,) = numerics.promote(params['codebook'])

    # A code from q(c|x) and a latent around its codeword, eqs 16-18; without
    # noise at evaluation.
    if call.train:
      assert call.key is not None and call.temperature is not None
      weights *= jnp.power(call.temperature, -sharpening)
      latents = posterior.sample_latents(
          call.key,
          z_hat,
          weights,
          codebook,
          temperature=call.temperature,
          two_sigma2=two_sigma2,
          hard=hard,
          gaussian_noise=gaussian_noise,
          stop_variance_gradient=stop_variance_gradient,
          mask=call.mask,
          axis_name=call.axis_name,
          method=assignment,
      )
      straight = identity * (z_hat - jax.lax.stop_gradient(z_hat))
      latents = latents._replace(z=latents.z + straight)
    else:
      latents = posterior.most_probable_latents(
          z_hat,
          weights,
          codebook,
          two_sigma2=two_sigma2,
          mask=call.mask,
          axis_name=call.axis_name,
          method=assignment,
      )

    # The latent term of eq 14, in one of its readings.
    if latent == 'coupled':
      term = albo.latent_coupled(
          z_hat, latents.codewords, two_sigma2=two_sigma2
      )
    elif latent == 'expected':
      term = albo.latent_expected_of(
          z_hat,
          weights,
          codebook,
          two_sigma2=two_sigma2,
          method=assignment,
      )
    else:
      term = albo.latent_aggregated(latents.z, latents.q_c, codebook)
    term = call.mean(term)

    # The KL of the aggregated posterior, eq 12, to the uniform prior; 0 where
    # no position counts.
    if aggregate == 'positions':
      kl = jnp.any(latents.q_c > 0) * albo.kl_to_uniform(latents.q_c)
    else:
      log_probs = posterior.log_posterior(z_hat, weights, codebook)
      kl = _kl_of_positions(jnp.exp(log_probs), call)

    quantized = call.quantized(
        latents.z,
        latents.codes,
        albo.regulariser(term, kl, gamma=gamma, beta=beta),
        {
            'latent': term,
            'kl': kl,
            'posterior_entropy': call.mean(latents.entropy),
            'variance': call.mean(latents.variance),
            'precision': call.mean(jnp.mean(weights, axis=-1)),
            **call.latent_metrics(z_hat, two_sigma2 * latents.variance),
        },
        num_codes,
        q_c=latents.q_c,
    )
    return quantized, state

  def objective(
      error: jax.Array,
      quantized: base.Quantized,
      *,
      data_shape: tuple[int, ...],
  ) -> jax.Array:
    positions, values = common.loss_shape(error, quantized, data_shape)
    return error + positions / values * quantized.loss

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    del state
    return posterior.log_posterior(*heads_of(h), params['codebook'])

  return base.Quantizer(
      heads=(dim, dim),
      num_codes=num_codes,
      init=init,
      apply=common.as_apply(
          'gmvq', (dim, dim), quantize, needs=('key', 'temperature')
      ),
      objective=objective,
      logits=logits,
      **common.plain_codebook(),
  )


def _kl_of_positions(probs: jax.Array, call: common.Call) -> jax.Array:
  """Returns the mean of the KLs of each position's own q(c), over images."""

  def q_of(probs: jax.Array, mask: jax.Array) -> jax.Array:
    return posterior.aggregated_posterior(
        probs, axis_name=call.axis_name, mask=mask
    )

  shape = (len(probs), -1)
  q_c = jax.vmap(q_of, in_axes=1)(
      probs.reshape(*shape, probs.shape[-1]), call.mask.reshape(shape)
  )
  seen = jnp.sum(q_c, axis=-1) > 0  # Not masked in every image.
  return numerics.masked_mean(albo.kl_to_uniform(q_c), seen)
