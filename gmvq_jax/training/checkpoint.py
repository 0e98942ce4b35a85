"""Checkpoints: the last two, and the best on validation.

Beside a state lies its record: a place in the data, a metric, and the digests
that show whether either has changed since: Orbax would take whole arrays of
another step for this one's.
"""

from collections.abc import Iterable
import contextlib
import functools
import json
import logging
import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from gmvq_jax.runtime import digests
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors

METRIC = 'mse'
_LOGGER = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of a work directory, written in the background.

  Reading goes by the files alone, so that one that is damaged stands in no
  other's way; nothing is made or changed before the first `save`, but for what
  `restore_latest` sets aside.
  """

  def __init__(self, workdir: pathlib.Path):
    """Looks into `checkpoints/`, if there is such a directory."""
    self._directory = workdir.resolve() / 'checkpoints'
    self._damaged = workdir.resolve() / 'damaged_checkpoints'
    self._manager: ocp.CheckpointManager | None = None

  @property
  def steps(self) -> list[int]:
    """The steps there are, the newest first."""
    return distributed.from_first(self._list)

  def save(
      self,
      step: int,
      state: Any,
      place: Any,
      metrics: dict[str, float] | None = None,
  ) -> None:
    """Saves a state and its place in the data, unless that step is there.

    Args:
      step: its number.
      state: a pytree of arrays, whole on every device, copied before this
        returns and written after.
      place: any JSON value.
      metrics: those of its evaluation, if any; the best checkpoint is the one
        of the lowest `METRIC`.

    Raises:
      errors.UserError: when this one, or the one before, cannot be written.
    """
    with self._writing():
      if self._manager is None:
        self._manager = self._open()
      if step in self._manager.all_steps():
        return
      # A copy, as a step donates what it came from, and on one host, so that
      # what is written is what the digest is of.
      state = jax.tree.map(np.array, state)
      metric = metrics[METRIC] if metrics else math.inf
      record = {'place': place, METRIC: metric, 'state': digest(state)}
      self._manager.save(
          step,
          args=ocp.args.Composite(
              state=ocp.args.StandardSave(state),
              record=ocp.args.JsonSave(record | {'seal': _seal(record)}),
          ),
          metrics={METRIC: metric},
      )

  def restore_latest(self, like: Any) -> tuple[Any, Any, int] | None:
    """Returns the newest checkpoint that can be read: state, place and step.

    Those that cannot are named and moved to `damaged_checkpoints/`.

    Args:
      like: a pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings,
        that says what is expected.

    Returns:
      None when there is no checkpoint.

    Raises:
      errors.UserError: when there are checkpoints and none can be read.
    """
    steps = self.steps
    if not steps:
      return None
    restored = self._restore_first(steps, like)
    self._set_aside(steps[: steps.index(restored[2])])
    return restored

  def restore_best(self, like: Any) -> tuple[Any, Any, int]:
    """Returns the state that is best on validation, its place and its step.

    Falls back to the next best where one cannot be read, and to the newest
    where none was evaluated.

    Raises:
      errors.UserError: when there is none that can be read.
    """
    steps = self._some_steps()
    ranks = distributed.from_first(lambda: list(map(self._rank, steps)))
    rank = dict(zip(steps, ranks, strict=True))
    steps.sort(key=lambda s: (math.isnan(rank[s]), rank[s], -s))
    return self._restore_first(steps, like)

  def some_place(self) -> Any:
    """Returns the place of the newest checkpoint whose record can be read.

    Raises:
      errors.UserError: when there is none.
    """
    steps = self._some_steps()

    def read():
      for step in steps:
        with contextlib.suppress(Exception):  # `restore_best` will name it.
          return self._record(step)['place']
      raise self._unreadable()

    return distributed.from_first(read)

  def wait(self) -> None:
    """Waits until everything is written.

    Raises:
      errors.UserError: when something cannot be.
    """
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and closes the directory; raises as `wait` does."""
    if self._manager is not None:
      with self._writing():
        self._manager.close()

  def _open(self):
    """Opens Orbax's manager, which needs the metrics of all there are."""
    steps = self.steps
    ranks = distributed.from_first(lambda: list(map(self._rank, steps)))
    pairs = zip(steps, ranks, strict=True)
    self._set_aside([step for step, rank in pairs if math.isnan(rank)])
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
            cleanup_tmp_directories=True,
        ),
    )

  @contextlib.contextmanager
  def _writing(self):
    """Turns what Orbax raises where it cannot write into one line."""
    try:
      yield
    except (OSError, ValueError) as error:
      raise errors.UserError(
          f'{self._directory}: a checkpoint cannot be written ({_line(error)});'
          ' those before it are whole: make room, and the same command'
          ' continues'
      ) from error

  def _restore_first(self, steps: Iterable[int], like: Any):
    """Returns the first of `steps` that can be read."""
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    for step in steps:
      restored = None
      try:
        record = distributed.from_first(functools.partial(self._record, step))
        with ocp.StandardCheckpointer() as states:
          path = self._directory / str(step) / 'state'
          state = states.restore(path, like)
        if digest(state) != record['state']:
          raise ValueError('its arrays are not those that were saved')
        restored = state, record['place'], step
      except Exception as error:  # Orbax raises whatever its layers do.
        _LOGGER.warning(
            'Checkpoint %d in %s cannot be read: %s',
            step,
            self._directory,
            _line(error),
        )
      if distributed.on_all(restored is not None):
        return restored
    raise self._unreadable()

  def _some_steps(self):
    steps = self.steps
    if not steps:
      raise errors.UserError(
          f'{self._directory}: there is no checkpoint yet; train first'
      )
    return steps

  def _unreadable(self):
    return errors.UserError(
        f'{self._directory}: none of its checkpoints can be read; give another'
        ' work directory'
    )

  def _rank(self, step):
    """Returns the metric of a checkpoint; NaN where that is damaged."""
    try:
      metric = self._record(step)[METRIC]
      # Orbax, which chooses what to keep, has a file of its own.
      text = (self._directory / str(step) / 'metrics' / 'metrics').read_text()
      return metric if json.loads(text)[METRIC] == metric else math.nan
    except Exception:  # Whatever it holds.
      return math.nan

  def _record(self, step):
    """Returns what lies beside a state, as it was saved."""
    path = self._directory / str(step) / 'record' / 'metadata'
    record = json.loads(path.read_text())
    if record.pop('seal') != _seal(record):
      raise ValueError('its record is not the one that was saved')
    return record

  def _list(self):
    if not self._directory.is_dir():
      return []
    # While a checkpoint is being written its name is no number.
    names = [path.name for path in self._directory.iterdir()]
    steps = (int(name) for name in names if name.isdecimal())
    return sorted((step for step in steps if str(step) in names), reverse=True)

  def _set_aside(self, steps):
    def move():
      for step in steps:
        self._damaged.mkdir(exist_ok=True)
        target = self._damaged / str(step)
        while target.exists():
          target = target.with_name(target.name + '_')
        (self._directory / str(step)).rename(target)
        _LOGGER.warning('Moved checkpoint %d to %s.', step, self._damaged)

    distributed.from_first(move)


def digest(tree: Any) -> str:
  """Returns the SHA-256 of the arrays of a pytree, and of their names."""
  parts: list[str | np.ndarray] = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.asarray(leaf)
    name = f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'
    parts += [name, array]
  return digests.sha256(*parts)


def _seal(record):
  """Returns the SHA-256 of a record."""
  return digests.sha256(json.dumps(record, sort_keys=True))


def _metric(metrics):
  """Returns what checkpoints are ranked by; infinite if not evaluated."""
  return math.inf if metrics is None else metrics[METRIC]


def _line(error):
  """Returns an exception of many lines as one."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
