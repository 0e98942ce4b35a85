"""The rooms of the package, and which may import which."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'gmvq_jax'
# Each room imports only rooms below it. `data` and `reporting` stand beside
# each other on `runtime`; the mathematics of `ops` stands on nothing of ours.
BELOW = {
    'ops': set(),
    'runtime': set(),
    'quantizers': {'ops'},
    'nn': {'ops', 'quantizers', 'runtime'},
    'data': {'runtime'},
    'reporting': {'runtime'},
    'training': {'ops', 'quantizers', 'nn', 'data', 'reporting', 'runtime'},
}
BELOW['tokenizer'] = {*BELOW['training'], 'training'}
BELOW['experiments'] = {*BELOW['tokenizer'], 'tokenizer'}
BELOW['planning'] = {*BELOW['tokenizer'], 'tokenizer'}


def imported_rooms(path):
  """Yields the rooms that a file imports from."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    for name in names:
      package, _, rest = name.partition('.')
      if package == 'gmvq_jax':
        yield rest.partition('.')[0]


@pytest.mark.parametrize('room', BELOW)
def test_a_room_imports_only_rooms_below_it(room):
  allowed = {room, *BELOW[room]}
  for path in (PACKAGE / room).rglob('*.py'):
    wrong = set(imported_rooms(path)) - allowed
    assert not wrong, f'{path.relative_to(PACKAGE)} imports {wrong}'


def test_there_are_few_modules_outside_of_the_rooms():
  modules = {path.stem for path in PACKAGE.glob('*.py')}
  assert modules == {'__init__', 'main', 'commands', 'compare', 'anchors'}
  rooms = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
  assert rooms == set(BELOW)


def test_each_room_says_why_it_exists():
  for path in PACKAGE.rglob('__init__.py'):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, path
