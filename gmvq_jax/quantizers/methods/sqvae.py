"""SQ-VAE: stochastic quantization with a learnt variance."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import soft_assignment
from gmvq_jax.ops import numerics
from gmvq_jax.ops import posterior
from gmvq_jax.quantizers import base

VARIANCES = ('scalar', 'image', 'position')


def sqvae(
    num_codes: int,
    dim: int,
    *,
    variance: str = 'scalar',
    initial_variance: float = 20.0,
    assignment: str = 'auto',
) -> base.Quantizer:
  """Stochastically quantized VAE (https://arxiv.org/abs/2205.07547).

  With z the latents and v a learnt variance, `q(c|x) = softmax(-|z - e_c|^2 /
  2v)`; the decoder is trained on the relaxed mixture `softmax((log q + g) / t)
  M`, g Gumbel noise, and sees the codeword of the most probable code at
  evaluation. The objective, with D values and an image's squared error E, is

      D / 2 log(mean of E) + sum of q log q + sum of |z - z_q|^2 / 2v,

  sums over an image, means over the batch; here divided by D, which changes no
  gradient's direction.

  As in the authors' code (https://github.com/sony/sqvae, `vision`): v = w +
  exp(s), `exp(s)` is `initial_variance` at the start, w is 1 or, for variances
  of their own, the exponential of another head. Theirs averages that head over
  channels; this one has a single channel.

  Parameters: `{'codebook': [C, L], 'log_variance': []}`. State: none. Metrics:
  `posterior_entropy` (nats), `variance` (v), `latent` (`|z - z_q|^2 / 2v`),
  `quantization_error`, `latent_variance`.

  Args:
    num_codes: C.
    dim: L.
    variance: one for all (`scalar`), for an `image`, or for a `position`.
    initial_variance: what the learnt part starts from.
    assignment: how codes are drawn; see `assignment.plan`.

  Raises:
    ValueError: for a `variance` or an `assignment` that is none of these.
  """
  base.check_sizes('sqvae', num_codes=num_codes, dim=dim)
  base.check_choice('sqvae', 'variance', variance, VARIANCES)
  base.check_choice('sqvae', 'assignment', assignment, soft_assignment.METHODS)
  has_head = variance != 'scalar'
  heads = (dim, 1) if has_head else (dim,)

  def init(key):
    codebook = jax.random.normal(key, (num_codes, dim))
    log_variance = jnp.log(jnp.asarray(initial_variance, jnp.float32))
    return {'codebook': codebook, 'log_variance': log_variance}, {}

  def of_rows(plan, params, rows, weights, seeds):
    z_hat, precision = rows[:, :dim], rows[:, dim:]
    centred = z_hat - params['centre']
    # -|z - e|^2 / 2v, less what all codes share.
    assigned = soft_assignment.assign(
        plan,
        jnp.concatenate([precision * centred, -precision / 2], axis=-1),
        params['keys'],
        params['codebook'],
        weights=weights,
        seeds=seeds,
        temperature=params['temperature'],
        hard=False,
    )
    error = jnp.mean(jnp.square(z_hat - assigned.codewords), axis=-1)
    distance = jnp.sum(jnp.square(z_hat - assigned.z), axis=-1)
    return assigned.posterior, {
        'z': assigned.z,
        'codes': assigned.codes,
        'entropy': assigned.entropy,
        'latent': distance * precision[:, 0] / 2,
        'error': error,
    }

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
    h, mask = base.apply_mask(h, mask, heads)
    key = base.training_key(train, key, temperature)
    h, codebook = numerics.promote(h, params['codebook'])
    z_hat, v = h[..., :dim], variances(params, h, mask)
    centre = posterior.centre_of(codebook)
    centred = codebook - centre
    energy = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
    q_c, of_position = soft_assignment.map_positions(
        of_rows,
        {
            'codebook': codebook,
            'centre': centre,
            'keys': jnp.concatenate([centred, energy], axis=-1),
            'temperature': jnp.asarray(
                temperature if train else 1.0, codebook.dtype
            ),
        },
        jnp.concatenate([z_hat, 1 / v[..., None]], axis=-1),
        num_codes=num_codes,
        mask=mask,
        keys=key,
        axis_name=axis_name,
        method=assignment,
    )

    def mean(values):
      return numerics.masked_mean(values, mask, axis_name=axis_name)

    entropy, latent = mean(of_position['entropy']), mean(of_position['latent'])
    metrics = {
        'posterior_entropy': entropy,
        'latent': latent,
        'variance': mean(v),
        **base.latent_metrics(z_hat, of_position['error'], mean),
    }
    quantized = base.result(
        of_position['z'],
        of_position['codes'],
        latent - entropy,
        metrics,
        num_codes,
        mask,
        axis_name,
        q_c=q_c,
    )
    return quantized, state

  def variances(params, h, mask):
    width = jnp.exp(own_variance(h[..., dim], mask)) if has_head else 1.0
    return jnp.broadcast_to(width + jnp.exp(params['log_variance']), mask.shape)

  def own_variance(head, mask):
    if variance == 'position':
      return head
    axes = tuple(range(1, head.ndim))
    count = jnp.maximum(jnp.sum(mask, axis=axes, keepdims=True), 1)
    total = jnp.sum(jnp.where(mask, head, 0), axis=axes, keepdims=True)
    return jnp.broadcast_to(total / count, head.shape)

  def logits(params, state, h):
    del state
    h, codebook = numerics.promote(h, params['codebook'])
    v = variances(params, h, jnp.ones(h.shape[:-1], bool))
    return base.distance_logits(h[..., :dim], codebook) / (2 * v[..., None])

  def objective(squared_error, quantized, *, data_dim, positions):
    error = jnp.maximum(jnp.mean(squared_error), jnp.finfo(jnp.float32).tiny)
    return jnp.log(error) / 2 + positions / data_dim * quantized.loss

  return base.Quantizer(
      heads=heads,
      num_codes=num_codes,
      init=init,
      apply=apply,
      objective=objective,
      logits=logits,
      **base.plain_codebook(),
  )
