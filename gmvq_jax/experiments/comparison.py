"""Many methods by one protocol: the table that ranks them at equal bits.

    python -m gmvq_jax.compare --config=configs/table1_cifar10.py \\
        --workdir=runs/table1 [--methods=gmvq,vqvae] [--seeds=0,1]

Every method is trained by the same code on the same network, schedule and data.
First the numbers of some are searched for, by as many trials for each, on the
validation split; what is not searched for stands at the literature's values.
The same command goes on with what is missing. In the work directory:

    results.json   a list `runs`, and `searches`
    table.md       the table; table.html, with pictures
    runs/METHOD/seed_S, search/METHOD/trial_K   work directories of runs
"""

import hashlib
import itertools
import pathlib
import random
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections import config_flags

from gmvq_jax.training import baselines
from gmvq_jax.training import command_line
from gmvq_jax.training import config as config_lib
from gmvq_jax import data
from gmvq_jax.runtime import errors
from gmvq_jax.experiments import records
from gmvq_jax.experiments import comparison_table
from gmvq_jax.training import trainer
from gmvq_jax.runtime import files


def compare(
    config: ConfigDict, workdir: str, command: str = ''
) -> dict[str, Any] | None:
  """Trains what is missing of a comparison and writes its tables.

  Args:
    config: that of a run, with a field `compare`; see
      configs/table1_cifar10.py.
    workdir: where it all goes.
    command: to be noted with each run.

  Returns:
    What `results.json` holds; None if a signal stopped it.

  Raises:
    errors.UserError: for what a user can get wrong.
  """
  path = files.create(workdir)
  plan, base = _divide(config)
  jobs = {method: _configure(base, method, {}) for method in plan.methods}
  for method_config in jobs.values():
    config_lib.validate(method_config)
  loaded = data.load(**base.data)
  searches, runs = {}, []
  for method in plan.methods:
    if method in plan.spaces and plan.trials:
      searches[method] = _search(jobs[method], method, plan, path, loaded)
      if searches[method] is None:
        return None
  total = len(plan.methods) * len(plan.seeds)
  for done, (method, seed) in enumerate(
      itertools.product(plan.methods, plan.seeds)
  ):
    print(f'[{done + 1}/{total}] {method}, seed {seed}', flush=True)
    fields = _best(searches[method]) if method in searches else {}
    record = records.run(
        _configure(jobs[method], None, fields | {'seed': seed}),
        path / 'runs' / method / f'seed_{seed}',
        loaded,
        {
            'method': method,
            'command': command,
            'searched': method in searches,
        },
    )
    if record is None:
      return None
    runs.append(record)
    results = {'runs': runs, 'searches': searches, 'anchors': None}
    results['anchors'] = baselines.of_config(jobs[plan.methods[0]], loaded[0])
    files.write_json(path / 'results.json', results)
    comparison_table.write(path, results)
  return results


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
    if len(set(plan[field])) < len(plan[field]) or not plan[field]:
      raise errors.UserError(
          f'config.compare.{field}={tuple(plan[field])}: must be different, and'
          ' at least one'
      )
  if plan.trials < 0 or plan.trial_steps < 1:
    raise errors.UserError(
        f'config.compare.trials={plan.trials}, trial_steps={plan.trial_steps}:'
        ' must be at least 0 and 1'
    )
  return plan, base


def _configure(base, method, fields):
  """Returns a configuration with a method and with other fields."""
  config = ConfigDict(base.to_dict())
  if method is not None:
    config.quantizer = config_lib.method_config(method)
    for size in ('num_codes', 'dim'):  # What gives all the same bits.
      if size in config.quantizer and size in base.quantizer:
        config.quantizer[size] = base.quantizer[size]
  config.update_from_flattened_dict(fields)
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
  digest = hashlib.sha256(method.encode()).digest()
  random.Random(digest).shuffle(grid)
  trials = []
  for index, fields in enumerate([defaults, *grid][: plan.trials]):
    print(f'[search] {method}, trial {index + 1}: {fields}', flush=True)
    trial = fields | {'num_steps': plan.trial_steps}
    mse = None
    try:
      validation = trainer.run(
          _configure(config, None, trial),
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


def _main(argv):
  if len(argv) > 1:
    raise errors.UserError(f'{argv[1]!r}: unexpected; flags begin with --')
  config = flags.FLAGS.config
  if config is None:
    raise errors.UserError(
        '--config is missing; such as --config=table1_cifar10'
    )
  if 'compare' in config:
    if flags.FLAGS.methods:
      config.compare.methods = tuple(flags.FLAGS.methods)
    if flags.FLAGS.seeds:
      if not all(seed.isdigit() for seed in flags.FLAGS.seeds):
        raise errors.UserError(
            f'--seeds={",".join(flags.FLAGS.seeds)}: must be numbers'
        )
      config.compare.seeds = tuple(map(int, flags.FLAGS.seeds))
  command = ' '.join(['python -m gmvq_jax.compare', *sys.argv[1:]])
  results = compare(config, flags.FLAGS.workdir, command)
  if results is not None:
    path = pathlib.Path(flags.FLAGS.workdir).expanduser().resolve()
    print((path / 'table.md').read_text())
    print(f'Table: {path / "table.html"}')


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config')
  flags.DEFINE_string('workdir', '', 'The directory of the comparison.')
  flags.DEFINE_list('methods', [], 'Only these.')
  flags.DEFINE_list('seeds', [], 'Instead of those of the configuration.')
  command_line.run(_main)
