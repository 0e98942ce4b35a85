"""Numbers that go wrong: they are seen, named, and left out if so wished."""

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from gmvq_jax import autoencoder
from gmvq_jax import config as config_lib
from gmvq_jax import errors
from gmvq_jax import programs
from gmvq_jax import schedules
from gmvq_jax import train
from gmvq_jax import train_step

WHITE = '''
import jax.numpy as jnp

def loss(decoded, images):
  """NaN for images that are white."""
  error = jnp.mean(jnp.square(decoded - images), axis=(1, 2, 3))
  return error * jnp.where(jnp.min(images, axis=(1, 2, 3)) == 1, jnp.nan, 1)
'''


@pytest.fixture
def name(tmp_path, photographs):
  return tiny.save_images(tmp_path, photographs)


@pytest.fixture
def some_white(tmp_path, photographs, monkeypatch):
  """Makes a data set with white images, and a loss that is NaN there."""
  (tmp_path / 'white_is_nan.py').write_text(WHITE)
  monkeypatch.syspath_prepend(tmp_path)

  def make(where):
    images = photographs.copy()
    images[where] = 255
    return tiny.save_images(tmp_path, images)

  return make


def strict(workdir):
  """Returns the records of a run; NaN and Infinity are no JSON."""

  def refuse(constant):
    raise AssertionError(constant)

  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line, parse_constant=refuse) for line in lines]


def run(name, tmp_path, **fields):
  return train.run(tiny.config(name, **fields), str(tmp_path / 'run'))


def test_a_skipped_update_leaves_everything_as_it_was(name):
  """Parameters, moments, averages, statistics, and a quantizer's state."""
  config = tiny.config(name, skip_nonfinite=3)
  parts = programs.build(config, programs.numbers_of(config), 3, 12)
  images = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 16, 3))
  images = jnp.asarray(images, jnp.uint8).at[1].set(255)
  state = train_step.init_state(
      jax.random.key(0), parts.model, parts.optimizer, images[0],
      kmeans=False, ema=True,
  )  # fmt: skip
  step = train_step.make_train_step(
      parts.model,
      parts.optimizer,
      schedules.temperature(1.0, 0.5, 12),
      reconstruction_loss=lambda decoded, images: (
          jnp.where(jnp.min(images) == 1, jnp.nan, 1)
          * jnp.mean((decoded - images) ** 2, axis=(1, 2, 3))
      ),
      ema_decay=0.9,
  )
  state, metrics = step(state, images[0])
  assert metrics['skipped_updates'] == 0
  before = jax.device_get(state)
  state, metrics = step(state, images[1])
  assert metrics['skipped_updates'] == metrics['skipped_in_a_row'] == 1
  after = jax.device_get(state)
  for field in ('variables', 'ema_params', 'key', 'eval_batch_stats'):
    chex.assert_trees_all_equal(getattr(after, field), getattr(before, field))
  chex.assert_trees_all_equal(
      after.opt_state.inner_state, before.opt_state.inner_state
  )
  assert after.step == before.step + 1
  state, metrics = step(state, images[2])
  assert metrics['skipped_updates'] == 1
  assert metrics['skipped_in_a_row'] == 0
  assert np.isfinite(metrics['loss'])


def test_a_run_names_what_it_skips_and_goes_on(some_white, tmp_path, capsys):
  data = some_white([100, 200, 300])
  summary = run(
      data,
      tmp_path,
      num_steps=30,
      eval_every_steps=30,
      checkpoint_every_steps=30,
      log_every_steps=1,
      skip_nonfinite=2,
      reconstruction_loss='white_is_nan:loss',
  )
  assert math.isfinite(summary['mse'])
  lines = capsys.readouterr().out.splitlines()
  skipped = [line for line in lines if line.endswith('; skipped')]
  batches = [r for r in strict(tmp_path / 'run') if 'split' not in r]
  assert 1 <= len(skipped) <= 3
  assert batches[-1]['skipped_updates'] == len(skipped)
  assert sum('loss' not in record for record in batches) == len(skipped)


def test_too_many_in_a_row_end_a_run(some_white, tmp_path):
  data = some_white(slice(None))
  with pytest.raises(errors.DivergedError, match='step 3: loss is nan'):
    run(
        data,
        tmp_path,
        skip_nonfinite=2,
        reconstruction_loss='white_is_nan:loss',
    )


def test_gradients_are_clipped_to_the_norm(name, rng):
  config = tiny.config(name, clip_norm=0.5)
  clipped = programs.build(config, programs.numbers_of(config), 3, 12).optimizer
  plain = programs.build(
      tiny.config(name), programs.numbers_of(config), 3, 12
  ).optimizer
  params = {'w': jnp.asarray(rng.normal(size=9))}
  for norm, factor in ((5.0, 0.1), (0.1, 1.0)):
    gradient = rng.normal(size=9)
    gradient *= norm / np.linalg.norm(gradient)
    state = clipped.update({'w': gradient}, clipped.init(params), params)[1]
    expected = plain.update(
        {'w': factor * gradient}, plain.init(params), params
    )[1]
    moments = [optax.tree.get(s, 'nu')['w'] for s in (state, expected)]
    np.testing.assert_allclose(*moments, rtol=1e-5)


def ends_well(config, tmp_path):
  summary = train.run(config, str(tmp_path / 'run'))
  numbers = [x for x in summary.values() if isinstance(x, float)]
  assert all(map(math.isfinite, numbers))
  assert strict(tmp_path / 'run')


def test_learning_rates_that_are_too_high(name, tmp_path):
  """AdamW and batch norms bear a thousand, to no good end."""
  ends_well(tiny.config(name, learning_rate=1e3), tmp_path / 'high')
  with pytest.raises(errors.DivergedError, match=r'step \d+: loss is nan'):
    run(name, tmp_path, learning_rate=1e6)


METHODS = ('gmvq', 'sqvae', 'vqvae+replace')


def of_method(name, method):
  config = tiny.config(name)
  config.quantizer = config_lib.quantizer_config(method)
  config.quantizer.num_codes, config.quantizer.dim = 16, 4
  return config


@pytest.mark.parametrize(
    'method, kind',
    zip(METHODS, ('constant', 'all equal', 'constant'), strict=True),
)
def test_images_without_difference(
    tmp_path, photographs, capsys, kind, method
):
  one = photographs[0] if kind == 'all equal' else np.uint8(7)
  images = np.broadcast_to(one, photographs.shape)
  name = tiny.save_images(tmp_path, images)
  ends_well(of_method(name, method), tmp_path)
  said = capsys.readouterr().out
  assert said.count('all images of the batch are equally bright') == 1
  assert 'step 1: all images of the batch are equally bright' in said


@pytest.mark.parametrize('method', METHODS)
def test_a_dead_encoder(name, tmp_path, capsys, monkeypatch, method):
  """Its latents are 0, whatever the image."""
  encode = autoencoder.Autoencoder.encode

  def dead(self, *args, **kwargs):
    h, variables = encode(self, *args, **kwargs)
    return 0 * h, variables

  monkeypatch.setattr(autoencoder.Autoencoder, 'encode', dead)
  programs._programs.cache_clear()
  ends_well(of_method(name, method), tmp_path)
  programs._programs.cache_clear()
  said = capsys.readouterr().out
  assert said.count('all latents of the batch are the same') == 1
  assert 'step 1: all latents of the batch are the same' in said
