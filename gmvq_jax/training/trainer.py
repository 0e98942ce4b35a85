"""A run: from a configuration to a work directory with a trained model."""

import contextlib
import logging
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gmvq_jax import data
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.runtime import progress
from gmvq_jax.training import checkpoint
from gmvq_jax.training import config_checks
from gmvq_jax.training import experiment as experiment_lib
from gmvq_jax.training import loop
from gmvq_jax.training import metric_writer
from gmvq_jax.training import summary as summary_lib

_LOGGER = logging.getLogger(__name__)


def run(
    config: ConfigDict,
    workdir: str,
    *,
    loaded: tuple[data.Splits, bool] | None = None,
    test: bool = True,
) -> dict[str, Any] | None:
  """Trains, or continues to train, and evaluates.

  The run continues from the newest checkpoint in `workdir`, exactly: what comes
  out is what would have without the interruption, bit for bit on the same
  machine.

  Args:
    config: of `config.default_config`.
    workdir: where the run lives; see `runtime/files.py`.
    loaded: what `data.load` has returned for `config.data`, if it has.
    test: whether to evaluate the test split at the end, and to report.

  Returns:
    The summary, as `summary.json` holds it, or without the test split the
    metrics of the best validation; None if a signal stopped the run.

  Raises:
    errors.UserError: for what a user can get wrong, and when the loss is not
      finite.
  """
  first = distributed.from_first
  path = pathlib.Path(first(lambda: str(files.create(workdir))))
  config_checks.validate(config)
  with contextlib.ExitStack() as stack:
    first(lambda: stack.enter_context(files.lock(path)))
    checkpoints = checkpoint.Checkpoints(path)
    stored = first(lambda: files.read_json(path / 'config.json'))
    if stored is not None:
      config_checks.check_same_run(config, stored)
    elif checkpoints.steps:
      raise errors.UserError(
          f'--workdir={workdir}: holds checkpoints but no config.json, so there'
          ' is no telling whose they are; give another directory'
      )
    experiment = experiment_lib.Experiment(config, loaded)
    try:
      return _run(experiment, path, checkpoints, test)
    finally:
      # What ends one process alone must not have it wait for the others.
      if jax.process_count() == 1 or sys.exception() is None:
        checkpoints.close()


def _run(experiment, path, checkpoints, test):
  """Trains what is left to train, then evaluates the best checkpoint."""
  config, num_steps = experiment.config, experiment.num_steps
  first = distributed.from_first
  summary = first(lambda: files.read_json(path / 'summary.json'))
  if summary is not None:
    if not first(lambda: (path / 'report.html').exists()):
      result = summary_lib.evaluate_best(experiment, checkpoints)
      _report(experiment, path, result, summary.get('images_per_second'))
    return summary
  state, place, step = _start(experiment, checkpoints)
  # Not before it is sure that the run can start.
  first(lambda: files.write_json(path / 'config.json', config.to_dict()))
  speaks = distributed.is_first()
  display = progress.Display(
      num_steps, step, config.batch_size, quiet=not speaks
  )
  writer = metric_writer.Silent()
  if speaks:
    writer = metric_writer.Writer(path, step)
  outputs = loop.Outputs(path, checkpoints, writer, display)
  try:
    display.line(
        f'{len(experiment.splits.train)} images,'
        f' {num_steps} steps of {config.batch_size},'
        f' {jax.device_count()} x {jax.devices()[0].device_kind},'
        f' from step {step}'
    )
    step = loop.train(experiment, state, place, step, outputs)
    checkpoints.wait()
    if step < num_steps:
      display.line(f'Stopped; saved step {step}. The same command continues.')
      return None
    if not test:
      records = first(lambda: metric_writer.read(path))
      validations = [r for r in records if r.get('split') == 'validation']
      return min(validations, key=lambda record: record['mse'])
    display.line('Evaluating on the test split and writing the report.')
    result = summary_lib.evaluate_best(experiment, checkpoints)
    metrics = {k: v for k, v in result.summary.items() if isinstance(v, float)}
    writer.write(result.summary['step'], metrics, split='test')
    rate = display.images_per_second
    summary = result.summary | {'images_per_second': rate}
    first(lambda: files.write_json(path / 'summary.json', summary))
    _report(experiment, path, result, rate)
    return summary
  finally:
    display.close()
    writer.close()


def _report(experiment, path, result, images_per_second):
  """Writes the report; if that fails, the run is no less complete."""
  try:
    summary_lib.write_report(experiment, path, result, images_per_second)
  except Exception as error:
    reason = ' '.join(str(error).split())[:200]
    _LOGGER.warning(
        'The report is not written (%s: %s); --mode=report tries again.',
        type(error).__name__,
        reason,
    )


def _start(experiment, checkpoints):
  """Returns a state, its place and its step: resumed, from a run, or fresh."""
  restored = checkpoints.restore_latest(experiment.abstract_state())
  if restored is not None:
    state, place, step = restored
    experiment.check_origin(place['origin'])
    return state, place['batches'], step
  state = experiment.init_state()
  if experiment.config.init_from:
    state = _init_from(experiment, state)
  return state, None, 0


def _init_from(experiment, state):
  """Takes the variables of another run's best checkpoint."""
  source = experiment.config.init_from
  fields = files.read_config(source)
  # What else a state holds depends on these.
  like = experiment.abstract_state({
      field: fields.get(field, 0)
      for field in ('ema_decay', 'clip_norm', 'skip_nonfinite')
  })
  checkpoints = checkpoint.Checkpoints(pathlib.Path(source).expanduser())
  best = checkpoints.restore_best(like)[0].eval_variables
  # Copies, because a step donates every buffer of its state, once.
  return state._replace(
      variables=best,
      ema_params=state.ema_params and jax.tree.map(jnp.copy, best.params),
      eval_batch_stats=jax.tree.map(jnp.copy, best.batch_stats),
  )
