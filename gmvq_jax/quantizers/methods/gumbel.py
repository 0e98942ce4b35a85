"""Gumbel-VQVAE: codes drawn from logits, without distances."""

import chex
import jax
import jax.numpy as jnp

from gmvq_jax.ops import numerics
from gmvq_jax.ops import soft_assignment
from gmvq_jax.quantizers import base
from gmvq_jax.quantizers import common


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
    assignment: how codes are drawn; see `soft_assignment.plan`.

  Raises:
    ValueError: for an `assignment` that is none of these.
  """
  common.check_sizes('gumbel', num_codes=num_codes, dim=dim)
  common.check_choice(
      'gumbel', 'assignment', assignment, soft_assignment.METHODS
  )
  common.check_range('gumbel', 'at least 0', kl_weight=kl_weight)

  def init(key: chex.PRNGKey) -> tuple[base.Params, base.State]:
    keys = jax.random.split(key)
    scale = dim**-0.5
    return {
        'codebook': jax.random.normal(keys[0], (num_codes, dim)),
        'kernel': scale * jax.random.normal(keys[1], (dim, num_codes)),
        'bias': jnp.zeros(num_codes),
    }, {}

  def of_rows(
      plan: soft_assignment.Plan,
      params: base.Params,
      rows: jax.Array,
      weights: jax.Array,
      seeds: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    (z_hat,) = numerics.promote(rows)
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

  def quantize(
      params: base.Params, state: base.State, call: common.Call
  ) -> tuple[base.Quantized, base.State]:
    codebook, kernel, bias = numerics.promote(
        params['codebook'], params['kernel'], params['bias']
    )
    temperature = call.temperature if call.train else 1.0
    q_c, of_position = soft_assignment.map_positions(
        of_rows,
        {
            'codebook': codebook,
            'keys': jnp.concatenate([kernel.T, bias[:, None]], axis=-1),
            'temperature': jnp.asarray(temperature, codebook.dtype),
        },
        call.h,
        num_codes=num_codes,
        mask=call.mask,
        keys=call.key,
        axis_name=call.axis_name,
        method=assignment,
        keep=call.train,
    )
    kl = call.mean(jnp.log(num_codes) - of_position['entropy'])
    quantized = call.quantized(
        of_position['z'],
        of_position['codes'],
        kl_weight * kl,
        {
            'kl': kl,
            'posterior_entropy': call.mean(of_position['entropy']),
            **call.latent_metrics(call.h, of_position['error']),
        },
        num_codes,
        q_c=q_c,
    )
    return quantized, state

  def logits(
      params: base.Params, state: base.State, h: jax.Array
  ) -> jax.Array:
    del state
    h, kernel, bias = numerics.promote(h, params['kernel'], params['bias'])
    return jnp.matmul(h, kernel, precision=numerics.PRECISION) + bias

  # Codewords are not compared with latents, so none is written.
  parts = common.plain_codebook() | {'write': None}
  return base.Quantizer(
      heads=(dim,),
      num_codes=num_codes,
      init=init,
      apply=common.as_apply(
          'gumbel', (dim,), quantize, needs=('key', 'temperature')
      ),
      objective=common.mean_objective,
      logits=logits,
      **parts,
  )
