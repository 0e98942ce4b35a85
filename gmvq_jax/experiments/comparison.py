"""Variants of one configuration, each by several seeds, on record.

`compare` compares methods, after a search for their numbers; `sweep` compares
values of fields. The same command goes on with what is missing. The work
directory holds

    runs/VARIANT/seed_S       work directories of runs
    search/VARIANT/trial_K    those of the search
    results.json              the results of `compare`, and its table
    NAME.json, NAME.svg       the results of a sweep, and its figure

Results are a dict:
- `command` and `config`: what was called, and what all variants share;
- `runs`: for each its `variant`, `fields` (in which it differs from `config`)
  and what `records.run` returns, less the configuration;
- of `compare` also `searches`, the trials of each variant, and `anchors`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import pathlib
import random
import sys
from typing import Any
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict
from ml_collections import config_flags
import numpy as np

from gmvq_jax import data
from gmvq_jax.experiments import comparison_table
from gmvq_jax.experiments import records
from gmvq_jax.reporting import pages
from gmvq_jax.runtime import digests
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.training import baselines
from gmvq_jax.training import command_line
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import config_checks
from gmvq_jax.training import trainer

# By name, the fields in which a variant differs from the configuration.
Variants = Mapping[str, dict[str, Any]]
Results = dict[str, Any]


class Experiment(NamedTuple):
  """A sweep: what is varied, and how it is shown.

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


def sweep(
    config: ConfigDict,
    variants: Variants,
    seeds: tuple[int, ...],
    workdir: str,
    *,
    command: str = '',
    each: Callable[[Results], None] = lambda results: None,
) -> Results | None:
  """Trains what is missing of a sweep of GM-VQ.

  Args:
    config: what all variants share.
    variants: of it.
    seeds: of each.
    workdir: where the runs go.
    command: to be noted.
    each: called with the results after each run.

  Returns:
    The results. None if a signal stopped it.

  Raises:
    errors.UserError: for what a user can get wrong, before anything is trained.
  """
  _check_seeds('--seeds', seeds)
  if config.quantizer.name != 'gmvq':
    raise errors.UserError(
        f'config.quantizer.name={config.quantizer.name}: must be gmvq, whose'
        ' variants these are, such as --config=cifar10:gmvq'
    )
  configs = {name: _vary(config, fields) for name, fields in variants.items()}
  for varied in configs.values():
    config_checks.validate(varied)
  path = files.create(workdir)
  results = _results(command, config)
  loaded = data.load(**config.data)
  done = _train(results, configs, variants, seeds, path, loaded, each)
  return results if done else None


def compare(
    config: ConfigDict, workdir: str, command: str = ''
) -> Results | None:
  """Trains what is missing of a comparison and writes its tables.

  Every method is trained by the same code on the same network, schedule and
  data. Methods with a search space are tuned first on the validation split,
  each with the same number of trials. The others use values of the literature.

  Args:
    config: that of a run, with a field `compare`; see
      configs/table1_cifar10.py.
    workdir: where it all goes.
    command: to be noted.

  Returns:
    The results; None if a signal stopped it.

  Raises:
    errors.UserError: for what a user can get wrong.
  """
  path = files.create(workdir)
  plan, base = _divide(config)
  configs = {method: _with_method(base, method) for method in plan.methods}
  for method_config in configs.values():
    config_checks.validate(method_config)
  loaded = data.load(**base.data)
  results = _results(command, base)
  del results['config']['quantizer']
  results |= {'searches': {}, 'anchors': None}
  for method in plan.methods:
    if method in plan.spaces and plan.trials:
      trials = _search(configs[method], method, plan, path, loaded)
      if trials is None:
        return None
      results['searches'][method] = trials
      configs[method] = _vary(configs[method], _best(trials))
  variants = {
      method: {
          f'quantizer.{name}': value
          for name, value in config_lib.flatten(method_config.quantizer).items()
      }
      | (_best(results['searches'].get(method, [])))
      for method, method_config in configs.items()
  }

  def write(results):
    results['anchors'] = baselines.of_config(
        configs[plan.methods[0]], loaded[0]
    )
    files.write_json(path / 'results.json', results)
    comparison_table.write(path, results)

  done = _train(results, configs, variants, plan.seeds, path, loaded, write)
  return results if done else None


