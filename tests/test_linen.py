"""A quantizer inside somebody's Flax model, Linen or NNX."""

import chex
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmvq_jax
from gmvq_jax import quantizers


class Model(nn.Module):
  """The example of the README."""

  quantizer: gmvq_jax.Quantizer

  @nn.compact
  def __call__(self, x, *, temperature=None, train=False):
    h = nn.Dense(sum(self.quantizer.heads))(x)
    quantized = gmvq_jax.VectorQuantizer(self.quantizer)(
        h, temperature=temperature, train=train
    )
    return nn.Dense(x.shape[-1])(quantized.z), quantized


def test_vector_quantizer_trains_inside_a_flax_model(rng):
  model = Model(gmvq_jax.gmvq(8, 4, gamma=0.01, beta=2.0))
  centres = 3 * rng.normal(size=(8, 6))
  x = jnp.asarray(centres[rng.integers(0, 8, 256)], jnp.float32)
  variables = model.init(jax.random.key(0), x)
  params = variables['params']
  assert set(params['VectorQuantizer_0']['quantizer']) == {'codebook'}
  optimizer = optax.adam(3e-2)

  @jax.jit
  def step(params, opt_state, key):
    def loss_fn(params):
      y, quantized = model.apply(
          {'params': params},
          x,
          temperature=0.5,
          train=True,
          rngs={'quantizer': key},
      )
      return jnp.mean((y - x) ** 2) + quantized.loss

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss

  opt_state, losses = optimizer.init(params), []
  for key in jax.random.split(jax.random.key(1), 200):
    params, opt_state, loss = step(params, opt_state, key)
    losses.append(loss)
  assert losses[-1] < 0.3 * losses[0]
  y, quantized = model.apply({'params': params}, x)
  assert jnp.mean((y - x) ** 2) < 0.3 * jnp.var(x)
  assert len(np.unique(quantized.codes)) > 4


@pytest.mark.parametrize('name', ['gmvq', 'vqvae+ema', 'fsq'])
def test_vector_quantizer_embeds_its_codes(rng, name):
  """With params, with state, and with neither."""
  quantizer = quantizers.make(name, num_codes=8, dim=3, gamma=0.1, beta=1.0)
  module = gmvq_jax.VectorQuantizer(quantizer)
  h = jnp.asarray(rng.normal(size=(5, sum(quantizer.heads))), jnp.float32)
  variables = module.init(jax.random.key(0), h)
  quantized = module.apply(variables, h)
  z = module.apply(variables, quantized.codes, method='embed')
  np.testing.assert_array_equal(z, quantized.z)
  masked = module.apply(variables, h, mask=jnp.arange(5) < 3)
  np.testing.assert_array_equal(masked.codes[:3], quantized.codes[:3])
  np.testing.assert_array_equal(masked.codes[3:], -1)


def test_a_state_that_would_be_lost_is_refused(rng):
  h = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
  for name in ('vqvae+ema', 'vqvae+frozen', 'simvq'):
    module = gmvq_jax.VectorQuantizer(
        quantizers.make(name, num_codes=8, dim=3)
    )
    variables = module.init(jax.random.key(0), h)
    if name == 'vqvae+ema':
      with pytest.raises(ValueError, match="mutable=.'quantizer'., and keep"):
        module.apply(variables, h, train=True)
    else:  # It never changes.
      module.apply(variables, h, train=True)


@pytest.mark.parametrize('name', ['vqvae+replace', 'vqvae+ema+replace'])
def test_a_module_writes_what_is_to_be_finished(rng, name):
  quantizer = quantizers.make(name, num_codes=8, dim=3, replace_after=1)
  module = gmvq_jax.VectorQuantizer(quantizer)
  h = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
  variables = module.init(jax.random.key(0), h)
  quantized, updated = module.apply(
      variables,
      h,
      train=True,
      rngs={'quantizer': jax.random.key(1)},
      mutable=['quantizer'],
  )
  variables = {**variables, **updated}
  _, written = module.apply(
      variables, method='finish', mutable=['params', 'quantizer']
  )
  before, after = (
      module.apply(v, jnp.arange(8), method='embed')
      for v in (variables, written)
  )
  dead = ~np.isin(np.arange(8), quantized.codes)
  np.testing.assert_array_equal(jnp.any(before != after, axis=-1), dead)


@pytest.mark.parametrize('name', ['gmvq', 'fsq', 'vqvae+ema', 'vqvae+replace'])
def test_nnx_trains_it_through_the_bridge(rng, name):
  """Whatever is empty of params and state."""
  quantizer = quantizers.residual(
      quantizers.make(
          name, num_codes=8, dim=3, gamma=0.1, beta=1.0, replace_after=1
      ),
      2,
  )
  h = jnp.asarray(rng.normal(size=(5, sum(quantizer.heads))), jnp.float32)
  module = nnx.bridge.lazy_init(
      nnx.bridge.ToNNX(
          gmvq_jax.VectorQuantizer(quantizer),
          rngs=nnx.Rngs(0, quantizer=1),
      ),
      h,
  )

  @nnx.jit
  def gradient(module, h):
    def loss(module):
      quantized = module(
          h, temperature=1.0, train=True, mutable=['quantizer']
      )
      return quantized.loss, quantized

    return nnx.grad(loss, has_aux=True)(module)

  _, first = gradient(module, h)
  module(method='finish', mutable=['params', 'quantizer'])
  _, second = gradient(module, h)
  chex.assert_tree_all_finite((first, second))
  still = module(h)
  np.testing.assert_allclose(
      module(still.codes, method='embed'), still.z, atol=1e-6
  )
  if '+' in name:
    assert first.loss != second.loss
