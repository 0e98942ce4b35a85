"""What is said while a run or other long work goes on."""

import types

import pytest

from gmvq_jax.runtime import progress


def pass_time(monkeypatch, times):
  times = iter(times)
  clock = types.SimpleNamespace(
      perf_counter=lambda: next(times), monotonic=lambda: next(times)
  )
  monkeypatch.setattr(progress, 'time', clock)


def test_display_prints_lines_without_a_terminal(capsys, monkeypatch):
  pass_time(monkeypatch, range(100))
  display = progress.Display(num_steps=3700, step=0, images_per_step=10)
  for step in range(1, 12):
    display.advance(step)
  assert display.images_per_second == pytest.approx(10)
  display.metrics({'loss': 0.5, 'temperature': 2.0})
  line = capsys.readouterr().out.strip()
  assert line == (
      'step 11/3700  10 images/s  1:01:29 left  loss 0.5  temperature 2'
  )


def test_display_does_not_count_pauses(monkeypatch):
  pass_time(monkeypatch, [0, 1, 100, 101])
  display = progress.Display(num_steps=10, step=0, images_per_step=4)
  display.advance(1)
  display.advance(2)
  display.pause()
  display.advance(3)
  display.advance(4)
  assert display.images_per_second == pytest.approx(4)


def test_short_work_is_done_without_a_word(capfd):
  items = [3, 1, 2]
  assert list(progress.track(items, 'Reading')) == items
  assert list(progress.track([], 'Reading')) == []
  assert capfd.readouterr() == ('', '')


def test_long_work_says_how_far_it_is(capsys, monkeypatch):
  """Two seconds an item: every 10 seconds a line, on standard error."""
  pass_time(monkeypatch, [0, *range(0, 60, 2)])
  items = 'abcdefghijklmnopqrstuvwxyz0123'
  assert ''.join(progress.track(items, 'Reading 30 images')) == items
  out, lines = capsys.readouterr()
  assert out == ''
  assert lines.splitlines() == [
      'Reading 30 images: 20%, 0:48 left',
      'Reading 30 images: 40%, 0:36 left',
      'Reading 30 images: 60%, 0:24 left',
      'Reading 30 images: 80%, 0:12 left',
  ]


def test_long_work_says_how_fast_it_is(capsys, monkeypatch):
  pass_time(monkeypatch, [0, *range(0, 60, 4)])
  items = progress.track(
      iter(range(10)), 'Encoding', total=10, images_per_item=64
  )
  assert list(items) == list(range(10))
  _, lines = capsys.readouterr()
  assert lines.splitlines()[0] == 'Encoding: 30%, 16 images/s, 0:28 left'


def test_a_terminal_shows_a_bar_and_every_item_passes(capsys, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')  # For rich: it is a terminal.
  assert list(progress.track(range(5), 'Reading')) == list(range(5))
  out, bar = capsys.readouterr()
  assert out == ''
  assert 'Reading' in bar


@pytest.mark.parametrize(
    'seconds, text',
    [
        (0, '0:00'),
        (9.4, '0:09'),
        (59.6, '1:00'),
        (123, '2:03'),
        (3599.6, '1:00:00'),
        (3723, '1:02:03'),
        (360_000, '100:00:00'),
    ],
)
def test_clock(seconds, text):
  assert progress.clock(seconds) == text
