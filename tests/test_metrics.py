"""metrics.jsonl and the display."""

import json

import pytest

from gmvq_jax import metrics


def lines(tmp_path):
  text = (tmp_path / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_continuing_drops_what_will_be_written_again(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  for step in (1, 2, 3):
    writer.write(step, {'loss': step / 2})
  writer.write(3, {'mse': 0.1}, split='validation')
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 2, "los')  # As a killed process leaves it.
  writer = metrics.Writer(tmp_path, 2)
  writer.write(3, {'loss': 9.0})
  writer.close()
  assert lines(tmp_path) == [
      {'step': 1, 'loss': 0.5},
      {'step': 2, 'loss': 1.0},
      {'step': 3, 'loss': 9.0},
  ]


def test_display_prints_lines_without_a_terminal(capsys, monkeypatch):
  clock = iter(range(100))
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: next(clock))
  display = metrics.Display(num_steps=3700, step=0, images_per_step=10)
  for step in range(1, 12):
    display.advance(step)
  assert display.images_per_second == pytest.approx(10)
  display.metrics({'loss': 0.5, 'temperature': 2.0})
  line = capsys.readouterr().out.strip()
  assert line == (
      'step 11/3700  10 images/s  1:01:29 left  loss 0.5  temperature 2'
  )


def test_display_does_not_count_pauses(monkeypatch):
  times = iter([0, 1, 100, 101])
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: next(times))
  display = metrics.Display(num_steps=10, step=0, images_per_step=4)
  display.advance(1)
  display.advance(2)
  display.pause()
  display.advance(3)
  display.advance(4)
  assert display.images_per_second == pytest.approx(4)
