"""A run: from a configuration to a work directory with a trained model."""

import contextlib
import logging
import math
import os
import pathlib
import signal
import sys
from typing import Any
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from ml_collections import ConfigDict

from gmvq_jax.training import checkpoint
from gmvq_jax.training import config as config_lib
from gmvq_jax import data
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.training import experiment as experiment_lib
from gmvq_jax.training import metric_writer
from gmvq_jax.reporting import pictures
from gmvq_jax.runtime import progress
from gmvq_jax.training import summary as summary_lib
from gmvq_jax.runtime import files

_LOGGER = logging.getLogger(__name__)
_PICTURED = 32
# Metrics of which nothing is left when something is amiss, and what that is.
_ALIKE = {
    'brightness_variance': 'all images of the batch are equally bright',
    'latent_variance': 'all latents of the batch are the same',
}


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
    workdir: where the run lives; see `workdir.py`.
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
  config_lib.validate(config)
  with contextlib.ExitStack() as stack:
    first(lambda: stack.enter_context(files.lock(path)))
    checkpoints = checkpoint.Checkpoints(path)
    stored = first(lambda: files.read_json(path / 'config.json'))
    if stored is not None:
      config_lib.check_same_run(config, stored)
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


class _Outputs(NamedTuple):
  """Where the results of a run go."""

  path: pathlib.Path
  checkpoints: checkpoint.Checkpoints
  writer: metric_writer.Writer
  display: progress.Display


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
  writer = metric_writer.Writer(path, step) if speaks else metric_writer.Silent()
  outputs = _Outputs(path, checkpoints, writer, display)
  try:
    display.line(
        f'{len(experiment.splits.train)} images,'
        f' {num_steps} steps of {config.batch_size},'
        f' {jax.device_count()} x {jax.devices()[0].device_kind},'
        f' from step {step}'
    )
    step = _train(experiment, state, place, step, outputs)
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


def _train(experiment, state, place, step, outputs):
  """Trains to the end, or until a signal; returns the step it came to."""
  config, num_steps = experiment.config, experiment.num_steps
  take_step = experiment.make_train_step()
  pending = None
  with (
      contextlib.closing(experiment.batches()) as batches,
      _stop_signals() as stopped,
  ):
    if place is not None:
      batches.set_state(place)
    while step < num_steps and not stopped(step):
      state, metrics = take_step(state, next(batches))
      step += 1
      # The device is on this step while the host reads the one before.
      if pending is not None:
        _read(experiment, *pending, outputs)
      pending = (step, metrics)

      evaluated = step % config.eval_every_steps == 0 or step == num_steps
      if evaluated or step % config.checkpoint_every_steps == 0:
        # Nothing is saved that was not seen to be finite.
        _read(experiment, *pending, outputs)
        pending = None
        state = _save(experiment, state, batches, step, evaluated, outputs)
    if step < num_steps and pending is not None:
      _read(experiment, *pending, outputs)
      _save(experiment, state, batches, step, False, outputs)
  return step


def _save(experiment, state, batches, step, evaluated, outputs):
  """Saves a state fit to be evaluated, evaluating it first if asked to."""
  outputs.display.pause()
  state = experiment.calibrate(state)
  validation = None
  if evaluated:
    validation = _validate(experiment, state, step, outputs)
  place = {'origin': experiment.origin, 'batches': batches.get_state()}
  outputs.checkpoints.save(step, state, place, validation)
  outputs.writer.flush()
  return state


def _read(experiment, step, metrics, outputs):
  """Reads the metrics of a step: to see that all is well, and to log them."""
  metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
  watched = ('loss', 'grad_norm', 'param_norm')
  if not all(math.isfinite(metrics[name]) for name in watched):
    values = ', '.join(f'{name} is {metrics[name]}' for name in watched)
    in_a_row = metrics.get('skipped_in_a_row', 0)
    if not 0 < in_a_row <= experiment.config.skip_nonfinite:
      raise _diverged(step, values, outputs)
    outputs.display.line(f'step {step}: {values}; skipped')
  for name, what in _ALIKE.items():
    if metrics.get(name, 1) < 1e-12:
      outputs.display.warn(f'step {step}: {what}', what)
  outputs.display.advance(step)
  every = experiment.config.log_every_steps
  if step % every == 0 or step in (1, experiment.num_steps):
    metrics['learning_rate'] = float(experiment.learning_rate(step - 1))
    outputs.display.metrics(metrics)
    outputs.writer.write(step, metrics)


def _diverged(step, values, outputs):
  """Returns the error that says so, and what there is to go on from."""
  outputs.checkpoints.wait()
  steps = outputs.checkpoints.steps
  good = 'there is no checkpoint yet'
  if steps:
    good = f'the last good checkpoint is of step {steps[0]}'
  return errors.DivergedError(
      f'step {step}: {values}; all must be finite; {good}; a lower'
      ' --config.learning_rate, --config.clip_norm or --config.skip_nonfinite'
      ' in another work directory may help'
  )


def _validate(experiment, state, step, outputs):
  """Evaluates the validation split: metrics, a line, a picture."""
  metrics = experiment.evaluate(state, 'validation').metrics
  outputs.writer.write(step, metrics, split='validation')
  outputs.display.line(f'validation at step {step}: {_line(metrics)}')
  images = experiment.splits.validation[:_PICTURED]
  decoded, _ = experiment.reconstruct(state, images)
  if distributed.is_first():
    picture = pictures.comparison(images, decoded)
    outputs.writer.picture(step, 'validation', picture)
    pictures.save(outputs.path / 'pictures' / f'step_{step:08}.png', picture)
  return metrics


def _line(metrics):
  """Returns the few metrics one looks at first."""
  return (
      f'mse {metrics["mse"]:.3e}  psnr {metrics["psnr"]:.2f} dB '
      f' ssim {metrics["ssim"]:.3f}  perplexity {metrics["perplexity"]:.1f} '
      f' codes used {metrics["codes_used"]:.1%}'
  )


@contextlib.contextmanager
def _stop_signals():
  """Turns Ctrl-C and SIGTERM into a question that the loop can ask of a step.

  A second Ctrl-C does what it always does. Of several processes all stop at the
  same step, once one has been told to.
  """
  if jax.distributed.is_initialized():
    # JAX watches for SIGTERM itself, and agrees on the step.
    interrupt = signal.signal(
        signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    try:
      yield multihost_utils.reached_preemption_sync_point
    finally:
      signal.signal(signal.SIGINT, interrupt)
    return
  caught = []

  def catch(number, frame):
    del frame
    caught.append(number)
    signal.signal(number, previous[number])

  previous = {}
  for number in (signal.SIGINT, signal.SIGTERM):
    previous[number] = signal.signal(number, catch)
  try:
    yield lambda step: bool(caught)
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
