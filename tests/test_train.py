"""Whole runs, in this process: what they write, and that they learn."""

import json

import numpy as np
from PIL import Image
import pytest
import tiny

from gmvq_jax import config as config_lib
from gmvq_jax import errors
from gmvq_jax import experiment
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
  picture = Image.open(workdir / 'pictures' / 'step_00000012.png')
  assert picture.size == (2 * 16 * 18, 2 * 4 * 18)
  # Evaluating it again gives the same.
  again = train.evaluate_workdir(str(workdir))
  for key in set(again):
    assert again[key] == summary[key]
  assert 'validation at step 12: mse' in capsys.readouterr().out


def test_it_learns(name, tmp_path):
  """MSE falls below half of what guessing the mean gives; codes spread."""
  workdir = tmp_path / 'run'
  config = tiny.config(
      name, num_steps=300, eval_every_steps=100, checkpoint_every_steps=300,
      network__width=16, quantizer__dim=16, quantizer__weight_scale=4.0,
      learning_rate=1e-2, quantizer__num_codes=64, kmeans__images=32,
  )  # fmt: skip
  summary = train.run(config, str(workdir))
  with np.load(tmp_path / 'images.npz') as images:
    variance = np.var(images['test'] / 255)
  assert summary['mse'] < 0.25 * variance
  validation = [r for r in records(workdir) if r.get('split') == 'validation']
  assert validation[-1]['mse'] < validation[0]['mse']
  assert summary['perplexity'] > 24


def test_a_runs_epoch_visits_every_image_once(name, tmp_path, monkeypatch):
  seen = []
  make = experiment.Experiment.make_train_step

  def spy(self):
    step = make(self)

    def record(state, images, order, offset):
      seen.extend(np.asarray(order[offset : offset + 16]))
      return step(state, images, order, offset)

    return record

  monkeypatch.setattr(experiment.Experiment, 'make_train_step', spy)
  train.run(tiny.config(name, num_steps=0, num_epochs=2), str(tmp_path / 'run'))
  first, second = seen[:480], seen[480:]
  assert sorted(first) == sorted(second) == list(range(480))
  assert first != second


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


def test_a_loss_that_is_not_finite_stops_the_run(name, tmp_path):
  config = tiny.config(name, learning_rate=1e30, log_every_steps=1)
  with pytest.raises(errors.UserError, match=r'step \d+: the loss is') as error:
    train.run(config, str(tmp_path / 'run'))
  assert 'checkpoint' in str(error.value)
  for record in records(tmp_path / 'run'):
    assert np.isfinite(record['loss'])


def test_num_steps_come_from_the_epochs(name):
  config = tiny.config(name, num_steps=0, num_epochs=3)
  assert config_lib.num_steps(config, 480) == 90


def test_a_bad_start_leaves_no_run_behind(name, tmp_path):
  config = tiny.config(name, network__num_downsamplings=5)
  with pytest.raises(errors.UserError, match='cannot be halved'):
    train.run(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'config.json').exists()
  assert train.run(tiny.config(name), str(tmp_path / 'run'))
