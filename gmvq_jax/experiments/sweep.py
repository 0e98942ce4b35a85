"""Variants of one configuration, each by several seeds, on record.

The same command goes on with what is missing. In the work directory:

    runs/VARIANT/seed_S   work directories of runs
    NAME.json, NAME.svg   what `run` returns, and its figure
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import pathlib
import sys
from typing import Any
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict
from ml_collections import config_flags
import numpy as np

from gmvq_jax.training import command_line
from gmvq_jax.training import config as config_lib
from gmvq_jax import data
from gmvq_jax.runtime import errors
from gmvq_jax.experiments import records
from gmvq_jax.reporting import pages
from gmvq_jax.runtime import files

# By name, the fields in which a variant differs from the configuration.
Variants = Mapping[str, dict[str, Any]]
Results = dict[str, Any]


class Experiment(NamedTuple):
  """What is varied, and how it is shown.

  Attributes:
    name: of its files.
    variants: `() -> Variants`, called when flags are parsed.
    table: `(results) -> str`, in Markdown.
    figure: `(results) -> str`, an SVG.
  """

  name: str
  variants: Callable[[], Variants]
  table: Callable[[Results], str]
  figure: Callable[[Results], str]


def run(
    config: ConfigDict,
    variants: Variants,
    seeds: tuple[int, ...],
    workdir: str,
    *,
    command: str = '',
    each: Callable[[Results], None] = lambda results: None,
) -> Results | None:
  """Trains what is missing of a sweep.

  All seeds of a variant before the next.

  Args:
    config: what all variants share.
    variants: of it.
    seeds: of each.
    workdir: where the runs go.
    command: to be noted.
    each: called with the results after each run.

  Returns:
    `command`, `config`, and `runs`: a list of `variant`, `fields` and what is
    on record, less the configuration. None if a signal stopped it.

  Raises:
    errors.UserError: for what a user can get wrong, before anything is trained.
  """
  if len(set(seeds)) < len(seeds) or not seeds:
    raise errors.UserError(
        f'--seeds={",".join(map(str, seeds))}: must be different, and at least'
        ' one'
    )
  if config.quantizer.name != 'gmvq':
    raise errors.UserError(
        f'config.quantizer.name={config.quantizer.name}: must be gmvq, whose'
        ' variants these are'
    )
  configs = {name: _vary(config, fields) for name, fields in variants.items()}
  for varied in configs.values():
    config_lib.validate(varied)
  path = files.create(workdir)
  loaded = data.load(**config.data)
  results = {'command': command, 'config': records.plain(config), 'runs': []}
  jobs = list(itertools.product(variants, seeds))
  for done, (name, seed) in enumerate(jobs):
    print(f'[{done + 1}/{len(jobs)}] {name}, seed {seed}', flush=True)
    record = records.run(
        _vary(configs[name], {'seed': seed}),
        path / 'runs' / name / f'seed_{seed}',
        loaded,
        {},
    )
    if record is None:
      return None
    del record['config']
    results['runs'].append(
        {'variant': name, 'fields': variants[name]} | record
    )
    each(results)
  return results


def values_of(results: Results, metric: str) -> dict[str, dict[int, float]]:
  """Returns a metric of the runs that ended, by variant and by seed."""
  values = {record['variant']: {} for record in results['runs']}
  for record in results['runs']:
    if not record['failure']:
      values[record['variant']][record['seed']] = record['metrics'][metric]
  return values


def mean_and_all(values: Sequence[float]) -> str:
  """Returns a cell: the mean, and of several values in brackets each."""
  if not len(values):
    return 'diverged'
  shown = [pages.significant(value) for value in (np.mean(values), *values)]
  return f'{shown[0]} ({", ".join(shown[1:])})' if len(values) > 1 else shown[0]


def write(experiment: Experiment, results: Results, folder: str) -> None:
  """Writes results and their figure, each whole or not at all."""
  path = files.create(folder, 'output')
  files.write_json(path / f'{experiment.name}.json', results)
  figure = experiment.figure(results)
  files.write_bytes(path / f'{experiment.name}.svg', figure.encode())


def define_flags() -> None:
  """Defines the flags that every sweep has."""
  config_flags.DEFINE_config_file(
      'config', help_string='Of a run; its fields are those of all variants.'
  )
  flags.DEFINE_string('workdir', '', 'The directory of the runs.')
  flags.DEFINE_list('seeds', ['0', '1', '2', '3', '4'], 'Of each variant.')
  flags.DEFINE_string(
      'output', '', 'A folder for the results; by default the work directory.'
  )


def command(experiment: Experiment) -> None:
  """Runs an experiment as a program, once its flags are defined."""

  def main(argv):
    if len(argv) > 1:
      raise errors.UserError(f'{argv[1]!r}: unexpected; flags begin with --')
    config, seeds = flags.FLAGS.config, flags.FLAGS.seeds
    if config is None:
      raise errors.UserError('--config is missing; such as --config=cifar10')
    if not all(seed.isdigit() for seed in seeds):
      raise errors.UserError(f'--seeds={",".join(seeds)}: must be numbers')
    workdir = flags.FLAGS.workdir
    output = flags.FLAGS.output or workdir
    if flags.FLAGS.output:  # Not to be found out after hours.
      files.create(output, 'output')
    given = ' '.join(sys.argv[1:])
    results = run(
        config,
        experiment.variants(),
        tuple(map(int, seeds)),
        workdir,
        command=f'python -m gmvq_jax.experiments.{experiment.name} {given}',
        each=lambda results: write(experiment, results, workdir),
    )
    if results is not None:
      write(experiment, results, output)
      print(experiment.table(results))
      print(f'Figure: {pathlib.Path(output) / experiment.name}.svg')

  command_line.run(main)


def _vary(config, fields):
  varied = ConfigDict(config.to_dict())
  varied.update_from_flattened_dict(fields)
  return varied
