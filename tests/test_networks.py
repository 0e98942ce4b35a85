"""The encoder and the decoder."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import networks


@pytest.mark.parametrize('width', [8, 12])
@pytest.mark.parametrize('downsamplings', [0, 1, 2, 3])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_shapes(width, downsamplings, dtype):
  style = networks.Style(dtype=dtype)
  encoder = networks.Encoder(
      heads=(8, 3),
      width=width,
      num_blocks=1,
      num_downsamplings=downsamplings,
      style=style,
  )
  decoder = networks.Decoder(
      channels=3,
      width=width,
      num_blocks=1,
      num_upsamplings=downsamplings,
      style=style,
  )
  images = jnp.zeros((2, 16, 24, 3))
  h, variables = encoder.init_with_output(
      jax.random.key(0), images, train=False
  )
  size = (16 >> downsamplings, 24 >> downsamplings)
  chex.assert_shape(h, (2, *size, 11))
  decoded, _ = decoder.init_with_output(
      jax.random.key(0), h[..., :8], train=False
  )
  chex.assert_shape(decoded, images.shape)
  chex.assert_type([h, decoded, *jax.tree.leaves(variables)], jnp.float32)
  assert jnp.all((decoded >= 0) & (decoded <= 1))


def test_depth_to_space_moves_channels_to_their_pixel():
  x = jnp.arange(2 * 3 * 8).reshape(1, 2, 3, 8)
  y = networks.depth_to_space(x)
  chex.assert_shape(y, (1, 4, 6, 2))
  for i, j, di, dj in np.ndindex(2, 3, 2, 2):
    block = 2 * (2 * di + dj)
    np.testing.assert_array_equal(
        y[0, 2 * i + di, 2 * j + dj], x[0, i, j, block : block + 2]
    )


def test_without_batch_norm_there_are_no_statistics():
  encoder = networks.Encoder(
      heads=(8,), width=8, style=networks.Style(batch_norm=False)
  )
  variables = encoder.init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=True
  )
  assert set(variables) == {'params'}


def test_momentum_0_leaves_the_statistics_of_the_batch():
  style = networks.Style(momentum=0.0)
  layer = networks.ConvNorm(4, 3, style)
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  variables = layer.init(jax.random.key(1), x, True)
  trained, updated = layer.apply(variables, x, True, mutable=['batch_stats'])
  evaluated = layer.apply({**variables, **updated}, x, False)
  np.testing.assert_allclose(trained, evaluated, atol=1e-5)
  np.testing.assert_allclose(trained.mean((0, 1, 2)), 0, atol=1e-5)
