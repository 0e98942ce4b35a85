"""Checkpoints: the last two, and the best on validation."""

from collections.abc import Iterable
import contextlib
import logging
import math
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from gmvq_jax import errors

METRIC = 'mse'
_LOGGER = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of a work directory, written in the background."""

  def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
    """Opens `checkpoints/`.

    Args:
      workdir: of the run.
      read_only: whether to leave it as it is: another process may be writing.

    Raises:
      errors.UserError: when it is read-only and not there.
    """
    self._directory = workdir.resolve() / 'checkpoints'
    self._damaged = workdir.resolve() / 'damaged_checkpoints'
    self._read_only = read_only
    if read_only and not self._directory.is_dir():
      raise errors.UserError(
          f'{self._directory}: there is no checkpoint yet; train first'
      )
    self._manager = self._open()

  @property
  def latest_step(self) -> int | None:
    """The step of the newest whole checkpoint, if any."""
    return self._manager.latest_step()

  def save(
      self, step: int, state: Any, metrics: dict[str, float] | None = None
  ) -> None:
    """Saves a pytree of arrays, unless that step is there already.

    Args:
      step: its number.
      state: copied before this returns; written after.
      metrics: those of its evaluation, if any; the best checkpoint is the one
        of the lowest `METRIC`.

    Raises:
      errors.UserError: when this one, or the one before, cannot be written.
    """
    if step in self._manager.all_steps():
      return
    with self._writing():
      self._manager.save(
          step,
          args=ocp.args.StandardSave(state),
          metrics={METRIC: metrics[METRIC] if metrics else math.inf},
      )

  def restore_latest(self, like: Any) -> tuple[Any, int] | None:
    """Returns the newest checkpoint that can be read, and its step.

    Those that cannot are named and moved to `damaged_checkpoints/`.

    Args:
      like: a pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings,
        that says what is expected.

    Returns:
      None when there is no checkpoint.

    Raises:
      errors.UserError: when there are checkpoints and none can be read.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not steps:
      return None
    restored = self._restore_first(steps, like)
    for step in steps[: steps.index(restored[1])]:
      self._set_aside(step)
    if steps[0] != restored[1]:
      self._manager.close()
      self._manager = self._open()
    return restored

  def restore_best(self, like: Any) -> tuple[Any, int]:
    """Returns the checkpoint that is best on validation, and its step.

    Falls back to the next best where one cannot be read, and to the newest
    where none was evaluated.

    Raises:
      errors.UserError: when there is none that can be read.
    """
    steps = self._manager.all_steps()
    if not steps:
      raise errors.UserError(
          f'{self._directory}: there is no checkpoint yet; train first'
      )
    rank = {step: _metric(self._manager.metrics(step)) for step in steps}
    ranked = sorted(steps, key=lambda step: (rank[step], -step))
    return self._restore_first(ranked, like)

  def wait(self) -> None:
    """Waits until everything is written.

    Raises:
      errors.UserError: when something cannot be.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and closes the directory; raises as `wait` does."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self):
    """Turns what Orbax raises where it cannot write into one line."""
    try:
      yield
    except Exception as error:
      raise errors.UserError(
          f'{self._directory}: a checkpoint cannot be written ({_line(error)});'
          ' those before it are whole: make room, and the same command'
          ' continues'
      ) from error

  def _open(self):
    policy = policies.AnyPreservationPolicy([
        policies.LatestN(2),
        policies.BestN(
            n=1,
            get_metric_fn=_metric,
            reverse=True,  # The lowest is the last, and so the best.
        ),
    ])
    return ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            # Without this, metrics are not kept.
            best_fn=_metric,
            best_mode='min',
            cleanup_tmp_directories=not self._read_only,
            create=not self._read_only,
            read_only=self._read_only,
        ),
    )

  def _restore_first(self, steps: Iterable[int], like: Any):
    """Returns the first of `steps` that can be read."""
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    for step in steps:
      try:
        args = ocp.args.StandardRestore(like)
        return self._manager.restore(step, args=args), step
      except Exception as error:  # Orbax raises whatever its layers do.
        _LOGGER.warning(
            'Checkpoint %d in %s cannot be read: %s',
            step,
            self._directory,
            _line(error),
        )
    raise errors.UserError(
        f'{self._directory}: none of its checkpoints can be read; give another'
        ' work directory'
    )

  def _set_aside(self, step):
    self._damaged.mkdir(exist_ok=True)
    target = self._damaged / str(step)
    while target.exists():
      target = target.with_name(target.name + '_')
    (self._directory / str(step)).rename(target)
    _LOGGER.warning('Moved checkpoint %d to %s.', step, self._damaged)


def _metric(metrics):
  """Returns what checkpoints are ranked by; infinite if not evaluated."""
  return math.inf if metrics is None else metrics[METRIC]


def _line(error):
  """Returns an exception of many lines as one."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
