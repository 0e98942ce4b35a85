"""Whole runs in this process: what they write, and that they learn.

Most runs have the configuration of the session's run with other values, not
another structure, so that they share its compiled programs, and no report.
"""

import contextlib
import io
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tiny

from gmvq_jax import data as data_lib
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.training import checkpoint
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import experiment
from gmvq_jax.training import summary as summary_lib
from gmvq_jax.training import trainer

SUMMARY = {
    'mse', 'psnr', 'ssim', 'perplexity', 'soft_perplexity', 'codes_used',
    'quantization_error', 'bits_per_image', 'step', 'images_per_second',
    'parameters_sha256',
}  # fmt: skip


@pytest.fixture(scope='module')
def run_dir(trained):
  return trained[0]


@pytest.fixture(scope='module')
def name(run_dir):
  return tiny.like(run_dir).data.name


@pytest.fixture(scope='module')
def finished(tmp_path_factory, run_dir):
  """A finished run: its work directory, summary and output; read only."""
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  with contextlib.redirect_stdout(io.StringIO()) as output:
    summary = trainer.run(tiny.like(run_dir), str(workdir))
  return workdir, summary, output.getvalue()


@pytest.fixture
def copy(finished, tmp_path):
  """A copy of the finished run, to be changed."""
  return shutil.copytree(finished[0], tmp_path / 'copy')


def unfinish(workdir):
  """Takes a run back to its checkpoint at step 8."""
  (workdir / 'summary.json').unlink()
  shutil.rmtree(workdir / 'checkpoints' / '12')


def run(workdir, config):
  """Trains without a report; returns the summary of the test split."""
  assert trainer.run(config, str(workdir), test=False)
  return summary_lib.evaluate_workdir(str(workdir))


def records(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_what_a_run_leaves_behind(run_dir, finished):
  workdir, summary, output = finished
  assert SUMMARY <= set(summary)
  assert json.loads((workdir / 'summary.json').read_text()) == summary
  stored = json.loads((workdir / 'config.json').read_text())
  assert stored == tiny.like(run_dir).to_dict()
  logged = records(workdir)
  assert [r['step'] for r in logged if 'split' not in r] == [1, 4, 8, 12]
  assert [r['step'] for r in logged if r.get('split') == 'validation'] == [
      8,
      12,
  ]
  assert logged[-1]['split'] == 'test'
  for record in logged:
    if 'split' not in record:
      assert {'loss', 'mse', 'latent', 'kl', 'learning_rate'} <= set(record)
  assert list((workdir / 'tensorboard').iterdir())
  assert '<!doctype html>' in (workdir / 'report.html').read_text()
  picture = Image.open(workdir / 'pictures' / 'step_00000012.png')
  assert picture.size == (2 * 16 * 18, 2 * 4 * 18)
  # Evaluating it again gives the same.
  again = summary_lib.evaluate_workdir(str(workdir))
  for key in set(again):
    assert again[key] == summary[key], key
  assert 'validation at step 12: mse' in output


def test_it_learns(name, tmp_path, photographs):
  """MSE falls below 0.4 times the images' variance; codes spread."""
  config = tiny.config(
      name, num_steps=60, learning_rate=1e-2, eval_every_steps=30,
      checkpoint_every_steps=60, network__num_downsamplings=1,
      network__width=32, quantizer__dim=8, quantizer__num_codes=32,
      kmeans__images=0,
  )  # fmt: skip
  summary = run(tmp_path / 'run', config)
  variance = np.var(photographs[540:600] / 255)
  assert summary['mse'] < 0.4 * variance
  validation = [
      r for r in records(tmp_path / 'run') if r.get('split') == 'validation'
  ]
  assert validation[-1]['mse'] < validation[0]['mse']
  assert summary['perplexity'] > 12


def test_where_images_are_kept_changes_nothing(
    run_dir, finished, tmp_path, copy
):
  """Not one bit of the parameters; a run may continue with another place."""
  expected = finished[1]['parameters_sha256']
  for keep in ('memory', 'stream'):
    config = tiny.like(run_dir, data__keep=keep)
    summary = run(tmp_path / keep, config)
    assert summary['parameters_sha256'] == expected, keep
  unfinish(copy)
  again = run(copy, tiny.like(run_dir, data__keep='stream'))
  assert again['parameters_sha256'] == expected


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:coroutine')
def test_starting_from_parameters_of_other_shapes_is_refused(
    run_dir, finished, tmp_path
):
  (tmp_path / 'old').mkdir()
  shutil.copy(finished[0] / 'config.json', tmp_path / 'old')
  checkpoints = checkpoint.Checkpoints(tmp_path / 'old')
  checkpoints.save(1, {'a': np.zeros(3)}, {}, {'mse': 0.1})
  checkpoints.close()
  config = tiny.like(run_dir, init_from=str(tmp_path / 'old'))
  with pytest.raises(errors.UserError, match='none of its checkpoints can be'):
    trainer.run(config, str(tmp_path / 'run'))


def test_a_finished_run_is_not_run_again(run_dir, finished):
  workdir, summary, _ = finished
  before = (workdir / 'metrics.jsonl').read_text()
  assert trainer.run(tiny.like(run_dir), str(workdir)) == summary
  assert (workdir / 'metrics.jsonl').read_text() == before


def test_a_changed_config_json_is_not_believed(copy):
  path = copy / 'config.json'
  path.write_text(path.read_text().replace('"beta": 10.0', '"beta": 18.0'))
  with pytest.raises(errors.UserError, match='config.json: is not the config'):
    summary_lib.evaluate_workdir(str(copy))


def test_another_configuration_is_refused_and_nothing_lost(run_dir, copy):
  files = {p: p.read_bytes() for p in copy.iterdir() if p.is_file()}
  for field, value in (('num_steps', 24), ('quantizer__beta', 2.0)):
    with pytest.raises(errors.UserError, match=field.replace('__', '.')):
      trainer.run(tiny.like(run_dir, **{field: value}), str(copy))
  for path, content in files.items():
    assert path.read_bytes() == content, path
  (copy / 'config.json').unlink()
  with pytest.raises(errors.UserError, match='no config.json'):
    trainer.run(tiny.like(run_dir), str(copy))


@pytest.fixture(scope='module')
def diverged(tmp_path_factory, run_dir):
  """A run whose parameters are too large after step 7, and its error.

  Step 8 would be saved.
  """
  workdir = tmp_path_factory.mktemp('diverged') / 'run'
  make = experiment.Experiment.make_train_step

  def make_unstable(self):
    step = make(self)

    def unstable(state, images):
      if int(state.step) == 7:
        variables = jax.device_get(state.variables)
        params = jax.tree.map(lambda x: x * np.float32(1e30), variables.params)
        state = state._replace(
            variables=distributed.replicate(
                variables._replace(params=params), self.mesh
            )
        )
      return step(state, images)

    return unstable

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment.Experiment, 'make_train_step', make_unstable)
    with pytest.raises(errors.DivergedError) as caught:
      trainer.run(tiny.like(run_dir), str(workdir))
  return workdir, str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run(run_dir, diverged):
  """What is not finite is neither logged nor saved."""
  workdir, error = diverged
  assert error.startswith('step 8: loss is nan')
  assert 'the last good checkpoint is of step 4' in error
  assert '\n' not in error
  assert [record['step'] for record in records(workdir)] == [1, 4]
  state, _, step = checkpoint.Checkpoints(workdir).restore_latest(
      experiment.Experiment(tiny.like(run_dir)).abstract_state()
  )
  assert step == 4
  chex.assert_tree_all_finite(state.variables)


