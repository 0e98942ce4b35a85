"""Moments of replaced codewords against `finish` and a reset by hand."""

import functools

import chex
from compiled import call
from compiled import init
import compositions
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmvq_jax
from gmvq_jax import quantizers

C, L, STEPS = 12, 3, 5
REPLACING = {
    **{
        name: compositions.make(name, num_codes=C, dim=L, replace_after=2)
        for name in (
            'vqvae+replace', 'vqvae+l2+replace', 'vqvae+affine+replace'
        )
    },
    'residual vqvae+replace': quantizers.residual(
        compositions.make(
            'vqvae+replace', num_codes=C, dim=L, replace_after=2
        ),
        2,
    ),
}
PATH = ('model', 'quantizer')


def around(params):
  """Returns the parameters of a model that the quantizer is a part of."""
  return {'model': {'quantizer': params, 'encoder': jnp.ones(L)}}


def batches(rng, count=STEPS):
  """Three latents a step, so that most codes are never chosen."""
  return rng.normal(size=(count, 3, L)).astype(np.float32)


def gradient_of(quantizer, params, state, h, seed):
  """Returns the gradient to the model, and the state after the step."""

  def loss(params):
    quantized, after = quantizer.apply(
        params['model']['quantizer'],
        state,
        h * params['model']['encoder'],
        key=jax.random.key(seed),
        train=True,
    )
    return jnp.mean(jnp.square(quantized.z - 1)) + quantized.loss, after

  return jax.grad(loss, has_aux=True)(params)


def moments_of(opt_state):
  """Returns the first and the second moments of Adam, alone or in a chain."""
  adam = optax.tree.get_all_with_path(opt_state, 'mu')[0][1]
  return adam, optax.tree.get_all_with_path(opt_state, 'nu')[0][1]


def run_wrapped(quantizer, inner, params, state, h):
  """Returns, of each step: the codebook as parameters, moments, counts."""
  tx = gmvq_jax.optimizer(inner, quantizer, path=PATH)

  def step(carry, x):
    params, state, opt_state = carry
    gradient, state = gradient_of(quantizer, params, state, *x)
    updates, opt_state = tx.update(
        gradient, opt_state, params, quantizer_state=state
    )
    params = optax.apply_updates(params, updates)
    seen, *_ = quantizer.finish(params['model']['quantizer'], state)
    model = around(seen)['model'] | {'encoder': params['model']['encoder']}
    return (params, state, opt_state), (model, moments_of(opt_state.inner))

  carry = (params, state, tx.init(params))
  return jax.lax.scan(step, carry, (h, jnp.arange(len(h))))[1]


def run_by_hand(quantizer, inner, params, state, h, *, reset=True):
  """The same with `finish` in each step, and what is fresh reset by hand."""

  def zero(tree, fresh):
    return jax.tree.map(lambda x, f: jnp.where(f > 0, 0, x), tree, fresh)

  def step(carry, x):
    params, state, opt_state = carry
    gradient, state = gradient_of(quantizer, params, state, *x)
    updates, opt_state = inner.update(gradient, opt_state, params)
    finished, state, fresh = quantizer.finish(
        params['model']['quantizer'], state
    )
    fresh = {'model': {'quantizer': fresh, 'encoder': 0}}
    if reset:
      updates = zero(updates, fresh)
      opt_state = optax.tree.map_params(
          inner, lambda m, f: jnp.where(f > 0, 0, m), opt_state, fresh
      )
    params = around(finished)['model'] | {
        'encoder': params['model']['encoder']
    }
    params = optax.apply_updates({'model': params}, updates)
    seen = (params['model'], moments_of(opt_state))
    return (params, state, opt_state), (*seen, fresh['model']['quantizer'])

  carry = (params, state, inner.init(params))
  return jax.lax.scan(step, carry, (h, jnp.arange(len(h))))[1]


@pytest.mark.parametrize('name', REPLACING)
def test_it_is_finish_and_a_reset_by_hand(rng, name):
  """Codewords and moments of every step; behind clipping, too."""
  quantizer = REPLACING[name]
  inner = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))

  def run(params, state, h):
    arguments = (quantizer, inner, around(params), state, h)
    return run_wrapped(*arguments), run_by_hand(*arguments)

  wrapped, by_hand = call(run, *init(quantizer), batches(rng))
  *by_hand, fresh = by_hand
  counts = max(jax.tree.leaves(fresh), key=np.size)
  assert np.any(counts > 0) and np.any(counts == 0)
  chex.assert_trees_all_close(wrapped, tuple(by_hand), rtol=1e-4, atol=1e-7)


