"""A quantizer inside somebody's Flax model, Linen or NNX."""

import chex
from compiled import call
import compositions
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
  x = centres[rng.integers(0, 8, 256)].astype(np.float32)
  variables = call(model.init, jax.random.key(0), x)
  assert set(variables['params']['VectorQuantizer_0']['quantizer']) == {
      'codebook'
  }
  optimizer = optax.adam(3e-2)

  def fit(params, x, keys):
    def step(carry, key):
      params, opt_state = carry

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
      return (optax.apply_updates(params, updates), opt_state), loss

    (params, _), losses = jax.lax.scan(
        step, (params, optimizer.init(params)), keys
    )
    return losses, model.apply({'params': params}, x)

  keys = jax.random.split(jax.random.key(1), 200)
  losses, (y, quantized) = call(fit, variables['params'], x, keys)
  assert losses[-1] < 0.3 * losses[0]
  assert np.mean((y - x) ** 2) < 0.3 * np.var(x)
  assert len(np.unique(quantized.codes)) > 4


@pytest.mark.parametrize('name', ['gmvq', 'vqvae+ema', 'fsq'])
def test_vector_quantizer_embeds_its_codes(rng, name):
  """With params, with state, and with neither."""
  quantizer = compositions.make(name, num_codes=8, dim=3, gamma=0.1, beta=1.0)
  module = gmvq_jax.VectorQuantizer(quantizer)
  h = rng.normal(size=(5, sum(quantizer.heads))).astype(np.float32)
  variables = call(module.init, jax.random.key(0), h)

  def run(variables, h):
    quantized = module.apply(variables, h)
    masked = module.apply(variables, h, mask=np.arange(5) < 3)
    return quantized, masked

  def embed(variables, codes):
    return module.apply(variables, codes, method='embed')

  quantized, masked = call(run, variables, h)
  z = call(embed, variables, quantized.codes)
  np.testing.assert_array_equal(z, quantized.z)
  np.testing.assert_array_equal(masked.codes[:3], quantized.codes[:3])
  np.testing.assert_array_equal(masked.codes[3:], -1)


@pytest.mark.parametrize('name', ['vqvae+ema', 'vqvae+frozen', 'simvq'])
def test_a_state_that_would_be_lost_is_refused(name):
  h = np.zeros((5, 3), np.float32)
  module = gmvq_jax.VectorQuantizer(quantizers.make(name, num_codes=8, dim=3))

  def run(key, h):
    variables = module.init(key, h)
    return module.apply(variables, h, train=True)

  if name == 'vqvae+ema':
    with pytest.raises(ValueError, match="mutable=.'quantizer'., and keep"):
      jax.eval_shape(run, jax.random.key(0), h)
  else:  # It never changes.
    jax.eval_shape(run, jax.random.key(0), h)


@pytest.mark.parametrize('name', ['vqvae', 'vqvae+ema'])
def test_a_module_replaces_by_itself_and_can_be_finished(rng, name):
  """What it embeds is the same before `finish` and after."""
  h = rng.normal(size=(2, 3)).astype(np.float32)

  def train(name, h):
    quantizer = compositions.make(name, num_codes=8, dim=3, replace_after=1)
    module = gmvq_jax.VectorQuantizer(quantizer)
    variables = module.init(jax.random.key(0), h)
    quantized, updated = module.apply(
        variables,
        h,
        train=True,
        rngs={'quantizer': jax.random.key(1)},
        mutable=['quantizer'],
    )
    return module, quantized, {**variables, **updated}

  def run(h):
    plain, _, without = train(name, h)
    module, quantized, variables = train(f'{name}+replace', h)
    fresh, written = module.apply(
        variables, method='finish', mutable=['params', 'quantizer']
    )
    embedded = [
        of.apply(v, jnp.arange(8), method='embed')
        for of, v in ((plain, without), (module, variables), (module, written))
    ]
    return quantized, embedded, fresh, written

  quantized, (without, replaced, finished), fresh, written = call(run, h)
  dead = ~np.isin(np.arange(8), quantized.codes)
  np.testing.assert_array_equal(np.any(replaced != without, axis=-1), dead)
  np.testing.assert_array_equal(finished, replaced)
  if name == 'vqvae':
    codebook = written['params']['quantizer']['codebook']
    np.testing.assert_array_equal(codebook, replaced)
    np.testing.assert_array_equal(fresh['codebook'][:, 0], dead)


def test_the_optimizer_of_a_model_forgets_replaced_codewords(rng):
  """By the path to the module's parameters; moments are 1 before the step."""
  quantizer = compositions.make(
      'vqvae+replace', num_codes=8, dim=3, replace_after=1
  )
  model = Model(quantizer)
  optimizer = gmvq_jax.optimizer(
      optax.adam(1e-2), quantizer, path=('VectorQuantizer_0', 'quantizer')
  )
  x = rng.normal(size=(2, 6)).astype(np.float32)

  def run(x):
    params, state = (
        model.init(jax.random.key(0), x)[name]
        for name in ('params', 'quantizer')
    )

    def loss_fn(params):
      (y, quantized), updated = model.apply(
          {'params': params, 'quantizer': state},
          x,
          train=True,
          rngs={'quantizer': jax.random.key(1)},
          mutable=['quantizer'],
      )
      loss = jnp.mean((y - x) ** 2) + quantized.loss
      return loss, (quantized.codes, updated['quantizer'])

    grads, (codes, state) = jax.grad(loss_fn, has_aux=True)(params)
    before = optimizer.init(params)
    before = before._replace(inner=jax.tree.map(jnp.ones_like, before.inner))
    _, after = optimizer.update(
        grads,
        before,
        params,
        quantizer_state=state['VectorQuantizer_0']['state'],
    )
    return codes, optax.tree.get(after, 'mu')

  codes, moments = call(run, x)
  dead = ~np.isin(np.arange(8), codes)
  codebook = moments['VectorQuantizer_0']['quantizer']['codebook']
  np.testing.assert_array_equal(np.all(codebook == 0, axis=-1), dead)
  for layer in ('Dense_0', 'Dense_1'):
    assert np.all(moments[layer]['bias'] != 0)


@pytest.mark.parametrize('name', ['gmvq', 'fsq', 'vqvae+ema', 'vqvae+replace'])
def test_nnx_trains_it_through_the_bridge(rng, name):
  """Also where params or state are empty."""
  quantizer = quantizers.residual(
      compositions.make(
          name, num_codes=8, dim=3, gamma=0.1, beta=1.0, replace_after=1
      ),
      2,
  )
  h = rng.normal(size=(5, sum(quantizer.heads))).astype(np.float32)
  module = nnx.bridge.lazy_init(
      nnx.bridge.ToNNX(
          gmvq_jax.VectorQuantizer(quantizer),
          rngs=nnx.Rngs(0, quantizer=1),
      ),
      h,
  )

  def gradient(module, h):
    def loss(module):
      quantized = module(
          h, temperature=1.0, train=True, mutable=['quantizer']
      )
      return quantized.loss, quantized

    return nnx.grad(loss, has_aux=True)(module)

  @nnx.jit
  def run(module, h):
    first = gradient(module, h)
    module(method='finish', mutable=['params', 'quantizer'])
    second = gradient(module, h)
    evaluated = module(h)
    return first, second, evaluated, module(evaluated.codes, method='embed')

  (slope, first), (other_slope, second), evaluated, embedded = jax.device_get(
      run(module, h)
  )
  chex.assert_tree_all_finite((slope, first, other_slope, second))
  np.testing.assert_allclose(embedded, evaluated.z, atol=1e-6)
  if '+' in name:
    assert first.loss != second.loss
