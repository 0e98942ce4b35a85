"""Where metrics go: metrics.jsonl and TensorBoard."""

from collections.abc import Callable
import json
import math
import os
import pathlib
import time
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2


class Silent:
  """Stands where another process has a `Writer`, and writes nothing."""

  def __getattr__(self, name: str) -> Callable[..., None]:
    return lambda *args, **kwargs: None


class Writer:
  """Appends metrics to `metrics.jsonl` and to TensorBoard's files."""

  def __init__(self, workdir: pathlib.Path, step: int):
    """Opens both after `step`: what was written of later steps is dropped.

    A run that continues at a step will write those again.
    """
    path = workdir / 'metrics.jsonl'
    _drop_after(path, step)
    self._file = open(path, 'a')
    self._board = _Board(workdir / 'tensorboard', step)

  def write(
      self, step: int, metrics: dict[str, float], *, split: str | None = None
  ) -> None:
    """Writes the metrics of a step, or of the evaluation of a split at it.

    What is not finite, and so no JSON, is left out.
    """
    metrics = {k: v for k, v in metrics.items() if math.isfinite(v)}
    record = {'step': step} | ({'split': split} if split else {}) | metrics
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    for name, value in metrics.items():
      self._board.add(step, summary.scalar(f'{split or "batch"}/{name}', value))

  def picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Shows uint8 `[H, W, 3]` in TensorBoard."""
    self._board.add(step, summary.image(name, picture, dataformats='HWC'))

  def flush(self) -> None:
    """Sees to it that what was written outlives the process."""
    self._board.flush()

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    self._board.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the objects of `metrics.jsonl`, but for what is damaged."""
  path = workdir / 'metrics.jsonl'
  text = path.read_text(errors='replace') if path.exists() else ''
  records = []
  for line in text.splitlines():
    try:
      record = json.loads(line)
      record['step'] + 0
      records.append(record)
    except (ValueError, KeyError, TypeError):
      pass
  return records


class _Board:
  """TensorBoard's files, written by this thread.

  The thread of `tensorboardX.SummaryWriter` dies of a full disk, and whoever
  adds to its queue then waits for ever.
  """

  def __init__(self, directory, step):
    directory.mkdir(exist_ok=True)
    # By the step too, as a run may be continued within a second.
    self._events = EventsWriter(str(directory / 'events'), f'.{step}')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step + 1, session_log=start)

  def add(self, step, what):
    self._write(step, summary=what)

  def flush(self):
    self._events.flush()

  def close(self):
    self._events.close()

  def _write(self, step, **what):
    event = event_pb2.Event(wall_time=time.time(), step=step, **what)
    self._events.write_event(event)


def _drop_after(path, step):
  """Keeps the lines of `metrics.jsonl` up to a step, and only whole ones."""
  if not path.exists():
    return
  # The test split is evaluated after the last step, and so again.
  kept = [
      json.dumps(record) + '\n'
      for record in read(path.parent)
      if record['step'] <= step and record.get('split') != 'test'
  ]
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(''.join(kept))
  os.replace(temporary, path)