def values_of(results: Results, metric: str) -> dict[str, dict[int, float]]:
  """Returns a metric of the runs that ended, by variant and by seed."""
  values: dict[str, dict[int, float]] = {
      record['variant']: {} for record in results['runs']
  }
  for record in results['runs']:
    if not record['failure']:
      values[record['variant']][record['seed']] = record['metrics'][metric]
  return values


def mean_and_all(values: Sequence[float] | np.ndarray) -> str:
  """Returns a cell: the mean, and of several values in brackets each."""
  if not len(values):
    return 'diverged'
  shown = [pages.significant(x) for x in (float(np.mean(values)), *values)]
  return f'{shown[0]} ({", ".join(shown[1:])})' if len(values) > 1 else shown[0]


def write(experiment: Experiment, results: Results, folder: str) -> None:
  """Writes results and their figure, each whole or not at all."""
  path = files.create(folder, 'output')
  files.write_json(path / f'{experiment.name}.json', results)
  figure = experiment.figure(results)
  files.write_bytes(path / f'{experiment.name}.svg', figure.encode())


def _results(command, config):
  return {'command': command, 'config': records.plain(config), 'runs': []}


def _train(results, configs, variants, seeds, path, loaded, each):
  """Adds all runs to the results; returns whether no signal stopped it."""
  jobs = list(itertools.product(variants, seeds))
  for done, (name, seed) in enumerate(jobs):
    print(f'[{done + 1}/{len(jobs)}] {name}, seed {seed}', flush=True)
    record = records.run(
        _vary(configs[name], {'seed': seed}),
        path / 'runs' / name / f'seed_{seed}',
        loaded,
    )
    if record is None:
      return False
    del record['config']
    results['runs'].append(
        {'variant': name, 'fields': variants[name]} | record
    )
    each(results)
  return True


def _check_seeds(name, seeds):
  if len(set(seeds)) < len(seeds) or not seeds:
    raise errors.UserError(
        f'{name}={",".join(map(str, seeds))}: must be different, and at least'
        ' one'
    )


def _divide(config):
  """Returns the field `compare`, and the configuration without it."""
  if 'compare' not in config:
    raise errors.UserError(
        'config.compare is missing; give a configuration of a comparison, such'
        ' as configs/table1_cifar10.py'
    )
  fields = config.to_dict()
  plan = ConfigDict(fields.pop('compare'))
  base = ConfigDict(fields)
  for method in plan.methods:
    try:
      config_lib.method_config(method)
    except errors.UserError as error:
      raise errors.UserError(f'--methods: {error}') from error
  for field in ('methods', 'seeds'):
    _check_seeds(f'config.compare.{field}', plan[field])
  if plan.trials < 0 or plan.trial_steps < 1:
    raise errors.UserError(
        f'config.compare.trials={plan.trials}, trial_steps={plan.trial_steps}:'
        ' must be at least 0 and 1'
    )
  return plan, base


def _vary(config, fields):
  """Returns a configuration with other fields."""
  varied = ConfigDict(config.to_dict())
  varied.update_from_flattened_dict(fields)
  return varied


def _with_method(base, method):
  """Returns a configuration with a method, at the same bits."""
  config = ConfigDict(base.to_dict())
  config.quantizer = config_lib.method_config(method)
  for size in ('num_codes', 'dim'):
    if size in config.quantizer and size in base.quantizer:
      config.quantizer[size] = base.quantizer[size]
  return config