def test_moments_of_replaced_codewords_are_0_and_no_others(rng):
  """And so is their update, after the step whose gradient was of another."""
  quantizer = REPLACING['vqvae+replace']
  inner = optax.adam(1e-2)
  tx = gmvq_jax.optimizer(inner, quantizer)

  def run(params, state, h):
    gradient = jax.tree.map(jnp.ones_like, params)
    opt_state, plain = tx.init(params), inner.init(params)
    steps = []
    for seed in range(3):
      before = state['replaced']
      quantized, state = quantizer.apply(
          params, state, h, key=jax.random.key(seed), train=True
      )
      updates, opt_state = tx.update(
          gradient, opt_state, params, quantizer_state=state
      )
      plain_updates, plain = inner.update(gradient, plain, params)
      steps.append({
          'replaced': state['replaced'] > before,
          'update': updates['codebook'],
          'plain update': plain_updates['codebook'],
          'moments': [x['codebook'] for x in moments_of(opt_state.inner)],
          'plain': [x['codebook'] for x in moments_of(plain)],
      })
    return steps

  first, second, third = call(run, *init(quantizer), batches(rng, 1)[0])
  for step in (first, third):  # Codes are replaced after two steps unused.
    assert not step['replaced'].any()
    assert np.all(step['update'] != 0)
  np.testing.assert_allclose(first['update'], first['plain update'], rtol=1e-6)
  chex.assert_trees_all_close(first['moments'], first['plain'], rtol=1e-6)
  replaced = second['replaced']
  assert 0 < replaced.sum() < C
  np.testing.assert_array_equal(second['update'][replaced], 0)
  np.testing.assert_allclose(
      second['update'][~replaced], second['plain update'][~replaced], rtol=1e-6
  )
  for moments, plain in zip(second['moments'], second['plain'], strict=True):
    np.testing.assert_array_equal(moments[replaced], 0)
    np.testing.assert_allclose(moments[~replaced], plain[~replaced], rtol=1e-6)
  for moments, anew, plain in zip(
      third['moments'], first['moments'], third['plain'], strict=True
  ):
    np.testing.assert_allclose(moments[replaced], anew[replaced], rtol=1e-6)
    np.testing.assert_allclose(moments[~replaced], plain[~replaced], rtol=1e-6)


def test_finish_in_between_resets_nothing_again(rng):
  """The count that starts at 0 again is no replacement."""
  quantizer = REPLACING['vqvae+replace']
  tx = gmvq_jax.optimizer(optax.sgd(1.0, momentum=0.9), quantizer)

  def run(params, state, h):
    gradient = jax.tree.map(jnp.ones_like, params)
    opt_state = tx.init(params)
    for seed in range(2):
      _, state = quantizer.apply(
          params, state, h, key=jax.random.key(seed), train=True
      )
      _, opt_state = tx.update(
          gradient, opt_state, params, quantizer_state=state
      )
    params, after, fresh = quantizer.finish(params, state)
    updates, _ = tx.update(gradient, opt_state, params, quantizer_state=after)
    return fresh, updates

  fresh, updates = call(run, *init(quantizer), batches(rng, 1)[0])
  assert np.any(fresh['codebook'])
  assert np.all(updates['codebook'] != 0)


@pytest.mark.parametrize('name', ['vqvae', 'vqvae+ema+replace', 'gmvq'])
def test_without_replaced_parameters_it_changes_nothing(rng, name):
  """Nor where what is replaced is state, which has no moments."""
  quantizer = compositions.make(
      name, num_codes=C, dim=L, gamma=0.1, beta=1.0, replace_after=1
  )
  inner = optax.adamw(1e-2)
  tx = gmvq_jax.optimizer(inner, quantizer, path=PATH)

  def run(params, state, h):
    params = around(params)
    gradient = jax.tree.map(jnp.cos, params)
    states = [x.init(params) for x in (inner, tx)]
    results = []
    for seed in range(2):
      _, state = quantizer.apply(
          params['model']['quantizer'],
          state,
          h,
          key=jax.random.key(seed),
          temperature=1.0,
          train=True,
      )
      updates, states[0] = inner.update(gradient, states[0], params)
      wrapped, states[1] = tx.update(
          gradient, states[1], params, quantizer_state=state
      )
      results.append((updates, wrapped))
    return results, states

  h = rng.normal(size=(3, sum(quantizer.heads))).astype(np.float32)
  results, (plain, wrapped) = call(run, *init(quantizer), h)
  for updates, of_wrapped in results:
    chex.assert_trees_all_close(updates, of_wrapped, rtol=1e-6)
  chex.assert_trees_all_close(plain, wrapped.inner, rtol=1e-6)


def test_its_update_needs_the_state_of_the_quantizer():
  quantizer = REPLACING['vqvae+replace']
  params = {'codebook': np.ones((C, L), np.float32)}
  tx = gmvq_jax.optimizer(optax.sgd(0.1), quantizer)
  opt_state = jax.eval_shape(tx.init, params)
  with pytest.raises(TypeError, match='quantizer_state'):
    tx.update(params, opt_state, params)


@pytest.mark.parametrize('path, message', [
    (('quantiser',), r"no 'quantiser' in the parameters at \(\), which have m"),
    (('model', 'typo'), r"no 'typo' in .* \('model',\), which have quantizer"),
    (('model',), r"leads to .'quantizer'..'codebook'.; those of"),
])
def test_a_path_to_nothing_or_other_parameters_is_refused(path, message):
  quantizer = REPLACING['vqvae+replace']
  tx = gmvq_jax.optimizer(optax.sgd(0.1), quantizer, path=path)
  params = {'model': {'quantizer': {'codebook': np.ones((C, L))}}}
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(tx.init, params)


def test_other_arguments_reach_the_wrapped_optimiser():
  quantizer = quantizers.vqvae(C, L)
  given = {}

  def update(updates, state, params=None, **extra_args):
    del params
    given.update(extra_args)
    return updates, state

  inner = optax.GradientTransformationExtraArgs(
      lambda params: optax.EmptyState(), update
  )
  tx = gmvq_jax.optimizer(inner, quantizer)
  params = {'codebook': np.ones((C, L), np.float32)}
  jax.eval_shape(
      functools.partial(tx.update, quantizer_state={}, value=3),
      params,
      tx.init(params),
      params,
  )
  assert given == {'value': 3}
