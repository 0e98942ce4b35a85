"""How far long work is: a bar in a terminal, lines of text elsewhere."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sized
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn

_SHOWN = ('loss', 'mse', 'perplexity', 'temperature')
_SECONDS_PER_LINE = 10


class Display:
  """Shows how far a run is: a bar in a terminal, lines of text elsewhere."""

  def __init__(
      self,
      num_steps: int,
      step: int,
      images_per_step: int,
      *,
      quiet: bool = False,
  ):
    """Starts counting at `step`; `quiet` only counts."""
    self._quiet = quiet
    self._num_steps = num_steps
    self._images_per_step = images_per_step
    self._step = step
    self._seconds = 0.0
    self._timed_steps = 0
    self._since: float | None = None
    self._bar: Progress | None = None
    self._text = ''
    self._warned: set[str] = set()
    if sys.stdout.isatty() and not quiet:
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
    elif not self._quiet:
      print(text, flush=True)

  def warn(self, text: str, kind: str) -> None:
    """Prints a line, unless there was one of its kind."""
    if kind not in self._warned:
      self._warned.add(kind)
      self.line(text)

  def close(self) -> None:
    """Leaves the terminal as it was."""
    if self._bar:
      self._bar.stop()

  def _pace(self):
    rate = self.images_per_second
    if not rate:
      return ''
    left = (self._num_steps - self._step) * self._images_per_step / rate
    return f'{rate:.0f} images/s  {clock(left)} left'


def track(
    items: Iterable[Any],
    text: str,
    *,
    total: int | None = None,
    images_per_item: int = 0,
) -> Iterator[Any]:
  """Yields items, showing on standard error which share of them is done.

  Args:
    items: of about the same work each.
    text: what is being done.
    total: how many there are; their length by default.
    images_per_item: to show how many images there are each second.
  """
  if total is None:
    assert isinstance(items, Sized)
    total = len(items)
  console = Console(stderr=True)
  if not console.is_terminal:
    yield from _track_in_lines(items, text, total, images_per_item, console)
    return
  columns = TextColumn('{task.description}'), BarColumn(), TimeRemainingColumn()
  start = time.monotonic()
  with Progress(*columns, console=console, transient=True) as bar:
    task = bar.add_task(text, total=total)
    for done, item in enumerate(items, start=1):
      yield item
      rate = _rate(done * images_per_item, time.monotonic() - start)
      bar.update(task, completed=done, description=f'{text}{rate}')


def _track_in_lines(items, text, total, images_per_item, console):
  """Says nothing of what takes less than a few seconds."""
  start = said = time.monotonic()
  for done, item in enumerate(items):
    now = time.monotonic()
    if now - said > _SECONDS_PER_LINE and done:
      said = now
      left = (now - start) * (total - done) / done
      rate = _rate(done * images_per_item, now - start)
      line = f'{text}: {done / total:.0%}{rate}, {clock(left)} left'
      console.print(line, highlight=False, soft_wrap=True)
    yield item


def _rate(images, seconds):
  return f', {images / seconds:.0f} images/s' if images and seconds else ''


def clock(seconds: float) -> str:
  """Returns `1:02:03` or `2:03`."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'
