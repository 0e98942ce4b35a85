"""What a run comes to: its test metrics, and the report."""

import hashlib
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from gmvq_jax import anchors
from gmvq_jax import checkpoint
from gmvq_jax import experiment as experiment_lib
from gmvq_jax import report
from gmvq_jax import workdir as workdir_lib

_DISSECTED = 18


def conclude(
    experiment: experiment_lib.Experiment,
    path: pathlib.Path,
    checkpoints: checkpoint.Checkpoints,
    images_per_second: float = 0.0,
) -> dict[str, Any]:
  """Evaluates the best checkpoint on the test split and writes the report.

  Args:
    experiment: of the run.
    path: its work directory.
    checkpoints: its checkpoints.
    images_per_second: the rate of training; 0 if unknown.

  Returns:
    What `summary.json` holds.
  """
  state, evaluation, summary = _evaluate(experiment, checkpoints)
  if images_per_second:
    summary['images_per_second'] = images_per_second
  config, splits = experiment.config, experiment.splits
  images = splits.test[:_DISSECTED]
  decoded, codes = experiment.reconstruct(state, images)
  quantizer, variables = experiment.model.quantizer, state.eval_variables
  codebook = quantizer.embed(
      variables.params['quantizer'],
      variables.quantizer_state,
      np.arange(quantizer.num_codes),
  )
  patches = anchors.patches_of(config, images.shape[1:])
  contents = report.Contents(
      config=config.to_dict(),
      metrics=summary,
      anchors=anchors.compute(splits, config.data.name, patches),
      records=report.read_records(path / 'metrics.jsonl'),
      images=images,
      reconstructions=decoded,
      codes=codes,
      codebook=jax.device_get(codebook),
      code_counts=evaluation.code_counts,
      num_steps=experiment.num_steps,
  )
  report.write(path / 'report.html', contents)
  return summary


def evaluate_workdir(workdir: str) -> dict[str, Any]:
  """Evaluates a run's best checkpoint on the test split.

  Returns:
    What `summary.json` holds, less the rate.

  Raises:
    errors.UserError: when there is no run or no checkpoint that can be read.
  """
  experiment, checkpoints = _open(workdir)
  return _evaluate(experiment, checkpoints)[2]


def report_workdir(workdir: str) -> pathlib.Path:
  """Writes the report of a run anew, and returns where it is.

  The run need not have ended.

  Raises:
    errors.UserError: as `evaluate_workdir`.
  """
  experiment, checkpoints = _open(workdir)
  path = pathlib.Path(workdir).expanduser().resolve()
  done = workdir_lib.read_json(path / 'summary.json') or {}
  rate = done.get('images_per_second', 0.0)
  conclude(experiment, path, checkpoints, rate)
  return path / 'report.html'


def _open(workdir):
  config = ConfigDict(workdir_lib.read_config(workdir))
  experiment = experiment_lib.Experiment(config)
  path = pathlib.Path(workdir).expanduser()
  return experiment, checkpoint.Checkpoints(path)


def _evaluate(experiment, checkpoints):
  """Returns the best state, its evaluation, and what is to be known of it."""
  state, step = checkpoints.restore_best(experiment.abstract_state())
  evaluation = experiment.evaluate(state, 'test')
  known = {'step': step, 'parameters_sha256': _hash(state.eval_variables)}
  return state, evaluation, evaluation.metrics | known


def _hash(variables):
  """Returns the SHA-256 of parameters and quantizer state, in hexadecimal."""
  digest = hashlib.sha256()
  tree = (variables.params, variables.quantizer_state)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.asarray(leaf)
    name = f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'
    digest.update(name.encode() + array.tobytes())
  return digest.hexdigest()
