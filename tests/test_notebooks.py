"""The notebooks of docs/: they run, and say what they are kept as saying."""

import ast
import json
import pathlib
import re
import sys
import types

import nbformat
import pytest

FOLDER = pathlib.Path('docs/notebooks')
sys.path.insert(0, str(FOLDER))

import execute  # noqa: E402  (from that folder)

MONTE_CARLO = 0.01  # Relative, of an error over 2^14 points: two sigma.
LARGEST = 600_000  # Bytes.


@pytest.fixture(params=execute.NAMES)
def kept(request):
  """The committed notebooks."""
  path = FOLDER / f'{request.param}.ipynb'
  return path, nbformat.read(path, as_version=4)


def test_they_use_what_the_package_has(kept):
  """Imports run, and attributes of modules exist; by default nothing else."""
  _, notebook = kept
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  lines = '\n'.join(cell.source for cell in cells).splitlines()
  source = '\n'.join(x for x in lines if not x.startswith('%'))  # Magic.
  nodes = list(ast.walk(ast.parse(source)))
  imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
  names = {}
  exec('\n'.join(map(ast.unparse, imports)), names)
  assert any(name.startswith('gmvq') for name in names)
  for node in nodes:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      value = names.get(node.value.id)
      if isinstance(value, types.ModuleType):
        assert hasattr(value, node.attr), f'{node.value.id}.{node.attr}'


@pytest.mark.slow
def test_collapse_is_seen_and_avoided(tmp_path):
  execute.execute('collapse', tmp_path, GMVQ_NOTEBOOK_STEPS='250')
  found = json.loads((tmp_path / 'results' / 'collapse.json').read_text())
  check_collapse(found, steps=250)
  assert (tmp_path / 'docs' / 'collapse.gif').stat().st_size > 10_000


def test_the_numbers_that_are_kept():
  found = json.loads(pathlib.Path('results/collapse.json').read_text())
  check_collapse(found, steps=1000)
  used = {
      name: numbers['codes_in_use']
      for name, numbers in found['methods'].items()
  }
  assert max(used['gmvq, β = 0, sharp start']) < 60
  assert min(used['gmvq, β = 100, sharp start']) == 64
  assert max(used['vqvae+ema, moved']) < 10 < min(used['vqvae+ema'])
  assert pathlib.Path('docs/collapse.gif').stat().st_size < 700_000


def check_collapse(found, steps):
  assert found['steps'] == steps
  methods = found['methods']
  for numbers in [*methods.values(), *found['by_heap'].values()]:
    assert min(numbers['error_over_bound']) >= 1 - MONTE_CARLO
  assert 1 - MONTE_CARLO < found['kmeans_error_over_bound'] < 1.1
  for name in ('gmvq, β = 1', 'gmvq, β = 10'):
    assert min(methods[name]['codes_in_use']) > 55
    assert max(methods[name]['error_over_bound']) < 2.5
  assert max(methods['vqvae']['codes_in_use']) < 25
  assert min(methods['vqvae']['error_over_bound']) > 2.5


@pytest.mark.slow
def test_a_tokenizer_is_trained(tmp_path):
  execute.execute('tokenizer', tmp_path, GMVQ_NOTEBOOK_STEPS='60')
  path = tmp_path / 'docs' / 'notebooks' / 'tokenizer.json'
  found = json.loads(path.read_text())
  assert found['mse'] < found['variance'] / 2
  assert 1 < found['perplexity'] <= found['codes_in_use'] <= 128
  assert 0 < found['entropy_bits'] < 7
  # The edit is of position (3, 3); nothing far from it changes.
  assert [3, 3] in found['codes_changed']
  assert all(
      abs(i - 3) <= 4 and abs(j - 3) <= 4 for i, j in found['codes_changed']
  )


def test_they_are_kept_whole_and_hold_nothing_of_a_machine(kept):
  path, notebook = kept
  text = path.read_text()
  assert len(text) < LARGEST
  outside = re.sub(r'"image/png": "[^"]*"', '', text)
  assert not re.search(r'/(home|root|tmp|usr|work|Users)\b|0x[0-9a-f]{6,}|\\x1b'
                       r'|\\u001b|file:|https?://(?!doi\.org)', outside)
  assert notebook.metadata == {
      'kernelspec': {
          'display_name': 'Python 3', 'language': 'python', 'name': 'python3'
      },
      'language_info': {'name': 'python'},
  }
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in cells] == list(
      range(1, len(cells) + 1)
  )
  outputs = [output for cell in cells for output in cell.outputs]
  assert any('image/png' in output.get('data', {}) for output in outputs)
  for output in outputs:
    assert output.output_type in ('stream', 'display_data'), output
    assert output.get('name') != 'stderr'
