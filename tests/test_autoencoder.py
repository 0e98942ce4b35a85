"""The autoencoder."""

import chex
import jax
import numpy as np
import pytest

import gmvq_jax
from gmvq_jax import autoencoder
from gmvq_jax import networks


def small_model(depth=None):
  quantizer = gmvq_jax.gmvq(16, 4, gamma=0.01, beta=2.0)
  if depth:
    quantizer = gmvq_jax.residual(quantizer, depth)
  return autoencoder.Autoencoder(
      networks.Encoder(quantizer.heads, width=8, num_blocks=0),
      quantizer,
      networks.Decoder(width=8, num_blocks=0),
  )


@pytest.mark.parametrize('depth', [None, 2])
def test_reconstruct_is_encode_quantize_decode(depth):
  model = small_model(depth)
  variables = model.init(jax.random.key(0), (16, 16, 3))
  images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
  decoded, quantized = model.reconstruct(variables, images)
  chex.assert_shape(decoded, images.shape)
  chex.assert_shape(quantized.codes, (2, 4, 4, *model.quantizer.code_shape))
  z = model.quantizer.embed(
      variables.params['quantizer'], variables.quantizer_state, quantized.codes
  )
  again, _ = model.decode(variables, z)
  chex.assert_trees_all_close(decoded, again, atol=1e-5)


def test_training_moves_statistics_and_evaluation_does_not():
  model = small_model()
  variables = model.init(jax.random.key(0), (16, 16, 3))
  images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
  _, trained = model.encode(variables, images, train=True)
  _, evaluated = model.encode(variables, images)
  before, after = variables.batch_stats, trained.batch_stats
  assert not np.allclose(
      *(jax.tree.leaves(s['encoder'])[0] for s in (before, after))
  )
  chex.assert_trees_all_equal(before['decoder'], after['decoder'])
  chex.assert_trees_all_equal(variables, evaluated)
