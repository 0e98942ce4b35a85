"""GM-VQ: the codebook is the means of a Gaussian mixture."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import soft_assignment
from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics
from gmvq_jax.ops import posterior
from gmvq_jax.ops.albo import kl_to_uniform
from gmvq_jax.ops.albo import latent_aggregated
from gmvq_jax.ops.albo import latent_coupled
from gmvq_jax.ops.albo import latent_expected
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
    gaussian_noise: bool = True,
    stop_variance_gradient: bool = False,
    weight_scale: float = 1.0,
    assignment: str = 'auto',
) -> base.Quantizer:
  """Gaussian mixture vector quantization (https://arxiv.org/abs/2410.10180).

  The encoder has two heads of `dim` channels: latents z_hat and raw precisions,
  made positive by softplus (eq 15). In training z is what
  `posterior.sample_latents` draws; at evaluation it is the codeword of the most
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
    gaussian_noise: whether z is drawn around its codeword (True) or is the
      codeword itself, as later levels of `residual` need it.
    stop_variance_gradient: whether eq 18 is a constant to the gradient.
    weight_scale: factor on the precisions of eq 15. Not in the paper: it sets
      how sharp posteriors are at the start.
    assignment: how codes are drawn: `plain`, `tiled`, whose memory does not
      grow with N x C, or `auto`; see `assignment.plan`. The aggregate
      `batch` holds arrays of [N, C] in any case.

  Raises:
    ValueError: for a `latent`, `aggregate` or `assignment` that is none of
      these.
  """
  base.check_sizes('gmvq', num_codes=num_codes, dim=dim)
  base.check_choice('gmvq', 'latent', latent, LATENT_TERMS)
  base.check_choice('gmvq', 'aggregate', aggregate, AGGREGATES)
  base.check_choice('gmvq', 'assignment', assignment, soft_assignment.METHODS)

  def init(key):
    codebook = jax.random.normal(key, (num_codes, dim))
    return {'codebook': codebook}, {}

  def of_rows(plan, params, h, weights, seeds):
    z_hat, raw = numerics.promote(*jnp.split(h, 2, axis=-1))
    codebook, two_sigma2 = params['codebook'], params['two_sigma2']
    precision = params['weight_scale'] * jax.nn.softplus(raw)
    assigned = soft_assignment.assign(
        plan,
        posterior.queries(z_hat, precision, params['centre']),
        params['keys'],
        codebook,
        weights=weights,
        seeds=None if seeds is None else seeds[0],
        temperature=params['temperature'],
        hard=hard,
    )
    z = assigned.z
    variance = posterior.component_variance(
        z_hat, assigned.codewords, two_sigma2=two_sigma2
    )
    if seeds is not None and gaussian_noise:
      z = posterior.reparameterise(
          z,
          variance,
          counter_rng.normal(seeds[1], dim, dtype=z.dtype),
          stop_gradient=stop_variance_gradient,
      )
    results = {
        'z': z,
        'codes': assigned.codes,
        'entropy': assigned.entropy,
        'variance': variance,
        'precision': jnp.mean(precision, axis=-1),
    }
    if latent == 'coupled':
      results['latent'] = latent_coupled(
          z_hat, assigned.codewords, two_sigma2=two_sigma2
      )
    elif latent == 'expected':
      results['latent'] = latent_expected(
          z_hat,
          posterior.log_posterior(z_hat, precision, codebook),
          codebook,
          two_sigma2=two_sigma2,
      )
    return assigned.posterior, results

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
    h, mask = base.apply_mask(h, mask, (dim, dim))
    key = base.training_key(train, key, temperature)
    (codebook,) = numerics.promote(params['codebook'])
    centre = posterior.centre_of(codebook)
    numbers = {
        'temperature': temperature if train else 1.0,
        'two_sigma2': two_sigma2,
        'weight_scale': weight_scale,
    }
    numbers = {k: jnp.asarray(v, codebook.dtype) for k, v in numbers.items()}
    q_c, of_position = soft_assignment.map_positions(
        of_rows,
        {
            'codebook': codebook,
            'centre': centre,
            'keys': posterior.keys(codebook, centre),
            **numbers,
        },
        h,
        num_codes=num_codes,
        mask=mask,
        keys=None if key is None else tuple(jax.random.split(key)),
        axis_name=axis_name,
        method=assignment,
        whole=latent == 'expected',
    )
    z = of_position['z']

    def mean(values):
      return numerics.masked_mean(values, mask, axis_name=axis_name)

    if latent == 'aggregated':
      of_position['latent'] = latent_aggregated(z, q_c, codebook)
    term = mean(of_position['latent'])
    # 0 where nothing counts.
    kl = jnp.any(q_c > 0) * kl_to_uniform(q_c)
    if aggregate == 'batch':
      z_hat, raw = numerics.promote(*jnp.split(h, 2, axis=-1))
      precision = weight_scale * jax.nn.softplus(raw)
      log_probs = posterior.log_posterior(z_hat, precision, codebook)
      kl = _kl_of_positions(jnp.exp(log_probs), mask, axis_name)
    metrics = {
        'latent': term,
        'kl': kl,
        'posterior_entropy': mean(of_position['entropy']),
        'variance': mean(of_position['variance']),
        'precision': mean(of_position['precision']),
        **base.latent_metrics(
            h[..., :dim], two_sigma2 * of_position['variance'], mean
        ),
    }
    loss = gamma * (term + beta * kl)
    quantized = base.result(
        z,
        of_position['codes'],
        loss,
        metrics,
        num_codes,
        mask,
        axis_name,
        q_c=q_c,
    )
    return quantized, state

  def objective(squared_error, quantized, *, data_dim, positions):
    error = jnp.mean(squared_error) / data_dim
    return error + positions / data_dim * quantized.loss

  def logits(params, state, h):
    del state
    z_hat, raw = numerics.promote(*jnp.split(h, 2, axis=-1))
    return posterior.log_posterior(
        z_hat, weight_scale * jax.nn.softplus(raw), params['codebook']
    )

  return base.Quantizer(
      heads=(dim, dim),
      num_codes=num_codes,
      init=init,
      apply=apply,
      objective=objective,
      logits=logits,
      **base.plain_codebook(),
  )


def _kl_of_positions(probs, mask, axis_name):
  """Returns the mean of the KLs of each position's own q(c), over images."""

  def q_of(probs, mask):
    return posterior.aggregated_posterior(probs, axis_name=axis_name, mask=mask)

  shape = (len(probs), -1)
  q_c = jax.vmap(q_of, in_axes=1)(
      probs.reshape(*shape, probs.shape[-1]), mask.reshape(shape)
  )
  seen = jnp.sum(q_c, axis=-1) > 0  # Not masked in every image.
  return numerics.masked_mean(kl_to_uniform(q_c), seen)
