"""Whole runs, in this process: what they write, and that they learn."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tiny

from gmvq_jax import checkpoint
from gmvq_jax import config as config_lib
from gmvq_jax import errors
from gmvq_jax import experiment
from gmvq_jax import results
from gmvq_jax import schedules
from gmvq_jax import train

SUMMARY = {
    'mse', 'psnr', 'ssim', 'perplexity', 'soft_perplexity', 'codes_used',
    'quantization_error', 'bits_per_image', 'step', 'images_per_second',
    'parameters_sha256',
}  # fmt: skip


@pytest.fixture
def name(tmp_path, photographs):
  return tiny.save_images(tmp_path, photographs)


def records(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_what_a_run_leaves_behind(name, tmp_path, capsys):
  workdir = tmp_path / 'run'
  summary = train.run(tiny.config(name), str(workdir))
  assert SUMMARY <= set(summary)
  assert json.loads((workdir / 'summary.json').read_text()) == summary
  stored = json.loads((workdir / 'config.json').read_text())
  assert stored == tiny.config(name).to_dict()
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
  again = results.evaluate_workdir(str(workdir))
  for key in set(again):
    assert again[key] == summary[key]
  assert 'validation at step 12: mse' in capsys.readouterr().out


def test_it_learns(name, tmp_path):
  """MSE falls below a quarter of what the mean would give; codes spread."""
  workdir = tmp_path / 'run'
  config = tiny.config(
      name, num_steps=300, eval_every_steps=100, checkpoint_every_steps=300,
      batch_size=32, network__width=32, quantizer__dim=32,
      quantizer__num_codes=64,
  )  # fmt: skip
  summary = train.run(config, str(workdir))
  with np.load(tmp_path / 'images.npz') as images:
    variance = np.var(images['test'] / 255)
  assert summary['mse'] < 0.25 * variance
  validation = [r for r in records(workdir) if r.get('split') == 'validation']
  assert validation[-1]['mse'] < validation[0]['mse']
  assert summary['perplexity'] > 24


def test_where_images_are_kept_changes_nothing(name, tmp_path):
  """Not the parameters' last bit, and a run may go on with another place."""
  hashes = {}
  for keep in ('device', 'memory', 'stream'):
    config = tiny.config(name, data__keep=keep)
    summary = train.run(config, str(tmp_path / keep))
    hashes[keep] = summary['parameters_sha256']
  assert len(set(hashes.values())) == 1
  (tmp_path / 'device' / 'summary.json').unlink()
  shutil.rmtree(tmp_path / 'device' / 'checkpoints' / '12')
  config = tiny.config(name, data__keep='stream')
  again = train.run(config, str(tmp_path / 'device'))
  assert again['parameters_sha256'] == hashes['device']


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:coroutine')
def test_starting_from_another_runs_parameters(name, tmp_path):
  first = train.run(tiny.config(name), str(tmp_path / 'first'))
  config = tiny.config(
      name, init_from=str(tmp_path / 'first'), num_steps=1, learning_rate=1e-12
  )
  second = train.run(config, str(tmp_path / 'second'))
  assert second['mse'] == pytest.approx(first['mse'], rel=1e-3)
  assert second['step'] == 1
  with pytest.raises(errors.UserError, match='holds no config.json'):
    train.run(tiny.config(name, init_from='/no/where'), str(tmp_path / 'x'))
  wider = tiny.config(
      name, init_from=str(tmp_path / 'first'), network__width=12
  )
  with pytest.raises(errors.UserError, match='none of its checkpoints can be'):
    train.run(wider, str(tmp_path / 'y'))


def test_a_finished_run_is_not_run_again(name, tmp_path):
  once = train.run(tiny.config(name), str(tmp_path / 'run'))
  before = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  again = train.run(tiny.config(name), str(tmp_path / 'run'))
  assert again == once
  assert (tmp_path / 'run' / 'metrics.jsonl').read_text() == before


