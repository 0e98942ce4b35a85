"""What the README says is true."""

import pathlib
import re

import chex
import jax
import jax.numpy as jnp

README = pathlib.Path('README.md').read_text()
PROGRAMS = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)


def run(program):
  names = {}
  exec(program, names)
  return names


def test_the_model_runs():
  names = run(PROGRAMS[0])
  model = names['Autoencoder']()
  x = jax.random.normal(jax.random.key(0), (5, 7))
  variables = model.init(jax.random.key(1), x)
  y, quantized = model.apply(
      variables,
      x,
      temperature=1.0,
      train=True,
      rngs={'quantizer': jax.random.key(2)},
  )
  chex.assert_equal_shape([x, y])
  chex.assert_shape(quantized.codes, (5,))
  assert jnp.isfinite(quantized.loss)


def test_the_composition_is_what_it_says():
  quantizer = run(PROGRAMS[1])['quantizer']
  params, state = quantizer.init(jax.random.key(0))
  quantized, _ = quantizer.apply(params, state, jnp.ones((2, 3, 512)))
  chex.assert_shape(quantized.codes, (2, 3, 2, 8))
  chex.assert_shape(quantized.z, (2, 3, 512))


def test_every_link_leads_somewhere():
  here = pathlib.Path()
  for page in [*here.glob('*.md'), *here.glob('docs/*.md')]:
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), f'{page}: {target}'
