"""What a compiled program says of itself in XLA's text form."""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

_KINDS = (
    'all-reduce', 'all-gather', 'all-to-all', 'collective-broadcast',
    'collective-permute', 'ragged-all-to-all', 'reduce-scatter',
)  # fmt: skip
# The compiler writes about 2^63 for what it cannot estimate.
_MOST_CYCLES = 2**60
_BITS = {'pred': 8, 'token': 0, 'bf16': 16}


class Collective(NamedTuple):
  """Arrays that devices exchange.

  Attributes:
    kind: such as `all-reduce`.
    bytes: of the arrays on each device, all times they are sent.
    times: how often.
    what: the operation of the program that it was made for. Where the compiler
      has joined several, one of them.
  """

  kind: str
  bytes: int
  times: int
  what: str


class _Instruction(NamedTuple):
  """A line of a computation."""

  type: str
  opcode: str
  rest: str


_LINE = re.compile(r'\s+(?:ROOT )?(%?[\w.-]+) = (.*)')
_HEADER = re.compile(r'(ENTRY )?(%?[\w.-]+) \(.*\{$')
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')
_CALLED = re.compile(
    r'(?:body|calls|to_apply|true_computation|false_computation)=(%?[\w.-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


def collectives(text: str) -> list[Collective]:
  """Returns what a program sends, the most bytes first."""
  found = []
  for times, instruction in _executed(text):
    kind = instruction.opcode.removesuffix('-start')
    if kind in _KINDS:
      size = _bytes(instruction, kind)
      what = re.search('op_name="([^"]*)"', instruction.rest)
      found.append(
          Collective(kind, times * size, times, what[1] if what else '')
      )
  return sorted(found, key=lambda x: -x.bytes)


def cycles(text: str) -> int | None:
  """Returns the sum of the cycles that a TPU's compiler expects of operations.

  None where it says nothing of them, or does not know them for one of them.
  What overlaps is counted twice.
  """
  total = 0
  for times, instruction in _executed(text):
    expected = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
    found = int(expected[1]) if expected else 0
    if found > _MOST_CYCLES:
      return None
    total += times * found
  return total or None


def _executed(text: str) -> Iterator[tuple[int, _Instruction]]:
  """Yields how often, and each instruction that is not inside a fusion."""
  computations, entry = _computations(text)
  todo = [(1, entry)]
  while todo:
    times, name = todo.pop()
    for instruction in computations.get(name, {}).values():
      yield times, instruction
      if instruction.opcode == 'fusion':
        continue
      inside = times
      if instruction.opcode == 'while':
        inside *= _trips(computations, instruction)
      called = _CALLED.findall(instruction.rest)
      for names in _BRANCHES.findall(instruction.rest):
        called += [x.strip() for x in names.split(',')]
      if instruction.opcode in ('while', 'conditional', 'call') or (
          instruction.opcode.endswith('-start')
      ):
        todo += [(inside, name) for name in called]


def _computations(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
  """Returns the instructions of each computation, and the first one's name."""
  computations: dict[str, dict[str, _Instruction]] = {}
  entry, name = '', ''
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      name = header[2]
      computations[name] = {}
      entry = name if header[1] else entry
      continue
    match = _LINE.match(line)
    if match and name:
      computations[name][match[1]] = _instruction(match[2])
  return computations, entry


def _instruction(text: str) -> _Instruction:
  end = _end_of_type(text)
  opcode, _, rest = text[end + 1 :].partition('(')
  return _Instruction(text[:end], opcode.strip(), rest)


def _end_of_type(text: str) -> int:
  """Returns where a type ends: a tuple in parentheses, or one word."""
  if not text.startswith('('):
    return text.find(' ')
  depth = 0
  for index, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return index + 1
  return len(text)


def _trips(
    computations: dict[str, dict[str, _Instruction]], loop: _Instruction
) -> int:
  """Returns how often a loop runs, at least: 1 where it does not say so."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
  if known:
    return int(known[1])
  condition = re.search(r'condition=(%?[\w.-]+)', loop.rest)
  inside = computations.get(condition[1], {}) if condition else {}
  limits = [
      int(x.rest.partition(')')[0])
      for x in inside.values()
      if x.opcode == 'constant' and re.match(r'\d+\)', x.rest)
  ]
  return max(limits, default=1)


def _bytes(instruction: _Instruction, kind: str) -> int:
  """Returns the bytes of what a collective sends or gets, the larger."""
  sizes = [
      math.prod(int(d) for d in dims.split(',') if d) * _bits(dtype) // 8
      for dtype, dims in _ARRAY.findall(instruction.type)
  ]
  if instruction.opcode.endswith('-start') and kind != 'all-reduce':
    return max(sizes, default=0)  # Of operands and results.
  if kind == 'reduce-scatter':
    groups = re.search(r'replica_groups=\{\{([\d,]*)\}', instruction.rest)
    whole = re.search(r'replica_groups=\[\d+,(\d+)\]', instruction.rest)
    if groups:
      return sum(sizes) * len(groups[1].split(','))
    if whole:
      return sum(sizes) * int(whole[1])
  return sum(sizes)


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  size = re.search(r'\d+', dtype)
  return max(int(size[0]), 8) if size else 0