def test_a_changed_config_json_is_not_believed(name, tmp_path):
  train.run(tiny.config(name), str(tmp_path))
  results.evaluate_workdir(str(tmp_path))
  path = tmp_path / 'config.json'
  path.write_text(path.read_text().replace('"beta": 10.0', '"beta": 18.0'))
  with pytest.raises(errors.UserError, match='config.json: is not the config'):
    results.evaluate_workdir(str(tmp_path))


def test_another_configuration_is_refused_and_nothing_lost(name, tmp_path):
  train.run(tiny.config(name), str(tmp_path / 'run'))
  files = {
      p: p.read_bytes() for p in (tmp_path / 'run').iterdir() if p.is_file()
  }
  for field, value in (('num_steps', 24), ('quantizer__beta', 2.0)):
    with pytest.raises(errors.UserError, match=field.replace('__', '.')):
      train.run(tiny.config(name, **{field: value}), str(tmp_path / 'run'))
  for path, content in files.items():
    assert path.read_bytes() == content
  (tmp_path / 'run' / 'config.json').unlink()
  with pytest.raises(errors.UserError, match='no config.json'):
    train.run(tiny.config(name), str(tmp_path / 'run'))


def test_a_loss_that_is_not_finite_stops_the_run(name, tmp_path, monkeypatch):
  """At a rate that grows out of all bounds after step 4 is saved."""
  monkeypatch.setattr(
      schedules,
      'learning_rate',
      lambda *_, **__: lambda step: jnp.where(step < 5, 0.3, 1e38),
  )
  config = tiny.config(name, log_every_steps=1)
  with pytest.raises(errors.UserError, match=r'step [67]: .*norm is') as error:
    train.run(config, str(tmp_path / 'run'))
  assert 'the last good checkpoint is of step 4' in str(error.value)
  assert '\n' not in str(error.value)
  for record in records(tmp_path / 'run'):
    assert np.isfinite(record['loss'])
  state, *_ = checkpoint.Checkpoints(tmp_path / 'run').restore_latest(
      experiment.Experiment(config).abstract_state()
  )
  chex.assert_tree_all_finite(state.variables)


def test_num_steps_come_from_the_epochs(name):
  config = tiny.config(name, num_steps=0, num_epochs=3)
  assert config_lib.num_steps(config, 480) == 90


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('network__num_downsamplings', 5, 'cannot be halved'),
        ('init_from', '/no/where', 'holds no config.json'),
    ],
)
def test_a_bad_start_leaves_no_run_behind(
    name, tmp_path, field, value, message
):
  config = tiny.config(name, **{field: value})
  with pytest.raises(errors.UserError, match=message):
    train.run(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'config.json').exists()
  assert train.run(tiny.config(name), str(tmp_path / 'run'))


def test_the_best_on_validation_is_what_is_tested(name, tmp_path, monkeypatch):
  """Validation says step 4 is best; test would say step 12."""
  evaluate = experiment.Experiment.evaluate

  def rising(self, state, split):
    evaluation = evaluate(self, state, split)
    sign = 1 if split == 'validation' else -1
    mse = 100 + sign * float(state.step)
    return evaluation._replace(metrics=evaluation.metrics | {'mse': mse})

  monkeypatch.setattr(experiment.Experiment, 'evaluate', rising)
  config = tiny.config(name, eval_every_steps=4)
  summary = train.run(config, str(tmp_path / 'run'))
  assert summary['step'] == 4
  assert summary['mse'] == 96


def test_a_checkpoint_never_evaluated_is_fit_to_be(name, tmp_path):
  """One saved between evaluations has statistics gathered for it."""
  config = tiny.config(name, eval_every_steps=12)
  train.run(config, str(tmp_path / 'run'))
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')
  exp = experiment.Experiment(config)
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run')
  state, place, step = checkpoints.restore_latest(exp.abstract_state())
  assert step == place['batches']['next_index'] == 8
  chex.assert_trees_all_close(state, exp.calibrate(state), rtol=1e-5)


