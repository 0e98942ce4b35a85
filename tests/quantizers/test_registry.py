"""Quantizers by name: what a name takes, and what no part of it has."""

import functools
import inspect

import compositions
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers

C, L = 16, 4
# Where a hyperparameter has no default.
GIVEN = dict(num_codes=C, dim=L, gamma=0.1, beta=0.5)
NAMES = [
    *quantizers.FACTORIES,
    *(f'vqvae+{name}' for name in quantizers.WRAPPERS),
]


def floats_of(name):
  """Returns the hyperparameters of a name that are floats, and values."""
  return {
      key: GIVEN.get(key, parameter.default)
      for key, parameter in quantizers.fields(name).items()
      if parameter.annotation is float
  }


def step_shapes(make, floats, *, with_gradient=False):
  """Traces `init` and a training step, the floats among the arguments."""

  def step(floats, key):
    quantizer = make(**floats)
    params, state = quantizer.init(key)
    h = jnp.ones((5, sum(quantizer.heads)))

    def loss(params, h):
      quantized, after = quantizer.apply(
          params, state, h, key=key, temperature=0.5, train=True
      )
      value = quantizer.objective(
          jnp.mean(quantized.z), quantized, data_shape=(5, 3)
      )
      return value, (quantized, after)

    if not with_gradient:
      return loss(params, h)
    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, h)

  return jax.eval_shape(step, floats, jax.random.key(0))


def test_there_are_floats_to_trace():
  with_floats = {name for name in NAMES if floats_of(name)}
  assert {'gmvq', 'vqvae+ema', 'sqvae', 'lfq', 'vqvae+opt'} <= with_floats
  assert set(floats_of('gmvq')) == {
      'gamma', 'beta', 'two_sigma2', 'weight_scale', 'sharpening', 'identity'
  }  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_hyperparameters_may_be_traced(name):
  """One program for all of their values: the trainer passes them so."""
  floats = floats_of(name)
  make = functools.partial(compositions.make, name, **GIVEN | floats)
  by_default = step_shapes(make, {})
  traced = jax.tree.map(jnp.float32, floats)
  assert step_shapes(make, traced) == by_default
  step_shapes(make, traced, with_gradient=True)


@pytest.mark.parametrize('name', [
    name for name in NAMES if 'assignment' in quantizers.fields(name)
])
def test_hyperparameters_may_be_traced_with_tiles(name):
  floats = floats_of(name)
  make = functools.partial(
      compositions.make, name, **GIVEN | floats, assignment='tiled'
  )
  step_shapes(make, jax.tree.map(jnp.float32, floats), with_gradient=True)


def test_a_hyperparameter_that_no_part_has_is_refused():
  """With the one that was meant, or with those there are."""
  make = functools.partial(quantizers.make, num_codes=C, dim=L)
  for name, typo, message in (
      ('vqvae+ema', 'comitment', "'comitment'; did you mean 'commitment'?"),
      ('vqvae', 'aplha', "vqvae: unexpected keyword 'aplha'; did you mean 'al"),
      ('vqvae+replace', 'replace_afer', "did you mean 'replace_after'?"),
      ('vqvae', 'commitment', 'there are num_codes, dim, alpha, beta'),
      ('vqvae', 'replace_after', "unexpected keyword 'replace_after'"),
      ('vqvae+l2', 'inner', "unexpected keyword 'inner'"),
  ):
    with pytest.raises(TypeError) as caught:
      make(name, **{typo: 1})
    line = str(caught.value)
    assert message in line and '\n' not in line


def test_fields_are_those_of_all_parts():
  fields = quantizers.fields('vqvae+l2+replace')
  assert set(fields) == {
      'num_codes', 'dim', 'alpha', 'beta', 'replace_after', 'replace_noise'
  }  # fmt: skip
  assert fields['replace_after'].default == 20
  assert fields['alpha'].annotation is float
  assert fields['dim'].default is inspect.Parameter.empty


@pytest.mark.parametrize('name', [
    'vqvae', 'fsq', 'gmvq', *NAMES[len(quantizers.FACTORIES) :],
    'vqvae+affine+rotation+l2+replace', 'gmvq+l2',
])  # fmt: skip
def test_a_keyword_that_apply_does_not_have_is_refused(name):
  """The one that was meant is named, and it is the outermost that speaks."""
  quantizer = compositions.make(name, **GIVEN)
  params, state = jax.eval_shape(quantizer.init, jax.random.key(0))
  h = np.ones((2, sum(quantizer.heads)), np.float32)
  outermost = quantizer.wrappers[-1] if quantizer.wrappers else name
  for typo, meant in (
      ('trian', 'train'), ('temprature', 'temperature'), ('axisname', 'axis_na')
  ):  # fmt: skip
    message = (
        f"{outermost}: apply: unexpected keyword '{typo}'; did you mean"
        f" '{meant}"
    )
    with pytest.raises(TypeError, match=message):
      jax.eval_shape(
          lambda *args, typo=typo: quantizer.apply(*args, **{typo: True}),
          params, state, h,
      )  # fmt: skip


@pytest.mark.parametrize('compose', [
    lambda inner: quantizers.residual(inner, 2),
    lambda inner: quantizers.grouped(inner, 2),
    lambda inner: quantizers.projected(inner, 7),
])
def test_a_composition_refuses_other_keywords_too(compose):
  quantizer = compose(quantizers.vqvae(C, L))
  with pytest.raises(TypeError, match="apply: .*; did you mean 'train'?"):
    quantizer.apply({}, {}, np.ones((2, sum(quantizer.heads))), trian=True)


def test_a_keyword_like_no_other_is_refused_with_those_there_are():
  apply = quantizers.fsq(C).apply
  with pytest.raises(TypeError, match='there are key, temperature, train, ma'):
    apply({}, {}, np.ones((2, 2), np.float32), zzz=True)


@pytest.mark.parametrize('make, message', [
    (lambda: quantizers.gmvq(8, 4, gamma=-1, beta=1), 'gamma=-1: must be at l'),
    (
        lambda: quantizers.gmvq(8, 4, gamma=1, beta=float('nan')),
        'beta=nan: must be at least 0',
    ),
    (
        lambda: quantizers.gmvq(8, 4, gamma=1, beta=1, two_sigma2=0),
        'two_sigma2=0: must be greater than 0',
    ),
    (
        lambda: quantizers.gmvq(8, 4, gamma=True, beta=1),
        'gamma=True: must be at least 0',
    ),
    (lambda: quantizers.gmvq(8.0, 4, gamma=1, beta=1), 'num_codes=8.0: must'),
    (lambda: quantizers.vqvae(8, 0), 'dim=0: must be an integer of at least'),
    (lambda: quantizers.vqvae(8, 4, beta=1.5), 'beta=1.5: must be from 0 to 1'),
    (
        lambda: quantizers.vqvae_ema(8, 4, decay=1.0),
        'decay=1.0: must be at least 0 and less than 1',
    ),
    (
        lambda: quantizers.with_replacement(
            quantizers.vqvae(8, 4), replace_after=0
        ),
        'replace: replace_after=0: must be an integer',
    ),
])
def test_a_hyperparameter_out_of_range_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_other_names_are_refused():
  with pytest.raises(ValueError, match="name='vq' is unknown; it must be one"):
    quantizers.make('vq')
  with pytest.raises(ValueError, match="did you mean 'gumbel'?"):
    quantizers.make('gumbl')
