"""What the README says is true."""

import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np

README = pathlib.Path('README.md').read_text()
PROGRAMS = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)


def run(program):
  names = {}
  exec(program, names)
  return names


def test_the_model_runs():
  model = run(PROGRAMS[0])['Autoencoder']()
  x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)

  @jax.jit
  def init_and_apply():
    key, noise_key = jax.random.split(jax.random.key(0))
    return model.apply(
        model.init(key, x),
        x,
        temperature=1.0,
        train=True,
        rngs={'quantizer': noise_key},
    )

  y, quantized = init_and_apply()
  chex.assert_equal_shape([x, y])
  chex.assert_shape(quantized.codes, (5,))
  assert np.isfinite(quantized.loss)


def test_the_composition_is_what_it_says():
  quantizer = run(PROGRAMS[1])['quantizer']

  @jax.jit
  def init_and_apply():
    params, state = quantizer.init(jax.random.key(0))
    return quantizer.apply(params, state, jnp.ones((2, 3, 512)))[0]

  quantized = init_and_apply()
  chex.assert_shape(quantized.codes, (2, 3, 2, 8))
  chex.assert_shape(quantized.z, (2, 3, 512))
  assert np.all(np.isfinite(quantized.z))


def test_every_link_leads_somewhere():
  here = pathlib.Path()
  for page in [*here.glob('*.md'), *here.glob('docs/*.md')]:
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), f'{page}: {target}'
