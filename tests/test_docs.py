"""What the pages of docs/ say is true: programs run, tables are complete."""

import inspect
import os
import pathlib
import re

import jax
import pytest

from gmvq_jax import quantizers

DOCS = pathlib.Path('docs')
PAGES = ('index', 'quantizers', 'training', 'faq', 'migration', 'derivation')


# What they compute is asserted, so that shapes alone do not do.
WITH_VALUES = ('derivation', 'migration')


@pytest.mark.parametrize('page', PAGES)
def test_programs_run(page):
  """By default most are traced only, which finds all but wrong values."""
  text = (DOCS / f'{page}.md').read_text()
  programs = re.findall(r'```python\n(.*?)```', text, flags=re.DOTALL)
  assert programs
  if 'import torch' in text:
    pytest.importorskip('vector_quantize_pytorch')

  def run():
    names = {}
    for program in programs:
      exec(program, names)

  if page in WITH_VALUES or os.environ.get('GMVQ_JAX_TESTS') == 'all':
    run()
  else:
    jax.eval_shape(run)


def test_the_tables_have_every_quantizer():
  text = (DOCS / 'quantizers.md').read_text()
  for name, factory in quantizers.FACTORIES.items():
    assert f'| `{name}` | `{factory.__name__}(' in text, name
  for name, wrapper in quantizers.WRAPPERS.items():
    assert f'| `+{name}` | `{wrapper.__name__}` |' in text, name


@pytest.mark.parametrize('title, name', [
    ('VectorQuantize', 'VectorQuantize'),
    ('ResidualVQ', 'ResidualVQ'),
    ('GroupedResidualVQ', 'GroupedResidualVQ'),
])
def test_the_migration_page_has_every_option(title, name):
  theirs = getattr(pytest.importorskip('vector_quantize_pytorch'), name)
  text = (DOCS / 'migration.md').read_text()
  (section,) = re.findall(
      rf'^### `{title}`\n(.*?)(?=^##)', text, flags=re.DOTALL | re.MULTILINE
  )
  named = set(re.findall(r'`(\w+)`', ' '.join(
      line.split(' | ')[0] for line in section.splitlines()
  )))  # fmt: skip
  options = {
      option
      for function in (theirs.__init__, theirs.forward)
      for option, parameter in inspect.signature(function).parameters.items()
      if option not in ('self', 'x') and parameter.kind != parameter.VAR_KEYWORD
  }
  assert not options - named
