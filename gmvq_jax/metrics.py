"""Where metrics go: metrics.jsonl and TensorBoard."""

import json
import os
import pathlib

import numpy as np
import tensorboardX


class Writer:
  """Appends metrics to `metrics.jsonl` and to TensorBoard's files."""

  def __init__(self, workdir: pathlib.Path, step: int):
    """Opens both after `step`: what was written of later steps is dropped.

    A run that continues at a step will write those again.
    """
    path = workdir / 'metrics.jsonl'
    _drop_after(path, step)
    self._file = open(path, 'a')
    self._board = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1
    )

  def write(
      self, step: int, metrics: dict[str, float], *, split: str | None = None
  ) -> None:
    """Writes the metrics of a step, or of the evaluation of a split at it."""
    record = {'step': step} | ({'split': split} if split else {}) | metrics
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(f'{split or "batch"}/{name}', value, step)

  def picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Shows uint8 `[H, W, 3]` in TensorBoard."""
    self._board.add_image(name, picture, step, dataformats='HWC')

  def flush(self) -> None:
    """Sees to it that what was written outlives the process."""
    self._board.flush()

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    self._board.close()


def _drop_after(path, step):
  """Keeps the lines of `metrics.jsonl` up to a step, and only whole ones."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      record = json.loads(line)
      # The test split is evaluated after the last step, and so again.
      if record['step'] <= step and record.get('split') != 'test':
        kept.append(line + '\n')
    except (ValueError, KeyError, TypeError):
      pass  # Cut off when the process was killed.
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(''.join(kept))
  os.replace(temporary, path)
