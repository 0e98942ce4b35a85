"""metrics.jsonl."""

import json
import os

import numpy as np
import pytest

from gmvq_jax.training import metric_writer


def lines(tmp_path):
  text = (tmp_path / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_continuing_drops_what_will_be_written_again(tmp_path):
  writer = metric_writer.Writer(tmp_path, 0)
  for step in (1, 2, 3):
    writer.write(step, {'loss': step / 2})
  writer.write(3, {'mse': 0.1}, split='validation')
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 2, "los')  # As a killed process leaves it.
  writer = metric_writer.Writer(tmp_path, 2)
  writer.write(3, {'loss': 9.0})
  writer.close()
  assert lines(tmp_path) == [
      {'step': 1, 'loss': 0.5},
      {'step': 2, 'loss': 1.0},
      {'step': 3, 'loss': 9.0},
  ]


def test_tensorboard_reads_what_was_written(tmp_path):
  """By TensorBoard's own reader: what came after the step is purged."""
  accumulator = pytest.importorskip(
      'tensorboard.backend.event_processing.event_accumulator'
  )
  writer = metric_writer.Writer(tmp_path, 0)
  for step in (1, 2, 3):
    writer.write(step, {'loss': step / 2})
  writer.close()
  writer = metric_writer.Writer(tmp_path, 2)
  writer.write(3, {'loss': 7.0})
  picture = np.zeros((4, 6, 3), np.uint8)
  writer.picture(3, 'validation', picture)
  writer.close()
  board = accumulator.EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
  scalars = [(s.step, s.value) for s in board.Scalars('batch/loss')]
  assert scalars == [(1, 0.5), (2, 1.0), (3, 7.0)]
  (image,) = board.Images('validation')
  assert (image.step, image.width, image.height) == (3, 6, 4)


def test_a_full_disk_is_an_error_and_no_wait(tmp_path, monkeypatch):
  if not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full')
  # The second file has the name of the first.
  monkeypatch.setattr('tensorboardX.event_file_writer.time.time', lambda: 1e9)
  writer = metric_writer.Writer(tmp_path, 0)
  (events,) = (tmp_path / 'tensorboard').iterdir()
  events.unlink()
  events.symlink_to('/dev/full')
  writer = metric_writer.Writer(tmp_path, 0)
  with pytest.raises(OSError, match='No space left'):
    for step in range(100):
      writer.write(step, {'loss': 1.0})
      writer.flush()


def test_what_a_kill_cut_off_is_left_out(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2, "lo')
  assert metric_writer.read(tmp_path) == [{'step': 1}]
  assert metric_writer.read(tmp_path / 'nothing') == []
