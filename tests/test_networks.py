"""The encoder and the decoder."""

import re

import chex
import jax
from jax import ad_checkpoint
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


@pytest.mark.parametrize('network', ['encoder', 'decoder'])
def test_remat_is_exact_and_keeps_less(network, capsys):
  """The same variables, values and gradients, and fewer numbers kept."""
  x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
  results, kept = [], []
  for remat in (False, True):
    style = networks.Style(remat=remat)
    model = networks.Encoder((3,), width=8, style=style)
    if network == 'decoder':
      model = networks.Decoder(width=8, style=style)
    variables = model.init(jax.random.key(1), x, train=False)

    def loss(params, model=model, variables=variables):
      y, updated = model.apply(
          variables | {'params': params}, x, train=True, mutable=['batch_stats']
      )
      return jnp.sum(y**2), updated

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    results.append((variables, gradient(variables['params'])))
    ad_checkpoint.print_saved_residuals(
        lambda params, loss=loss: loss(params)[0], variables['params']
    )
    shapes = re.findall(r'^f32\[([\d,]+)\]', capsys.readouterr().out, re.M)
    kept.append(sum(np.prod([int(n) for n in s.split(',')]) for s in shapes))
  chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)
  assert kept[1] < 0.6 * kept[0]
