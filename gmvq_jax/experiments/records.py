"""Runs on record: what came of a configuration, by which code and machine."""

import json
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from gmvq_jax import data
from gmvq_jax.reporting import pages
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.training import trainer


def run(
    config: ConfigDict,
    path: pathlib.Path,
    loaded: tuple[data.Splits, bool],
) -> dict[str, Any] | None:
  """Trains and evaluates, unless that is on record; returns the record.

  Args:
    config: of the run.
    path: its work directory, which holds the record as `record.json`.
    loaded: what `data.load` has returned for `config.data`.

  Returns:
    `seed`, `config`, `metrics` (of the test split; empty if it
    diverged), `failure` (why; else None), `wall_seconds`, `hardware`,
    `versions` and `commit`. None if a signal stopped the run.

  Raises:
    errors.UserError: for what a user can get wrong.
  """
  record_path = path / 'record.json'
  record = files.read_json(record_path)
  if record is not None and record['config'] == plain(config):
    return record
  path.mkdir(parents=True, exist_ok=True)
  start = time.perf_counter()
  try:
    summary = trainer.run(config, str(path), loaded=loaded)
    failure = None
  except errors.DivergedError as error:
    summary, failure = {}, str(error)
    print(failure, flush=True)
  if summary is None:
    return None
  record = {
      'seed': config.seed,
      'config': plain(config),
      'metrics': summary,
      'failure': failure,
      'wall_seconds': round(time.perf_counter() - start, 1),
      **pages.provenance(),
  }
  files.write_json(record_path, record)
  return record


def plain(config: ConfigDict) -> dict[str, Any]:
  """Returns a configuration as JSON gives it back."""
  return json.loads(json.dumps(config.to_dict()))