def _search(config, method, plan, path, loaded):
  """Returns every trial's fields and its validation MSE."""
  space = config_lib.flatten(plan.spaces[method])
  known = config_lib.flatten(config)
  for field in space:
    if not isinstance(known.get(field), float):
      raise errors.UserError(
          f'config.compare.spaces.{method}.{field}: is no number of this'
          ' method; give one, such as learning_rate or quantizer.beta'
      )
  grid = [dict(zip(space, v, strict=True)) for v in
          itertools.product(*space.values())]
  defaults = {field: known[field] for field in space}
  grid = [fields for fields in grid if fields != defaults]
  seed = bytes.fromhex(digests.sha256(method))
  random.Random(seed).shuffle(grid)
  trials = []
  for index, fields in enumerate([defaults, *grid][: plan.trials]):
    print(f'[search] {method}, trial {index + 1}: {fields}', flush=True)
    mse = None
    try:
      validation = trainer.run(
          _vary(config, fields | {'num_steps': plan.trial_steps}),
          str(path / 'search' / method / f'trial_{index}'),
          loaded=loaded,
          test=False,
      )
      if validation is None:
        return None
      mse = validation['mse']
    except errors.DivergedError as error:
      print(error, flush=True)
    trials.append({'fields': fields, 'mse': mse, 'steps': plan.trial_steps})
  return trials


def _best(trials):
  """Returns the fields of the lowest validation MSE."""
  finite = [trial for trial in trials if trial['mse'] is not None]
  return min(finite, key=lambda t: t['mse'])['fields'] if finite else {}


# The programs.


def define_flags(seeds: list[str], config: str) -> None:
  """Defines the flags that every comparison has.

  Args:
    seeds: the default; none: those of the configuration.
    config: what the configuration is, for the help.
  """
  config_flags.DEFINE_config_file('config', help_string=config)
  flags.DEFINE_string('workdir', '', 'The directory of the runs.')
  flags.DEFINE_list('seeds', seeds, 'Of each variant.')


def _arguments(argv, example):
  """Returns the configuration and the seeds, checked."""
  if len(argv) > 1:
    raise errors.UserError(f'{argv[1]!r}: unexpected; flags begin with --')
  config, seeds = flags.FLAGS.config, flags.FLAGS.seeds
  if config is None:
    raise errors.UserError(
        f'--config is missing; such as --config={example}'
    )
  if not all(seed.isdigit() for seed in seeds):
    raise errors.UserError(f'--seeds={",".join(seeds)}: must be numbers')
  return config, tuple(map(int, seeds))


def run_sweep(experiment: Experiment) -> None:
  """Runs a sweep as a program, once the flags of its own are defined."""
  define_flags(['0', '1', '2', '3', '4'], 'Of a run; all variants share it.')
  flags.DEFINE_string(
      'output', '', 'A folder for the results; by default the work directory.'
  )

  def main(argv):
    config, seeds = _arguments(argv, 'cifar10')
    workdir = flags.FLAGS.workdir
    output = flags.FLAGS.output or workdir
    if flags.FLAGS.output:  # Not to be found out after hours.
      files.create(output, 'output')
    given = ' '.join(sys.argv[1:])
    results = sweep(
        config,
        experiment.variants(),
        seeds,
        workdir,
        command=f'python -m gmvq_jax.experiments.{experiment.name} {given}',
        each=lambda results: write(experiment, results, workdir),
    )
    if results is not None:
      write(experiment, results, output)
      print(experiment.table(results))
      print(f'Figure: {pathlib.Path(output) / experiment.name}.svg')

  command_line.run(main)


def run_comparison() -> None:
  """Runs `compare` as a program."""
  define_flags([], 'Of a comparison, such as table1_cifar10.')
  flags.DEFINE_list('methods', [], 'Only these.')

  def main(argv):
    config, seeds = _arguments(argv, 'table1_cifar10')
    if 'compare' in config:
      if flags.FLAGS.methods:
        config.compare.methods = tuple(flags.FLAGS.methods)
      if seeds:
        config.compare.seeds = seeds
    command = ' '.join(['python -m gmvq_jax.compare', *sys.argv[1:]])
    results = compare(config, flags.FLAGS.workdir, command)
    if results is not None:
      path = pathlib.Path(flags.FLAGS.workdir).expanduser().resolve()
      print((path / 'table.md').read_text())
      print(f'Table: {path / "table.html"}')

  command_line.run(main)