def test_a_checkpoint_between_evaluations_has_statistics_for_one(
    run_dir, diverged
):
  """Step 4 was saved without an evaluation."""
  exp = experiment.Experiment(tiny.like(run_dir))
  state, place, step = checkpoint.Checkpoints(diverged[0]).restore_latest(
      exp.abstract_state()
  )
  assert step == place['batches']['next_index'] == 4
  chex.assert_trees_all_close(state, exp.calibrate(state), rtol=1e-5)


def test_num_steps_come_from_the_epochs():
  config = tiny.config('', num_steps=0, num_epochs=3)
  assert config_lib.num_steps(config, 480) == 90


def test_a_failed_start_leaves_no_run_behind(run_dir, finished, tmp_path):
  """A run of another configuration can then start in the same directory."""
  for field, value, message in (
      ('network__num_downsamplings', 5, 'cannot be halved'),
      ('init_from', '/no/where', 'holds no config.json'),
  ):
    config = tiny.like(run_dir, **{field: value})
    with pytest.raises(errors.UserError, match=message):
      trainer.run(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run' / 'config.json').exists(), field
  summary = run(tmp_path / 'run', tiny.like(run_dir, data__keep='device'))
  assert summary['parameters_sha256'] == finished[1]['parameters_sha256']


def test_another_seed_is_another_run(run_dir, finished, tmp_path):
  """That the same seed is the same run is tested with a failed start."""
  summary = run(tmp_path / 'run', tiny.like(run_dir, seed=1))
  assert summary['parameters_sha256'] != finished[1]['parameters_sha256']


def test_the_best_on_validation_is_what_is_tested(
    run_dir, tmp_path, monkeypatch
):
  """The validation split says step 8 is best; the test split says step 12."""
  evaluate = experiment.Experiment.evaluate

  def rising(self, state, split):
    evaluation = evaluate(self, state, split)
    sign = 1 if split == 'validation' else -1
    mse = 100 + sign * float(state.step)
    return evaluation._replace(metrics=evaluation.metrics | {'mse': mse})

  monkeypatch.setattr(experiment.Experiment, 'evaluate', rising)
  workdir = tmp_path / 'run'
  best = trainer.run(tiny.like(run_dir), str(workdir), test=False)
  assert (best['step'], best['mse']) == (8, 108)
  summary = summary_lib.evaluate_workdir(str(workdir))
  assert (summary['step'], summary['mse']) == (8, 92)


def test_the_optimizer_is_that_of_the_configuration(run_dir):
  """Three updates of AdamW, weight decay on the codebook too, by NumPy."""
  config = tiny.like(
      run_dir, num_steps=10, learning_rate=0.1, weight_decay=0.3, adam_b1=0.8,
      adam_b2=0.7, warmup_fraction=0.2, warmup_factor=0.5,
  )  # fmt: skip
  exp = experiment.Experiment(config)

  @jax.jit
  def values(params):
    state = exp.optimizer.init(params)
    after = []
    for gradient in (1.0, 2.0, 3.0):
      gradients = jax.tree.map(
          lambda p, g=gradient: jnp.full_like(p, g), params
      )
      updates, state = exp.optimizer.update(
          gradients, state, params, quantizer_state={}
      )
      params = jax.tree.map(jnp.add, params, updates)
      after.append(params['quantizer']['codebook'][0])
    return after

  codebook = np.array([2.0], np.float32)
  actual = values({'quantizer': {'codebook': codebook}})
  value, mean, square = 2.0, 0.0, 0.0
  for step, rate in enumerate((0.05, 0.075, 0.1)):
    gradient = 1.0 + step
    mean = 0.8 * mean + 0.2 * gradient
    square = 0.7 * square + 0.3 * gradient**2
    scaled = mean / (1 - 0.8 ** (step + 1))
    scaled /= np.sqrt(square / (1 - 0.7 ** (step + 1))) + 1e-8
    value -= rate * (scaled + 0.3 * value)
    np.testing.assert_allclose(
        actual[step], value, rtol=1e-5, err_msg=f'update {step}'
    )


def test_a_run_has_a_report_before_its_end(copy, tmp_path):
  """It is that of the end where nothing else was learnt."""
  at_the_end = (copy / 'report.html').read_text()
  (copy / 'report.html').unlink()
  assert summary_lib.report_workdir(str(copy)) == copy / 'report.html'
  # The last line of metrics.jsonl, of the test split, has no curve.
  assert (copy / 'report.html').read_text() == at_the_end
  (copy / 'summary.json').unlink()
  (copy / 'metrics.jsonl').unlink()
  summary_lib.report_workdir(str(copy))
  assert not (copy / 'summary.json').exists()
  with pytest.raises(errors.UserError, match='holds no config.json'):
    summary_lib.report_workdir(str(tmp_path))


def test_starting_from_the_parameters_of_another_run(name, tmp_path):
  """Also of one whose state has an average, and counts skipped updates."""
  plain, more = {}, tiny.MORE_STATE
  still = {'learning_rate': 1e-12, 'quantizer__decay': 1 - 1e-6}
  expected = {}
  for number, (fields, source) in enumerate([
      (plain, None),
      # A run that changes nothing.
      (more | still, 0),
      # The average is what is evaluated, and so what another run starts from.
      (more, 0),
      (plain | still, 2),
  ]):
    init_from = '' if source is None else str(tmp_path / str(source))
    config = tiny.small_config(name, init_from=init_from, **fields)
    best = trainer.run(config, str(tmp_path / str(number)), test=False)
    expected[number] = best['mse']
    if 'learning_rate' in fields:
      assert best['mse'] == pytest.approx(expected[source], rel=1e-3), number
  assert expected[2] != pytest.approx(expected[0], rel=2e-3)


def test_a_report_that_fails_loses_nothing(
    run_dir, finished, copy, monkeypatch, caplog
):
  """The run is complete, and its report is written later."""
  (copy / 'summary.json').unlink()
  (copy / 'report.html').unlink()
  with monkeypatch.context() as patch:
    patch.setattr(summary_lib.pages, 'write', None)
    summary = trainer.run(tiny.like(run_dir), str(copy))
  assert 'The report is not written (TypeError' in caplog.text
  assert json.loads((copy / 'summary.json').read_text()) == summary
  assert summary['parameters_sha256'] == finished[1]['parameters_sha256']
  assert not (copy / 'report.html').exists()
  assert trainer.run(tiny.like(run_dir), str(copy)) == summary
  assert (copy / 'report.html').exists()


def test_a_run_does_not_continue_with_other_images(run_dir, name, copy):
  unfinish(copy)
  before = (copy / 'metrics.jsonl').read_text()
  splits, on_device = data_lib.load(name)
  others = splits._replace(train=splits.train[::-1])
  with pytest.raises(errors.UserError, match='not the images that the run'):
    trainer.run(tiny.like(run_dir), str(copy), loaded=(others, on_device))
  assert (copy / 'metrics.jsonl').read_text() == before, 'it trained'
