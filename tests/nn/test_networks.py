"""The encoder and the decoder."""

import functools
import re

import chex
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax.nn import networks


@pytest.mark.parametrize('width', [8, 12])
@pytest.mark.parametrize('downsamplings', [0, 1, 2, 3])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_shapes_and_types(width, downsamplings, dtype):
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

  def output(network, x):
    return network.init_with_output(jax.random.key(0), x, train=False)

  images = jax.ShapeDtypeStruct((2, 16, 24, 3), jnp.float32)
  h, variables = jax.eval_shape(functools.partial(output, encoder), images)
  size = (16 >> downsamplings, 24 >> downsamplings)
  assert h.shape == (2, *size, 11)
  z = jax.ShapeDtypeStruct((2, *size, 8), jnp.float32)
  decoded, others = jax.eval_shape(functools.partial(output, decoder), z)
  assert decoded.shape == images.shape
  for x in [h, decoded, *jax.tree.leaves((variables, others))]:
    assert x.dtype == jnp.float32


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_decoded_pixels_are_between_0_and_1(rng, dtype):
  style = networks.Style(dtype=dtype)
  decoder = networks.Decoder(width=8, num_blocks=0, style=style)

  @jax.jit
  def decode(z):
    return decoder.init_with_output(jax.random.key(0), z, train=False)[0]

  decoded = np.asarray(decode(100 * rng.normal(size=(2, 4, 4, 8))))
  assert np.all((decoded >= 0) & (decoded <= 1))
  assert decoded.min() < 0.01 and decoded.max() > 0.99


def test_depth_to_space_moves_channels_to_their_pixel():
  x = np.arange(2 * 3 * 8).reshape(1, 2, 3, 8)
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
  variables = jax.eval_shape(
      lambda: encoder.init(
          jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=True
      )
  )
  assert set(variables) == {'params'}


def test_momentum_0_leaves_the_statistics_of_the_batch(rng):
  style = networks.Style(momentum=0.0)
  layer = networks.ConvNorm(4, 3, style)

  @jax.jit
  def apply(x):
    variables = layer.init(jax.random.key(1), x, True)
    trained, updated = layer.apply(variables, x, True, mutable=['batch_stats'])
    return trained, layer.apply({**variables, **updated}, x, False)

  x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  trained, evaluated = jax.device_get(apply(x))
  np.testing.assert_allclose(trained, evaluated, atol=1e-5)
  np.testing.assert_allclose(trained.mean((0, 1, 2)), 0, atol=1e-5)


def loss(model, params, others, x):
  y, updated = model.apply(
      {'params': params, **others}, x, train=True, mutable=['batch_stats']
  )
  return jnp.sum(y**2), updated


def init(model, x):
  """Returns parameters, and other variables."""
  variables = dict(model.init(jax.random.key(1), x, train=False))
  return variables.pop('params'), variables


NETWORKS = {
    'encoder': functools.partial(networks.Encoder, (3,), width=8),
    'decoder': functools.partial(networks.Decoder, width=8),
}


@pytest.mark.parametrize('network', NETWORKS)
def test_remat_is_exact(rng, network):
  """The same variables, values and gradients."""
  small = {'encoder': {'num_downsamplings': 1}, 'decoder': {}}[network]
  x = rng.uniform(size=(2, 8, 8, 3)).astype(np.float32)
  results = []
  for remat in (False, True):
    model = NETWORKS[network](
        num_blocks=1, style=networks.Style(remat=remat), **small
    )

    variables = jax.jit(functools.partial(init, model))(x)
    gradient = jax.value_and_grad(functools.partial(loss, model), has_aux=True)
    result = jax.jit(gradient)(*variables, x)
    results.append(jax.device_get((variables, result)))
  chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('network', NETWORKS)
def test_remat_keeps_fewer_numbers(network, capsys):
  kept = []
  x = np.zeros((2, 16, 16, 3), np.float32)
  for remat in (False, True):
    model = NETWORKS[network](style=networks.Style(remat=remat))
    params, others = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(functools.partial(init, model), x),
    )
    ad_checkpoint.print_saved_residuals(
        lambda p, model=model, others=others: loss(model, p, others, x)[0],
        params,
    )
    shapes = re.findall(r'^f32\[([\d,]+)\]', capsys.readouterr().out, re.M)
    kept.append(sum(np.prod([int(n) for n in s.split(',')]) for s in shapes))
  assert kept[1] < 0.6 * kept[0]
