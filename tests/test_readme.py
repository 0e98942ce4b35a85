"""What the README says is true."""

import pathlib
import re

import chex
import jax
import jax.numpy as jnp

README = pathlib.Path('README.md').read_text()


def test_the_example_runs():
  (program,) = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
  names = {}
  exec(program, names)
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


def test_every_link_leads_somewhere():
  here = pathlib.Path()
  for page in [*here.glob('*.md'), *here.glob('docs/*.md')]:
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), f'{page}: {target}'
