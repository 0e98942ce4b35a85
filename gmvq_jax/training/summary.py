"""What a run comes to: its test metrics, and the report."""

import json
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.reporting import pages
from gmvq_jax.reporting import pictures
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import files
from gmvq_jax.training import baselines
from gmvq_jax.training import checkpoint
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import experiment as experiment_lib
from gmvq_jax.training import metric_writer
from gmvq_jax.training import train_step

# Of a work directory, for what `--mode=plan` writes.
PLANS = 'plans'

# Pixels in the images that a report takes apart, and how many of them.
_DISSECTED_PIXELS = 2**19
_DISSECTED = (3, 18)


class Result(NamedTuple):
  """The best checkpoint of a run, on the test split.

  Attributes:
    state: of that checkpoint.
    code_counts: `[C]`, how often each code occurs in the split.
    summary: what `summary.json` holds, less the rate of training.
  """

  state: train_step.TrainState
  code_counts: np.ndarray
  summary: dict[str, Any]


def evaluate_best(
    experiment: experiment_lib.Experiment, checkpoints: checkpoint.Checkpoints
) -> Result:
  """Evaluates the best checkpoint on the test split.

  Raises:
    errors.UserError: when there is no checkpoint that can be read.
  """
  state, place, step = checkpoints.restore_best(experiment.abstract_state())
  experiment.check_origin(place['origin'])
  evaluation = experiment.evaluate(state, 'test')
  variables = state.eval_variables
  sha256 = checkpoint.digest((variables.params, variables.quantizer_state))
  known = {'step': step, 'parameters_sha256': sha256}
  return Result(state, evaluation.code_counts, evaluation.metrics | known)


def write_report(
    experiment: experiment_lib.Experiment,
    path: pathlib.Path,
    result: Result,
    images_per_second: float | None = None,
) -> None:
  """Writes `report.html`, and what it shows of images as `examples.npz`.

  Args:
    experiment: of the run.
    path: its work directory.
    result: of `evaluate_best`.
    images_per_second: the rate of training, if known.
  """
  config, splits = experiment.config, experiment.splits
  _, height, width, _ = splits.test.shape
  count = np.clip(_DISSECTED_PIXELS // (height * width), *_DISSECTED)
  images = splits.test[: int(count)]
  decoded, codes = experiment.reconstruct(result.state, images)
  quantizer = experiment.model.quantizer
  variables = result.state.eval_variables
  codebook = quantizer.embed(
      variables.params['quantizer'],
      variables.quantizer_state,
      jnp.arange(quantizer.num_codes),
  )
  codebook = jax.device_get(codebook)
  if not distributed.is_first():
    return
  np.savez_compressed(
      path / 'examples.npz',
      images=images,
      reconstructions=pictures.to_uint8(decoded),
      code_counts=result.code_counts,
  )
  contents = pages.Contents(
      fields=config_lib.flatten(config),
      defaults=config_lib.flatten(config_lib.default_config()),
      metrics=result.summary,
      images_per_second=images_per_second,
      anchors=baselines.of_config(experiment.config, experiment.splits),
      records=metric_writer.read(path),
      images=images,
      reconstructions=decoded,
      codes=codes,
      codebook=codebook,
      code_counts=result.code_counts,
      num_steps=experiment.num_steps,
      plans=[
          json.loads(plan.read_text())
          for plan in sorted(path.glob(f'{PLANS}/*.json'))
      ],
  )
  pages.write(path / 'report.html', contents)


def evaluate_workdir(workdir: str) -> dict[str, Any]:
  """Evaluates a run's best checkpoint on the test split.

  Returns:
    What `summary.json` holds, less the rate.

  Raises:
    errors.UserError: when there is no run or no checkpoint that can be read.
  """
  experiment, checkpoints, _ = _open(workdir)
  return evaluate_best(experiment, checkpoints).summary


def assess_workdir(workdir: str) -> dict[str, Any]:
  """Returns the test `metrics` of a run's best checkpoint, and the `anchors`.

  Raises:
    errors.UserError: as `evaluate_workdir`.
  """
  experiment, checkpoints, _ = _open(workdir)
  metrics = evaluate_best(experiment, checkpoints).summary
  return {
      'metrics': metrics,
      'anchors': baselines.of_config(experiment.config, experiment.splits),
  }


def report_workdir(workdir: str) -> pathlib.Path:
  """Writes the report of a run anew, and returns where it is.

  The run need not have ended.

  Raises:
    errors.UserError: as `evaluate_workdir`.
  """
  experiment, checkpoints, path = _open(workdir)
  result = evaluate_best(experiment, checkpoints)
  done = files.read_json(path / 'summary.json') or {}
  write_report(experiment, path, result, done.get('images_per_second'))
  return path / 'report.html'


def _open(workdir):
  files.require_run(workdir)
  config = files.read_config(workdir)
  experiment = experiment_lib.Experiment(config)
  path = pathlib.Path(workdir).expanduser().resolve()
  return experiment, checkpoint.Checkpoints(path), path
