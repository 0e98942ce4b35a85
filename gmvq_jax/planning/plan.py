"""`--mode=plan`: does a run compile, does it fit, and what does it send?"""

import os
from typing import Any

import jax
from ml_collections import ConfigDict

from gmvq_jax.planning import compilation
from gmvq_jax.planning import largest_batch as largest_batch_lib
from gmvq_jax.planning import programs as programs_lib
from gmvq_jax.planning import topologies
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.training import config_checks
from gmvq_jax.training import summary

TRAIN_STEP = 'train step'


def plan(config: ConfigDict, topology: str, workdir: str) -> dict[str, Any]:
  """Compiles the programs of a configuration, and writes what is known of them.

  Nothing runs, and no accelerator is needed. The result is also in
  `plans/TOPOLOGY.json` of the work directory; the report of a run there shows
  it.

  Args:
    config: of the run.
    topology: see `topologies.find`.
    workdir: of the run; made if there is none.

  Returns:
    What the file holds: `programs`, by name the fields of
    `compilation.Compiled`; `largest_batch` of the train step; and what they are
    of.

  Raises:
    errors.UserError: for a configuration or a topology that is not valid, and,
      once the file is written, for a program that does not fit.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # Of the compilers.
  jax.config.update('jax_platforms', 'cpu')  # No accelerator is asked for.
  config_checks.validate(config)
  target = topologies.find(topology)
  shape = programs_lib.image_shape(config)
  count = len(target.devices)
  config_checks.validate_data(config, shape, _enough_images(config), count)
  mesh = distributed.mesh_of(target.devices)
  path = files.create(workdir) / summary.PLANS
  path.mkdir(exist_ok=True)

  result: dict[str, Any] = {
      'topology': topology,
      'devices': count,
      'device_kind': target.devices[0].device_kind,
      'memory': target.memory,
      'jax': jax.__version__,
      'quantizer': config.quantizer.name,
      'image_shape': list(shape),
  }
  _say(
      f'{count} x {result["device_kind"]}, {gib(target.memory)} of memory each.'
      f' Sizes are of one device; nothing runs (jax {jax.__version__}).'
  )
  _say(_COLUMNS.format('', *_HEADINGS))

  def compiled(name: str, program: programs_lib.Program) -> Any:
    known = compilation.compile_for(target, program)
    _say(_row(name, known, target.memory))
    return known

  found = {
      name: compiled(name, program)
      for name, program in programs_lib.of(config, shape, mesh).items()
  }
  result['programs'] = {name: known.to_json() for name, known in found.items()}
  for line in _collectives(found[TRAIN_STEP]):
    _say(line)
  result['largest_batch'] = largest_batch_lib.largest_batch(
      lambda size: compiled(
          f'{TRAIN_STEP}, {size}',
          programs_lib.train_step(config, shape, mesh, size),
      ),
      found[TRAIN_STEP],
      target.memory,
      count,
  )
  _say(f'Largest batch that fits: {result["largest_batch"]}.')
  name = topology.replace(':', '_')
  if distributed.is_first():
    files.write_json(path / f'{name}.json', result)
    _say(f'Written: {path / name}.json')
  for name, known in found.items():
    if not known.fits:
      raise errors.UserError(
          f'--topology={topology}: the {name} of {known.images} images does not'
          f' fit; it needs {gib(known.needed)} on each device, which has'
          f' {gib(target.memory)}; the largest batch_size that fits is'
          f' {result["largest_batch"]}'
      )
  return result


def _enough_images(config: ConfigDict) -> int:
  """Returns a size of the training split, which is not read, for any batch."""
  return max(
      config.batch_size,
      config.eval_batch_size,
      config.calibration_images,
      config.kmeans.images,
  )


_COLUMNS = '{:24}{:>9}{:>7}{:>11}{:>13}{:>10}{:>10}{:>9}{:>10}{:>10}'
_HEADINGS = (
    'images', 'fits', 'arguments', 'temporaries', 'needed', 'sent', 'Gflop',
    'estimate', 'compiled',
)  # fmt: skip


def _row(name: str, known: compilation.Compiled, memory: int) -> str:
  """Returns a line of the table."""
  if known.sizes is None:
    return (
        f'{name:24}{known.images:>9}{"no":>7}  needs {gib(known.needed)},'
        f' {gib(known.needed - memory)} too much'
    )
  estimate = known.estimated_seconds
  return _COLUMNS.format(
      name,
      known.images,
      'yes' if known.fits else 'no',
      gib(known.sizes['arguments']),
      gib(known.sizes['temporaries']),
      gib(known.needed),
      gib(sum(x.bytes for x in known.sent)),
      f'{known.flops / 1e9:.1f}' if known.flops else '-',
      f'{1e3 * estimate:.2f} ms' if estimate else '-',
      f'{known.compile_seconds:.0f} s',
  )


def _collectives(step: compilation.Compiled) -> list[str]:
  """Returns a line on each kind of collective, with the largest of it."""
  lines = []
  for kind in dict.fromkeys(x.kind for x in step.sent):
    group = [x for x in step.sent if x.kind == kind]
    largest = group[0].what.rpartition('train_step)/')[2] or 'of no name'
    lines.append(
        f'Each train step sends {sum(x.bytes for x in group):,} bytes by'
        f' {sum(x.times for x in group)} {kind}; the largest is'
        f' {group[0].bytes:,} bytes: {largest}'
    )
  return lines or ['The train step sends nothing.']


def gib(count: int) -> str:
  """Formats bytes, in GiB or in MiB."""
  size = count / 2**20
  return f'{size:.1f} MiB' if size < 1024 else f'{size / 1024:.1f} GiB'


def _say(line: str) -> None:
  if distributed.is_first():
    print(line, flush=True)
