"""SQ-VAE: stochastic quantization with a learnt variance."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.ops import posterior
from gmvq_jax.ops import soft_assignment
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common

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
    assignment: how codes are drawn; see `soft_assignment.plan`.

  Raises:
    ValueError: for a `variance` or an `assignment` that is none of these.
  """
  common.check_sizes('sqvae', num_codes=num_codes, dim=dim)
  common.check_choice('sqvae', 'variance', variance, VARIANCES)
  common.check_choice(
      'sqvae', 'assignment', assignment, soft_assignment.METHODS
  )
  common.check_range(
      'sqvae', 'greater than 0', initial_variance=initial_variance
  )
  has_head = variance != 'scalar'
  heads = (dim, 1) if has_head else (dim,)

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    codebook = jax.random.normal(key, (num_codes, dim))
    log_variance = jnp.log(jnp.asarray(initial_variance, jnp.float32))
    return {'codebook': codebook, 'log_variance': log_variance}, {}

  def of_rows(
      plan: soft_assignment.Plan,
      params: base.Params,
      rows: jax.Array,
      weights: jax.Array,
      seeds: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
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

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    h, codebook = numerics.promote(call.h, params['codebook'])
    z_hat, v = h[..., :dim], variances(params, h, call.mask)
    centre = posterior.centre_of(codebook)
    centred = codebook - centre
    energy = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
    temperature = call.temperature if call.train else 1.0
    q_c, of_position = soft_assignment.map_positions(
        of_rows,
        {
            'codebook': codebook,
            'centre': centre,
            'keys': jnp.concatenate([centred, energy], axis=-1),
            'temperature': jnp.asarray(temperature, codebook.dtype),
        },
        jnp.concatenate([z_hat, 1 / v[..., None]], axis=-1),
        num_codes=num_codes,
        mask=call.mask,
        keys=call.key,
        axis_name=call.axis_name,
        method=assignment,
        keep=call.train,
    )
    entropy = call.mean(of_position['entropy'])
    latent = call.mean(of_position['latent'])
    quantized = call.quantized(
        of_position['z'],
        of_position['codes'],
        latent - entropy,
        {
            'posterior_entropy': entropy,
            'latent': latent,
            'variance': call.mean(v),
            **call.latent_metrics(z_hat, of_position['error']),
        },
        num_codes,
        q_c=q_c,
    )
    return quantized, state

  def variances(
      params: base.Params, h: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Returns v of each position, `[...]`."""
    width: jax.Array | float = 1.0
    if has_head:
      width = jnp.exp(own_variance(h[..., dim], mask))
    return jnp.broadcast_to(width + jnp.exp(params['log_variance']), mask.shape)

  def own_variance(head: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the logarithm of w, `[...]`, of a position or its image."""
    if variance == 'position':
      return head
    axes = tuple(range(1, head.ndim))
    count = jnp.maximum(jnp.sum(mask, axis=axes, keepdims=True), 1)
    total = jnp.sum(jnp.where(mask, head, 0), axis=axes, keepdims=True)
    return jnp.broadcast_to(total / count, head.shape)

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    del state
    h, codebook = numerics.promote(h, params['codebook'])
    v = variances(params, h, jnp.ones(h.shape[:-1], bool))
    return common.distance_logits(h[..., :dim], codebook) / (2 * v[..., None])

  def objective(
      error: jax.Array,
      quantized: base.Quantized,
      *,
      data_shape: tuple[int, ...],
  ) -> jax.Array:
    positions, values = common.loss_shape(error, quantized, data_shape)
    of_image = jnp.maximum(values * error, jnp.finfo(jnp.float32).tiny)
    return jnp.log(of_image) / 2 + positions / values * quantized.loss

  return base.Quantizer(
      heads=heads,
      num_codes=num_codes,
      init=init,
      apply=common.as_apply(
          'sqvae', heads, quantize, needs=('key', 'temperature')
      ),
      objective=objective,
      logits=logits,
      **common.plain_codebook(),
  )
