"""Every pair and triple of wrappers, in every order, works or is refused.

By default a few triples around vqvae are compiled; all others are slow.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers

C, L, N = 16, 4, 24
BASES = {
    'vqvae': quantizers.vqvae(C, L),
    'vqvae_ema': quantizers.vqvae_ema(C, L),
    'gmvq': quantizers.gmvq(C, L, gamma=0.1, beta=1.0),
    'sqvae': quantizers.sqvae(C, L),
    'diveq': quantizers.diveq(C, L),
    'simvq': quantizers.simvq(C, L),
    'gumbel': quantizers.gumbel(C, L),
    'fsq': quantizers.fsq(C),
    'fsp': quantizers.fsp(C),
}
WRAPPERS = quantizers.WRAPPERS | {
    'replace': functools.partial(
        quantizers.with_replacement, replace_after=1, replace_noise=0.0
    ),
    'opt': functools.partial(
        quantizers.with_alternate_optimization, opt_learning_rate=0.1
    ),
}


def orders(base, lengths=(1, 2, 3)):
  """Returns the wrapped quantizers that exist, and the errors of the others."""
  made, refused = {}, {}
  for length in lengths:
    for names in itertools.permutations(WRAPPERS, length):
      quantizer = BASES[base]
      try:
        for name in names:
          quantizer = WRAPPERS[name](quantizer)
        made[names] = quantizer
      except ValueError as error:
        refused[names] = error
  return made, refused


@pytest.mark.parametrize('base', BASES)
def test_what_is_refused_is_refused_in_a_line(base):
  made, refused = orders(base)
  assert len(made) + len(refused) == 6 + 30 + 120
  for names, error in refused.items():
    line = str(error)
    assert line.isprintable() and line.partition(':')[0] in names, line
  for names in made:
    assert len(set(names)) == len(names)


@functools.cache
def observed(base, names):
  """Returns what one training step of a wrapped quantizer does."""
  quantizer = BASES[base]
  for name in names:
    quantizer = WRAPPERS[name](quantizer)

  @jax.jit
  def observe():
    params, state = quantizer.init(jax.random.key(0))
    h = jax.random.normal(jax.random.key(1), (N, sum(quantizer.heads)))

    def loss_of(params):
      quantized, after = quantizer.apply(
          params, state, h, key=jax.random.key(2), temperature=1.0, train=True
      )
      error = jnp.mean(jnp.square(quantized.z - h[:, : quantizer.heads[0]]))
      loss = quantizer.objective(error, quantized, data_shape=h.shape)
      return loss, (quantized, after)

    gradient, (trained, after) = jax.grad(loss_of, has_aux=True)(params)
    still, _ = quantizer.apply(params, after, h)
    seen = {
        'h': h[:, : quantizer.heads[0]],
        'gradient': gradient,
        'trained': trained,
        'still': still,
        'embedded': quantizer.embed(params, after, still.codes),
    }
    if quantizer.write is not None:
      rows = quantizer.read(params, state)
      written = quantizer.write(params, state, rows, jnp.ones(C, bool))
      seen |= {
          'before': rows,
          'after': quantizer.read(params, after),
          'unwritten': (params, state),
          'written': written,
          'read_again': quantizer.read(*written),
      }
    return seen

  return jax.device_get(observe())


def check(base, names):
  """Checks the contract of a wrapped quantizer."""
  seen = observed(base, names)
  case = ' + '.join((base, *names))
  for path, slope in jax.tree_util.tree_leaves_with_path(seen['gradient']):
    where = f'{case}: no gradient reaches {jax.tree_util.keystr(path)}'
    assert np.any(slope != 0), where
  np.testing.assert_allclose(
      seen['still'].z, seen['embedded'], atol=1e-6, err_msg=case
  )
  if 'before' not in seen:
    return
  np.testing.assert_allclose(
      seen['read_again'], seen['before'], rtol=1e-4, atol=1e-5, err_msg=case
  )
  for one, other in zip(
      jax.tree.leaves(seen['unwritten']),
      jax.tree.leaves(seen['written']),
      strict=True,
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=case)
  if 'frozen' in names:
    np.testing.assert_array_equal(seen['after'], seen['before'], case)
  elif 'replace' in names:
    unused = ~np.isin(np.arange(C), seen['trained'].codes)
    assert unused.any(), case
    latents = seen['h']
    if 'l2' in names:
      latents = latents / np.linalg.norm(latents, axis=-1, keepdims=True)
    rows = seen['after'][unused]
    distance = np.linalg.norm(rows[:, None] - latents, axis=-1).min(axis=1)
    np.testing.assert_allclose(distance, 0, atol=1e-4, err_msg=case)


# All pairs of wrappers are within some of these, in an order that is accepted.
COVERING = [
    ('opt', 'affine', 'rotation'),
    ('opt', 'affine', 'l2'),
    ('opt', 'replace', 'frozen'),
    ('affine', 'replace', 'frozen'),
    ('affine', 'l2', 'replace'),
    ('rotation', 'l2', 'replace'),
    ('rotation', 'l2', 'frozen'),
]


def test_the_representatives_cover_all_pairs():
  pairs = {frozenset(names) for names in orders('vqvae', (2,))[0]}
  covered = {
      frozenset(pair)
      for names in COVERING
      for pair in itertools.combinations(names, 2)
  }
  assert covered == pairs
  assert set(COVERING) <= set(orders('vqvae', (3,))[0])


@pytest.mark.parametrize('names', COVERING, ids='+'.join)
def test_representatives_keep_the_contract(names):
  check('vqvae', names)


@pytest.mark.slow
@pytest.mark.parametrize('base', BASES)
def test_pairs_keep_the_contract(base):
  for names in orders(base, (1, 2))[0]:
    check(base, names)


@pytest.mark.slow
@pytest.mark.parametrize('base', BASES)
def test_triples_keep_the_contract(base):
  for names in orders(base, (3,))[0]:
    check(base, names)