def test_the_optimiser_is_that_of_the_configuration(name):
  """Two updates of AdamW, weight decay on the codebook too, by NumPy."""
  config = tiny.config(
      name, num_steps=10, learning_rate=0.1, weight_decay=0.3, adam_b1=0.8,
      adam_b2=0.7, warmup_fraction=0.2, warmup_factor=0.5,
  )  # fmt: skip
  exp = experiment.Experiment(config)
  params = {'quantizer': {'codebook': jnp.asarray([2.0])}}
  state = exp.optimizer.init(params)
  value, mean, square = 2.0, 0.0, 0.0
  for step, rate in enumerate((0.05, 0.075, 0.1)):
    gradient = 1.0 + step
    updates, state = exp.optimizer.update(
        jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), params),
        state,
        params,
    )
    params = jax.tree.map(jnp.add, params, updates)
    mean = 0.8 * mean + 0.2 * gradient
    square = 0.7 * square + 0.3 * gradient**2
    scaled = mean / (1 - 0.8 ** (step + 1))
    scaled /= np.sqrt(square / (1 - 0.7 ** (step + 1))) + 1e-8
    value -= rate * (scaled + 0.3 * value)
    np.testing.assert_allclose(
        params['quantizer']['codebook'][0], value, rtol=1e-5
    )


def test_a_seed_is_a_run(name, tmp_path):
  fields = dict(num_steps=2, eval_every_steps=2)
  hashes = [
      train.run(
          tiny.config(name, seed=seed, **fields), str(tmp_path / run)
      )['parameters_sha256']
      for run, seed in (('a', 0), ('b', 0), ('c', 1))
  ]
  assert hashes[0] == hashes[1] != hashes[2]


def test_a_run_has_a_report_before_its_end(name, tmp_path):
  """And it is the same as at the end, where nothing else was learnt."""
  workdir = tmp_path / 'run'
  train.run(tiny.config(name), str(workdir))
  at_the_end = (workdir / 'report.html').read_text()
  (workdir / 'report.html').unlink()
  assert results.report_workdir(str(workdir)) == workdir / 'report.html'
  # The last line of metrics.jsonl, of the test split, has no curve.
  assert (workdir / 'report.html').read_text() == at_the_end
  (workdir / 'summary.json').unlink()
  (workdir / 'metrics.jsonl').unlink()
  results.report_workdir(str(workdir))
  assert not (workdir / 'summary.json').exists()
  with pytest.raises(errors.UserError, match='holds no config.json'):
    results.report_workdir(str(tmp_path))


def test_starting_from_a_state_of_another_kind(name, tmp_path):
  """With an average there and none here, and the other way round."""
  averaged = {'ema_decay': 0.9}
  for there, here in (
      (averaged, {'clip_norm': 1.0, 'skip_nonfinite': 2}),
      ({'skip_nonfinite': 1}, averaged),
  ):
    first = tmp_path / f'first {there}'
    summary = train.run(tiny.config(name, **there), str(first))
    config = tiny.config(
        name, init_from=str(first), num_steps=1, learning_rate=1e-12, **here
    )
    second = train.run(config, str(tmp_path / f'second {here}'))
    assert second['mse'] == pytest.approx(summary['mse'], rel=1e-3)


def test_a_report_that_fails_loses_nothing(name, tmp_path, monkeypatch, caplog):
  """The run is complete, and its report is written when it can be."""
  workdir = tmp_path / 'run'
  with monkeypatch.context() as patch:
    patch.setattr(results.report, 'write', None)
    summary = train.run(tiny.config(name), str(workdir))
  assert 'The report is not written (TypeError' in caplog.text
  assert json.loads((workdir / 'summary.json').read_text()) == summary
  assert not (workdir / 'report.html').exists()
  assert train.run(tiny.config(name), str(workdir)) == summary
  assert (workdir / 'report.html').exists()


def test_a_run_does_not_go_on_with_other_images(name, tmp_path, photographs):
  workdir = tmp_path / 'run'
  train.run(tiny.config(name), str(workdir))
  (workdir / 'summary.json').unlink()
  shutil.rmtree(workdir / 'checkpoints' / '12')
  tiny.save_images(tmp_path, photographs[::-1])
  with pytest.raises(errors.UserError, match='not the images that the run'):
    train.run(tiny.config(name), str(workdir))
