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
      networks.Encoder(
          quantizer.heads, width=8, num_blocks=0, num_downsamplings=1
      ),
      quantizer,
      networks.Decoder(width=8, num_blocks=0, num_upsamplings=1),
  )


@pytest.fixture
def images(rng):
  return rng.uniform(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize('depth', [None, 2])
def test_reconstruct_is_encode_quantize_decode(images, depth):
  model = small_model(depth)

  @jax.jit
  def reconstruct(images):
    variables = model.init(jax.random.key(0), images.shape[1:])
    decoded, quantized = model.reconstruct(variables, images)
    h, _ = model.encode(variables, images)
    again, _ = model.quantize(variables, h)
    z = model.quantizer.embed(
        variables.params['quantizer'],
        variables.quantizer_state,
        quantized.codes,
    )
    return decoded, quantized.codes, again.codes, model.decode(variables, z)[0]

  decoded, codes, again, of_codes = jax.device_get(reconstruct(images))
  chex.assert_shape(decoded, images.shape)
  chex.assert_shape(codes, (2, 4, 4, *model.quantizer.code_shape))
  np.testing.assert_array_equal(codes, again, err_msg='codes')
  np.testing.assert_allclose(decoded, of_codes, atol=1e-5, err_msg='images')


def test_training_moves_statistics_and_evaluation_does_not(images):
  model = small_model()

  @jax.jit
  def encode(images):
    variables = model.init(jax.random.key(0), images.shape[1:])
    _, trained = model.encode(variables, images, train=True)
    _, evaluated = model.encode(variables, images)
    return variables, trained, evaluated

  variables, trained, evaluated = jax.device_get(encode(images))
  before, after = variables.batch_stats, trained.batch_stats
  assert not np.allclose(
      *(jax.tree.leaves(s['encoder'])[0] for s in (before, after))
  )
  chex.assert_trees_all_equal(before['decoder'], after['decoder'])
  chex.assert_trees_all_equal(variables, evaluated)


def test_bytes_are_converted_to_the_unit_interval():
  pixels = np.array([0, 51, 128, 255], np.uint8)
  units = np.asarray(jax.jit(autoencoder.to_unit)(pixels))
  assert units.dtype == np.float32
  np.testing.assert_allclose(units, [0, 0.2, 128 / 255, 1], rtol=1e-6)
