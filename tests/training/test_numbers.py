"""Numbers that are not finite, or all alike: named, or skipped if wished."""

import json
import math
import shutil

import chex
import jax
import numpy as np
import optax
import pytest
import tiny

from gmvq_jax.data import pipeline
from gmvq_jax.nn import autoencoder
from gmvq_jax.runtime import errors
from gmvq_jax.training import build
from gmvq_jax.training import checkpoint
from gmvq_jax.training import config as config_lib
from gmvq_jax.training import experiment
from gmvq_jax.training import summary as summary_lib
from gmvq_jax.training import train_step
from gmvq_jax.training import trainer


@pytest.fixture(scope='module')
def name(tmp_path_factory, photographs):
  return tiny.save_images(tmp_path_factory.mktemp('data'), photographs)


def skipping(data_name):
  """Skips two updates in a row; the loss is NaN for white images."""
  return tiny.small_config(data_name, **tiny.MORE_STATE)


def strict(workdir):
  """Returns the records of a run; NaN and Infinity are no JSON."""

  def refuse(constant):
    raise AssertionError(constant)

  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line, parse_constant=refuse) for line in lines]


def test_a_skipped_update_leaves_everything_as_it_was(name):
  """Parameters, moments, averages, statistics, and a quantizer's state."""
  exp = experiment.Experiment(skipping(name))
  step = exp.make_train_step()
  images = exp.splits.train[:48].reshape(3, 16, 16, 16, 3)
  images[1] = 255
  states, metrics = [], []
  state = exp.init_state()
  for batch in images:
    state, of_step = step(state, batch)
    states.append(jax.device_get(state))
    metrics.append(jax.device_get(of_step))
  before, after, last = states
  assert metrics[0]['skipped_updates'] == 0
  assert metrics[1]['skipped_updates'] == metrics[1]['skipped_in_a_row'] == 1
  assert before.variables.quantizer_state and before.variables.batch_stats
  for field in ('variables', 'ema_params', 'key', 'eval_batch_stats'):
    chex.assert_trees_all_equal(getattr(after, field), getattr(before, field))
  chex.assert_trees_all_equal(
      after.opt_state.inner.inner_state, before.opt_state.inner.inner_state
  )
  assert after.step == before.step + 1
  assert metrics[2]['skipped_updates'] == 1
  assert metrics[2]['skipped_in_a_row'] == 0
  assert np.isfinite(metrics[2]['loss'])
  for field in ('variables', 'ema_params'):
    old, new = (
        jax.tree.leaves(getattr(state, field))[0] for state in (after, last)
    )
    assert not np.array_equal(old, new), field


def test_what_a_skipped_step_has_replaced_is_not_remembered():
  """Neither in the quantizer's state nor in the optimizer's."""
  config = tiny.method_config('vqvae+replace')
  config.skip_nonfinite = 2
  old = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), build.abstract_state(config, 3)
  )
  new = jax.tree.map(lambda x: x + x.dtype.type(1), old)
  expected = {False: old, True: new}
  for finite, kept in expected.items():
    skipping = new.opt_state.inner._replace(last_finite=np.bool_(finite))
    step = new._replace(opt_state=new.opt_state._replace(inner=skipping))
    result = train_step._unless_skipped(step, old)
    assert result.step == 1
    assert result.opt_state.inner.total_notfinite == 1
    for field in ('replaced', 'unused', 'offset'):
      chex.assert_trees_all_equal(
          result.variables.quantizer_state[field],
          kept.variables.quantizer_state[field],
      )
    chex.assert_trees_all_equal(
        result.opt_state.replaced, kept.opt_state.replaced
    )


def test_a_run_names_what_it_skips_and_goes_on(tmp_path, photographs, capsys):
  """White images in the batches of steps 3 and 8."""
  images = photographs.copy()
  order = pipeline.Order(480, 16, 0)
  images[[order[2][5], order[7][0]]] = 255
  config = skipping(tiny.save_images(tmp_path, images))
  best = trainer.run(config, str(tmp_path / 'run'), test=False)
  assert math.isfinite(best['mse'])
  lines = capsys.readouterr().out.splitlines()
  skipped = [line for line in lines if line.endswith('; skipped')]
  assert [line.partition(':')[0] for line in skipped] == ['step 3', 'step 8']
  logged = {r['step']: r for r in strict(tmp_path / 'run') if 'split' not in r}
  assert logged[4]['skipped_updates'] == 1
  assert logged[12]['skipped_updates'] == 2
  assert [step for step in logged if 'loss' not in logged[step]] == [8]


def test_too_many_in_a_row_end_a_run(tmp_path, photographs):
  images = np.full_like(photographs, 255)
  config = skipping(tiny.save_images(tmp_path, images))
  with pytest.raises(errors.DivergedError, match='step 3: loss is nan'):
    trainer.run(config, str(tmp_path / 'run'))


