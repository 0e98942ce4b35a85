"""Gumbel-VQVAE: codes drawn from logits, without distances."""

import jax
import jax.numpy as jnp

from gmvq_jax.ops import soft_assignment
from gmvq_jax.ops import numerics
from gmvq_jax.quantizers import base


def gumbel(
    num_codes: int,
    dim: int,
    *,
    kl_weight: float = 5e-4,
    hard: bool = True,
    assignment: str = 'auto',
) -> base.Quantizer:
  """Gumbel-softmax quantization (Jang 2016, https://arxiv.org/abs/1611.01144).

  As in https://github.com/karpathy/deep-vector-quantization and in Esser 2021
  (https://arxiv.org/abs/2012.09841): logits are a linear map of the latents (a
  1 x 1 convolution), codes are drawn by straight-through Gumbel-softmax, and
  the loss is `kl_weight` times the mean of KL(q(c|x) || uniform), in nats,
  added to the mean squared error. At evaluation the most probable code is
  taken, where Karpathy's goes on drawing.

  There is no k-means start: codewords are not compared with latents.

  Parameters: `{'codebook': [C, L], 'kernel': [L, C], 'bias': [C]}`. State:
  none. Metrics: `kl` and `posterior_entropy` (nats), `quantization_error` and
  `latent_variance`.

  Args:
    num_codes: C.
    dim: L, of the latents and of the codewords.
    kl_weight: weight of the KL.
    hard: whether the decoder is trained on one codeword (True) or on the
      relaxed mixture of them.
    assignment: how codes are drawn; see `assignment.plan`.

  Raises:
    ValueError: for an `assignment` that is none of these.
  """
  base.check_sizes('gumbel', num_codes=num_codes, dim=dim)
  base.check_choice('gumbel', 'assignment', assignment, soft_assignment.METHODS)

  def init(key):
    keys = jax.random.split(key)
    scale = dim**-0.5
    return {
        'codebook': jax.random.normal(keys[0], (num_codes, dim)),
        'kernel': scale * jax.random.normal(keys[1], (dim, num_codes)),
        'bias': jnp.zeros(num_codes),
    }, {}

  def of_rows(plan, params, z_hat, weights, seeds):
    (z_hat,) = numerics.promote(z_hat)
    assigned = soft_assignment.assign(
        plan,
        jnp.concatenate([z_hat, jnp.ones_like(z_hat[:, :1])], axis=-1),
        params['keys'],
        params['codebook'],
        weights=weights,
        seeds=seeds,
        temperature=params['temperature'],
        hard=hard,
    )
    error = jnp.mean(jnp.square(z_hat - assigned.codewords), axis=-1)
    return assigned.posterior, {
        'z': assigned.z,
        'codes': assigned.codes,
        'entropy': assigned.entropy,
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
    h, mask = base.apply_mask(h, mask, (dim,))
    key = base.training_key(train, key, temperature)
    codebook, kernel, bias = numerics.promote(
        params['codebook'], params['kernel'], params['bias']
    )
    q_c, of_position = soft_assignment.map_positions(
        of_rows,
        {
            'codebook': codebook,
            'keys': jnp.concatenate([kernel.T, bias[:, None]], axis=-1),
            'temperature': jnp.asarray(
                temperature if train else 1.0, codebook.dtype
            ),
        },
        h,
        num_codes=num_codes,
        mask=mask,
        keys=key,
        axis_name=axis_name,
        method=assignment,
    )

    def mean(values):
      return numerics.masked_mean(values, mask, axis_name=axis_name)

    entropy = mean(of_position['entropy'])
    kl = mean(jnp.log(num_codes) - of_position['entropy'])
    metrics = {
        'kl': kl,
        'posterior_entropy': entropy,
        **base.latent_metrics(h, of_position['error'], mean),
    }
    quantized = base.result(
        of_position['z'],
        of_position['codes'],
        kl_weight * kl,
        metrics,
        num_codes,
        mask,
        axis_name,
        q_c=q_c,
    )
    return quantized, state

  def logits(params, state, h):
    del state
    h, kernel, bias = numerics.promote(h, params['kernel'], params['bias'])
    return jnp.matmul(h, kernel, precision=numerics.PRECISION) + bias

  parts = base.plain_codebook() | {'write': None}
  return base.Quantizer(
      heads=(dim,),
      num_codes=num_codes,
      init=init,
      apply=apply,
      objective=base.mean_objective,
      logits=logits,
      **parts,
  )
