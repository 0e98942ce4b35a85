"""The quantizer that benchmarks compare with computes what ours does.

Runs where `pip install -e '.[oracle]'` was done.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers
from gmvq_jax.nn import autoencoder
from gmvq_jax.nn import networks
from gmvq_jax.ops import counter_rng

torch = pytest.importorskip('torch')
sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))
import peer  # noqa: E402


def test_the_quantizers_are_the_same(rng):
  n, c, dim, tau = 60, 32, 8, 0.7
  quantizer = quantizers.gmvq(c, dim, gamma=0.1, beta=3.0)
  params, state = quantizer.init(jax.random.key(0))
  h = rng.normal(size=(n, 2 * dim)).astype(np.float32)
  slope = rng.normal(size=(n, dim)).astype(np.float32)
  key = jax.random.key(1)

  def loss(params, h):
    quantized, _ = quantizer.apply(
        params, state, h, key=key, temperature=tau, train=True
    )
    return jnp.sum(quantized.z * slope) + quantized.loss, quantized.codes

  (value, codes), gradients = jax.value_and_grad(
      loss, argnums=(0, 1), has_aux=True
  )(params, jnp.asarray(h))

  theirs = peer.GMVQ(c, dim, gamma=0.1, beta=3.0)
  with torch.no_grad():
    theirs.codebook.copy_(torch.tensor(np.asarray(params['codebook'])))
  seeds = [counter_rng.row_seeds(k, n) for k in jax.random.split(key)]
  rows = torch.tensor(h, requires_grad=True)
  z, extra, their_codes = theirs(
      rows,
      tau,
      gumbel=torch.tensor(np.asarray(counter_rng.gumbel(seeds[0], c))),
      eps=torch.tensor(np.asarray(counter_rng.normal(seeds[1], dim))),
  )
  their_value = (z * torch.tensor(slope)).sum() + extra
  their_value.backward()
  np.testing.assert_array_equal(codes, their_codes)
  np.testing.assert_allclose(value, their_value.item(), rtol=1e-5)
  np.testing.assert_allclose(
      gradients[0]['codebook'], theirs.codebook.grad, rtol=1e-3, atol=1e-5
  )
  np.testing.assert_allclose(gradients[1], rows.grad, rtol=1e-3, atol=1e-5)


def test_the_autoencoders_have_the_same_parameters():
  quantizer = quantizers.gmvq(1024, 64, gamma=0.01, beta=10.0)
  ours = autoencoder.Autoencoder(
      networks.Encoder(quantizer.heads), quantizer, networks.Decoder()
  )
  variables = jax.eval_shape(
      lambda: ours.init(jax.random.key(0), (32, 32, 3))
  )
  theirs = peer.Autoencoder()
  shapes = sorted(
      tuple(sorted(x.shape)) for x in jax.tree.leaves(variables.params)
  )
  assert shapes == sorted(tuple(sorted(p.shape)) for p in theirs.parameters())
  loss = theirs(torch.rand(2, 3, 32, 32), 0.5)
  loss.backward()
  assert torch.isfinite(loss)
