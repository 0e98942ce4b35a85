"""The loop over training steps: reads metrics, evaluates, saves, stops."""

import contextlib
import math
import os
import pathlib
import signal
from typing import Any
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from gmvq_jax.reporting import pictures
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import progress
from gmvq_jax.training import checkpoint
from gmvq_jax.training import experiment as experiment_lib
from gmvq_jax.training import metric_writer
from gmvq_jax.training import train_step

_PICTURED = 32
# Metrics of which nothing is left when something is amiss, and what that is.
_ALIKE = {
    'brightness_variance': 'all images of the batch are equally bright',
    'latent_variance': 'all latents of the batch are the same',
}


class Outputs(NamedTuple):
  """Where the results of a run go."""

  path: pathlib.Path
  checkpoints: checkpoint.Checkpoints
  writer: metric_writer.Writer
  display: progress.Display


def train(
    experiment: experiment_lib.Experiment,
    state: train_step.TrainState,
    place: Any,
    step: int,
    outputs: Outputs,
) -> int:
  """Trains to the end, or until a signal, and returns the last step.

  Args:
    experiment: what is trained.
    state: at `step`.
    place: in the data, of `batches.get_state`; None: their start.
    step: to continue from.
    outputs: where the results go.

  Raises:
    errors.DivergedError: when a loss or a gradient is not finite.
  """
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
