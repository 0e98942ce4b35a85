"""`--mode=plan`: does a run compile, does it fit, and what does it send?"""

from collections.abc import Callable
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from gmvq_jax.planning import hlo
from gmvq_jax.planning import programs as programs_lib
from gmvq_jax.planning import topologies
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import files
from gmvq_jax.training import config_checks

FOLDER = 'plans'

# No data set is asked how large it is: this is more than any.
_MANY_IMAGES = 2**27
# The largest batch is known to one part in so many.
_PRECISION = 16
_NO_MEMORY = 'RESOURCE_EXHAUSTED'


def plan(
    config: ConfigDict, topology: str, workdir: str
) -> dict[str, Any]:
  """Compiles the programs of a configuration, and writes what is known of them.

  Nothing runs. `plans/TOPOLOGY.json` in the work directory holds the result;
  the report of the run shows it.

  Args:
    config: of the run.
    topology: see `topologies.find`.
    workdir: of the run; made if there is none.

  Raises:
    errors.UserError: for a configuration or a topology that does not fit.
  """
  jax.config.update('jax_platforms', 'cpu')  # No accelerator is asked for.
  config_checks.validate(config)
  target = topologies.find(topology)
  shape = programs_lib.image_shape(config)
  count = len(target.devices)
  config_checks.validate_data(config, shape, _MANY_IMAGES, count)
  mesh = distributed.mesh_of(target.devices)
  path = files.expand(workdir) / FOLDER
  path.mkdir(parents=True, exist_ok=True)

  result = {
      'topology': topology,
      'devices': count,
      'device_kind': target.devices[0].device_kind,
      'memory': target.memory,
      'jax': jax.__version__,
      'quantizer': config.quantizer.name,
      'image_shape': list(shape),
      'programs': {},
  }
  _say(_header(result))
  for name, program in programs_lib.of(config, shape, mesh).items():
    compiled = _compile(program, target)
    result['programs'][name] = compiled
    _say(_row(name, compiled))
  result['largest_batch'] = _largest_batch(
      lambda size: _compile(
          programs_lib.train_step(config, shape, mesh, size), target
      ),
      result['programs']['train step'],
      count,
  )
  for line in _sent(result['programs']['train step']):
    _say(line)
  _say(f'Largest batch of the train step that fits: {result["largest_batch"]}')
  files.write_json(path / f'{topology.replace(":", "_")}.json', result)
  return result


def _compile(
    program: programs_lib.Program, target: topologies.Topology
) -> dict[str, Any]:
  """Returns what is known of a program once it is compiled."""
  lowered = program.lower()
  start = time.monotonic()
  try:
    compiled = lowered.compile(compiler_options=dict(target.compiler_options))
  except jax.errors.JaxRuntimeError as error:
    if _NO_MEMORY not in str(error):
      raise
    return {
        'images': program.images,
        'fits': False,
        'error': _shortage(str(error)),
        'compile_seconds': time.monotonic() - start,
    }
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  sizes = {
      'arguments': memory.argument_size_in_bytes,
      'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
      'temporaries': memory.temp_size_in_bytes,
      'code': memory.generated_code_size_in_bytes,
  }
  text = compiled.as_text()
  cost = compiled.cost_analysis() or {}
  cycles = hlo.cycles(text)
  return {
      'images': program.images,
      'fits': sum(sizes.values()) <= target.memory,
      'bytes': sizes | {'all': sum(sizes.values())},
      'flops': cost.get('flops'),
      'estimated_cycles': cycles,
      'estimated_seconds': cycles / target.clock_hz
      if cycles and target.clock_hz
      else None,
      'sent': [x._asdict() for x in hlo.collectives(text)],
      'compile_seconds': seconds,
  }


def _largest_batch(
    compile_with: Callable[[int], dict[str, Any]],
    first: dict[str, Any],
    devices: int,
) -> int:
  """Returns the largest batch that fits, to one part in 16; 0 if none does.

  Args:
    compile_with: compiles the train step of so many images.
    first: the step of the configured batch.
    devices: of which batches are multiples.
  """

  def fits(size: int) -> bool:
    known = compile_with(size)
    _say(_row(f'train step of {size}', known))
    return known['fits']

  low = first['images'] if first['fits'] else 0
  high = None if first['fits'] else first['images']
  while high is None:
    if fits(2 * low):
      low *= 2
    else:
      high = 2 * low
  while high - low > max(high // _PRECISION, devices):
    middle = max((low + high) // 2 // devices, 1) * devices
    if fits(middle):
      low = middle
    else:
      high = middle
  return low


def _shortage(error: str) -> str:
  """Returns what a compiler says that a program takes and there is."""
  used = re.search(r'Used ([\d.]+\w) of ([\d.]+\w)', error)
  if used:
    return f'takes {used[1]}, there is {used[2]}'
  return error.partition('\n')[0][:200]


def _header(result: dict[str, Any]) -> str:
  size = result['memory'] / 2**30
  return (
      f'{result["devices"]} x {result["device_kind"]}, {size:.1f} GiB each;'
      f' nothing runs, all is from the compiler (jax {result["jax"]}).\n'
      + _COLUMNS.format(
          '', 'images', 'fits', 'arguments', 'temporaries', 'code', 'all',
          'sent', 'Gflop', 'estimate', 'compiled in',
      )  # fmt: skip
  )


_COLUMNS = '{:24}{:>8}{:>6}{:>11}{:>13}{:>9}{:>11}{:>10}{:>9}{:>10}{:>13}'


def _row(name: str, known: dict[str, Any]) -> str:
  """Returns a line of the table, bytes in MiB."""
  seconds = f'{known["compile_seconds"]:.0f} s'
  if 'bytes' not in known:
    return f'{name:24}{known["images"]:>8}{"no":>6}  {known["error"]}'
  sizes = known['bytes']
  sent = sum(x['bytes'] for x in known['sent'])
  flops, estimate = known['flops'], known['estimated_seconds']
  return _COLUMNS.format(
      name,
      known['images'],
      'yes' if known['fits'] else 'no',
      *(_mib(sizes[x]) for x in ('arguments', 'temporaries', 'code', 'all')),
      _mib(sent),
      f'{flops / 1e9:.1f}' if flops and flops > 0 else '-',
      f'{1e3 * estimate:.2f} ms' if estimate else '-',
      seconds,
  )


def _sent(known: dict[str, Any]) -> list[str]:
  """Returns lines on what each kind of collective sends."""
  if 'sent' not in known:
    return []
  kinds: dict[str, list[dict[str, Any]]] = {}
  for collective in known['sent']:
    kinds.setdefault(collective['kind'], []).append(collective)
  lines = []
  for kind, group in kinds.items():
    total = sum(x['bytes'] for x in group)
    times = sum(x['times'] for x in group)
    what = group[0]['what'].rpartition('train_step)/')[2]
    lines.append(
        f'Each train step sends {total:,} bytes a device by {times} x {kind};'
        f' the largest, {group[0]["bytes"]:,}, for {what or "?"}'
    )
  return lines or ['A train step sends nothing.']


def _mib(count: int) -> str:
  return f'{count / 2**20:.1f} M' if count < 2**30 else f'{count / 2**30:.2f} G'


def _say(line: str) -> None:
  if distributed.is_first():
    print(line, flush=True)
