"""Where metrics go: metrics.jsonl, TensorBoard, the terminal."""

import json
import os
import pathlib
import sys
import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
import tensorboardX

_SHOWN = ('loss', 'mse', 'perplexity', 'temperature')


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


class Display:
  """Shows how far a run is: a bar in a terminal, lines of text elsewhere."""

  def __init__(self, num_steps: int, step: int, images_per_step: int):
    """Starts counting at `step`."""
    self._num_steps = num_steps
    self._images_per_step = images_per_step
    self._step = step
    self._seconds = 0.0
    self._timed_steps = 0
    self._since = None
    self._bar = None
    self._text = ''
    if sys.stdout.isatty():
      self._bar = Progress(
          BarColumn(),
          MofNCompleteColumn(),
          TextColumn('{task.fields[text]}'),
          console=Console(file=sys.stdout),
      )
      self._task = self._bar.add_task('', total=num_steps, text='compiling')
      self._bar.start()

  def advance(self, step: int) -> None:
    """Says that `step` steps are done. The first one, compiling, is no rate."""
    now = time.perf_counter()
    if self._since is not None:
      self._seconds += now - self._since
      self._timed_steps += step - self._step
    self._since = now
    self._step = step
    if self._bar:
      text = f'{self._pace()} {self._text}'
      self._bar.update(self._task, completed=step, text=text)

  def pause(self) -> None:
    """Says that what comes until the next step is not training."""
    self._since = None

  @property
  def images_per_second(self) -> float:
    """The rate of training, without evaluation and saving; 0 if unknown."""
    if not self._seconds:
      return 0.0
    return self._timed_steps * self._images_per_step / self._seconds

  def metrics(self, metrics: dict[str, float]) -> None:
    """Shows the metrics of the last step."""
    shown = [f'{k} {metrics[k]:.4g}' for k in _SHOWN if k in metrics]
    self._text = '  '.join(shown)
    if not self._bar:
      share = f'{self._step}/{self._num_steps}'
      self.line(f'step {share}  {self._pace()}  {self._text}')

  def line(self, text: str) -> None:
    """Prints a line."""
    if self._bar:
      self._bar.console.print(text, highlight=False, soft_wrap=True)
    else:
      print(text, flush=True)

  def close(self) -> None:
    """Leaves the terminal as it was."""
    if self._bar:
      self._bar.stop()

  def _pace(self):
    rate = self.images_per_second
    if not rate:
      return ''
    left = (self._num_steps - self._step) * self._images_per_step / rate
    minutes, seconds = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f'{hours}:{minutes:02}:{seconds:02}' if hours else (
        f'{minutes}:{seconds:02}'
    )
    return f'{rate:.0f} images/s  {clock} left'


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