def test_gradients_are_clipped_to_the_norm(rng):
  def optimizer(**fields):
    config = tiny.config('', **fields)
    return build.build(config, build.numbers_of(config), 3, 12).optimizer

  clipped, plain = optimizer(clip_norm=0.5), optimizer()
  quantizer = {'codebook': np.ones((16, 4), np.float32)}
  still = jax.tree.map(np.zeros_like, quantizer)
  params = {'w': np.ones(9, np.float32), 'quantizer': quantizer}

  def square(optimizer, gradient):
    """Returns the second moment of `w` after one update."""
    _, state = optimizer.update(
        {'w': gradient, 'quantizer': still},
        optimizer.init(params),
        params,
        quantizer_state={},
    )
    return optax.tree.get(state, 'nu')['w']

  @jax.jit
  def moments(gradient, factor):
    return square(clipped, gradient), square(plain, factor * gradient)

  for norm, factor in ((5.0, 0.1), (0.1, 1.0)):
    gradient = rng.normal(size=9).astype(np.float32)
    gradient *= norm / np.linalg.norm(gradient)
    np.testing.assert_allclose(
        *moments(gradient, factor), rtol=1e-5, err_msg=f'norm {norm}'
    )


def ends_well(config, workdir):
  assert trainer.run(config, str(workdir), test=False)
  summary = summary_lib.evaluate_workdir(str(workdir))
  numbers = [x for x in summary.values() if isinstance(x, float)]
  assert all(map(math.isfinite, numbers)), summary
  assert strict(workdir)


def test_learning_rates_that_are_too_high(trained, tmp_path):
  """AdamW and batch norms bear a thousand, to no good end."""
  high = tiny.like(trained[0], learning_rate=1e3)
  ends_well(high, tmp_path / 'high')
  higher = tiny.like(trained[0], learning_rate=1e6)
  with pytest.raises(errors.DivergedError, match=r'step \d+: loss is nan'):
    trainer.run(higher, str(tmp_path / 'higher'))


OTHERS = ('sqvae', 'vqvae+replace')


def of_method(name, method):
  config = tiny.config(name)
  config.quantizer = config_lib.quantizer_config(method)
  config.quantizer.num_codes, config.quantizer.dim = 16, 4
  return config


def check_warning(output, what):
  """Checks that a run warns once, at its first step."""
  assert output.count(what) == 1
  assert f'step 1: {what}' in output


def save_equal_images(path, photographs, kind):
  one = photographs[0] if kind == 'all equal' else np.uint8(7)
  return tiny.save_images(path, np.broadcast_to(one, photographs.shape))


def test_images_without_difference(trained, tmp_path, photographs, capsys):
  name = save_equal_images(tmp_path, photographs, 'constant')
  ends_well(tiny.like(trained[0], data__name=name), tmp_path / 'run')
  check_warning(
      capsys.readouterr().out, 'all images of the batch are equally bright'
  )


def test_a_dead_encoder(trained, tmp_path, capsys):
  """Its latents are 0, whatever the image, as its last layer is."""
  source = tmp_path / 'source'
  source.mkdir()
  shutil.copy(trained[0] / 'config.json', source)
  config = tiny.like(trained[0])
  state = tiny.random_arrays(experiment.Experiment(config).abstract_state())
  encoder = state.variables.params['encoder']
  for head in ('Conv_0', 'Conv_1'):
    encoder[head] = jax.tree.map(np.zeros_like, encoder[head])
  checkpoints = checkpoint.Checkpoints(source)
  checkpoints.save(1, state, {}, {'mse': 0.0})
  checkpoints.close()
  # The encoder remains dead at this rate.
  config = tiny.like(trained[0], init_from=str(source), learning_rate=1e-12)
  ends_well(config, tmp_path / 'run')
  check_warning(
      capsys.readouterr().out, 'all latents of the batch are the same'
  )


@pytest.mark.slow
@pytest.mark.parametrize(
    'method, kind',
    [('sqvae', 'all equal'), ('vqvae+replace', 'constant')],
)
def test_images_without_difference_and_other_methods(
    tmp_path, photographs, capsys, kind, method
):
  name = save_equal_images(tmp_path, photographs, kind)
  ends_well(of_method(name, method), tmp_path / 'run')
  check_warning(
      capsys.readouterr().out, 'all images of the batch are equally bright'
  )


@pytest.mark.slow
@pytest.mark.parametrize('method', ['gmvq', *OTHERS])
def test_a_dead_encoder_at_any_rate(
    name, tmp_path, capsys, monkeypatch, method
):
  encode = autoencoder.Autoencoder.encode

  def dead(self, *args, **kwargs):
    h, variables = encode(self, *args, **kwargs)
    return 0 * h, variables

  monkeypatch.setattr(autoencoder.Autoencoder, 'encode', dead)
  build._programs.cache_clear()
  ends_well(of_method(name, method), tmp_path / 'run')
  build._programs.cache_clear()
  check_warning(
      capsys.readouterr().out, 'all latents of the batch are the same'
  )
