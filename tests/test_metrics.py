"""metrics.jsonl."""

import json

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
