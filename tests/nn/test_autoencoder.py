"""The autoencoder."""

import functools

import chex
import jax
import numpy as np
import pytest

import gmvq_jax
from gmvq_jax.nn import autoencoder
from gmvq_jax.nn import networks


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


@functools.cache
def outputs(depth):
  """Returns everything that the tests compare, from one program."""
  model = small_model(depth)

  @jax.jit
  def run(images):
    variables = model.init(jax.random.key(0), images.shape[1:])
    decoded, quantized = model.reconstruct(variables, images)
    h, evaluated = model.encode(variables, images)
    z = model.quantizer.embed(
        variables.params['quantizer'],
        variables.quantizer_state,
        quantized.codes,
    )
    return dict(
        variables=variables,
        evaluated=evaluated,
        trained=model.encode(variables, images, train=True)[1],
        decoded=decoded,
        codes=quantized.codes,
        codes_of_latents=model.quantize(variables, h)[0].codes,
        decoded_codes=model.decode(variables, z)[0],
    )

  images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3))
  return model, jax.device_get(run(images.astype(np.float32)))


@pytest.mark.parametrize('depth', [None, 2])
def test_reconstruct_is_encode_quantize_decode(depth):
  model, found = outputs(depth)
  chex.assert_shape(found['decoded'], (2, 8, 8, 3))
  chex.assert_shape(found['codes'], (2, 4, 4, *model.quantizer.code_shape))
  np.testing.assert_array_equal(found['codes'], found['codes_of_latents'])
  np.testing.assert_allclose(
      found['decoded'], found['decoded_codes'], atol=1e-5
  )


def test_training_moves_statistics_and_evaluation_does_not():
  _, found = outputs(None)
  before, after = (found[x].batch_stats for x in ('variables', 'trained'))
  assert not np.allclose(
      *(jax.tree.leaves(s['encoder'])[0] for s in (before, after))
  )
  chex.assert_trees_all_equal(before['decoder'], after['decoder'])
  chex.assert_trees_all_equal(found['variables'], found['evaluated'])


def test_bytes_are_converted_to_the_unit_interval():
  pixels = np.array([0, 51, 128, 255], np.uint8)
  units = np.asarray(jax.jit(autoencoder.to_unit)(pixels))
  assert units.dtype == np.float32
  np.testing.assert_allclose(units, [0, 0.2, 128 / 255, 1], rtol=1e-6)
