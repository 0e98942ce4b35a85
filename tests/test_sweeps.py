"""The sweeps of gmvq_jax.experiments: what is run, and what is made of it."""

import json
import math
import pathlib

from ml_collections import ConfigDict
import numpy as np
import pytest
import test_main
import tiny

from gmvq_jax import errors
from gmvq_jax import records
from gmvq_jax import train
from gmvq_jax.experiments import ablations
from gmvq_jax.experiments import entropy_sweep
from gmvq_jax.experiments import sweep

PAGES = pathlib.Path('docs/results')
SWEEPS = (entropy_sweep.EXPERIMENT, ablations.EXPERIMENT)


def results_of(mse, fields=None):
  """Returns results of made-up runs, `{variant: [of each seed]}`."""
  return {
      'runs': [
          {
              'variant': variant,
              'fields': (fields or {}).get(variant, {}),
              'seed': seed,
              'failure': None if value else 'the loss is nan',
              'metrics': {
                  'mse': value, 'perplexity': 1e5 * value,
                  'posterior_entropy': 1.5,
              } if value else {},
          }
          for variant, values in mse.items()
          for seed, value in enumerate(values)
      ]
  }  # fmt: skip


def of_betas(mse):
  """Returns the same by β."""
  return results_of(
      {f'beta_{beta:g}': values for beta, values in mse.items()},
      {f'beta_{beta:g}': {'quantizer.beta': beta} for beta in mse},
  )


def test_a_sweep_from_start_to_end(tmp_path, photographs, monkeypatch):
  """Each variant by each seed, once; the same again is nothing."""
  config = tiny.config(
      tiny.save_images(tmp_path, photographs), num_steps=4, eval_every_steps=4
  )
  seen, run = [], train.run

  def spy(config, workdir, *, loaded):
    seen.append((config.quantizer.beta, config.seed, config.num_steps))
    return run(config, workdir, loaded=loaded)

  monkeypatch.setattr(train, 'run', spy)

  def do(**options):
    return sweep.run(
        config, entropy_sweep.variants_of(['10', '0']), (1,),
        str(tmp_path / 'sweep'), **options,
    )  # fmt: skip

  counts = []
  results = do(command='it', each=lambda r: counts.append(len(r['runs'])))
  assert seen == [(0, 1, 4), (10, 1, 4)]
  assert counts == [1, 2]
  assert results['command'] == 'it' and results['config']['num_steps'] == 4
  assert {'hardware', 'versions', 'commit'} < set(results)
  mse = sweep.values_of(results, 'mse')
  assert list(mse) == ['beta_0', 'beta_10']
  assert mse['beta_0'][1] != mse['beta_10'][1] > 0
  assert do()['runs'] == results['runs']
  assert len(seen) == 2
  sweep.write(entropy_sweep.EXPERIMENT, results, str(tmp_path / 'output'))
  written = json.loads((tmp_path / 'output/entropy_sweep.json').read_text())
  assert written == results
  assert 'perplexity' in (tmp_path / 'output/entropy_sweep.svg').read_text()


def test_a_signal_ends_a_sweep(tmp_path, photographs, monkeypatch):
  config = tiny.config(tiny.save_images(tmp_path, photographs))
  monkeypatch.setattr(records, 'run', lambda *args: None)
  assert sweep.run(config, {'default': {}}, (0,), str(tmp_path / 's')) is None


@pytest.mark.parametrize('betas', [['x'], ['-1'], ['1', '1.0'], ['inf'], []])
def test_weights_that_are_none(betas):
  with pytest.raises(errors.UserError, match=f'--betas={",".join(betas)}: '):
    entropy_sweep.variants_of(betas)


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path):
  config = tiny.config('array:nowhere.npz')
  workdir = str(tmp_path / 'sweep')
  with pytest.raises(errors.UserError, match='--seeds=1,1: must be different'):
    sweep.run(config, {'default': {}}, (1, 1), workdir)
  with pytest.raises(errors.UserError, match="quantizer.latent='None'"):
    sweep.run(config, {'odd': {'quantizer.latent': 'None'}}, (0,), workdir)
  with pytest.raises(errors.UserError, match='quantizer.name=vqvae: must be'):
    sweep.run(tiny.method_config('vqvae'), {'default': {}}, (0,), workdir)
  assert not (tmp_path / 'sweep').exists()
  with pytest.raises(errors.UserError, match='--only=softer: is none of'):
    ablations.variants_of(['softer'])


@pytest.mark.parametrize('name', ['entropy_sweep', 'ablations'])
def test_the_command_line(name, tmp_path):
  def call(*flags):
    result = test_main.call(*flags, module=f'gmvq_jax.experiments.{name}')
    assert result.returncode == 2
    return result.stderr

  assert 'error: --config is missing' in call()
  assert 'error: --seeds=a: must be numbers' in call(
      '--config=cifar10', '--seeds=a'
  )
  assert 'error: --workdir is missing' in call('--config=cifar10')


def test_all_choices_can_be_configured():
  """With a default beside each that is different."""
  from gmvq_jax import config as config_lib
  from gmvq_jax import named_configs

  config = tiny.config('cifar10')
  assert named_configs.find('cifar10')
  for name, fields in ablations.variants_of([]).items():
    varied = ConfigDict(config.to_dict())
    varied.update_from_flattened_dict(fields)
    config_lib.validate(varied)
    flat = config_lib.flatten(config)
    assert name == 'default' or all(flat[k] != v for k, v in fields.items())


def test_effects_are_paired_and_pooled():
  """By hand: the spread of seeds cancels, that of differences counts."""
  mse = {
      'default': [0.004, 0.008],
      'soft': [0.0044, 0.0088],  # A tenth more, whatever the seed.
      'linear': [0.004 * 1.02, 0.008 / 1.02],
      'batch': [0.004 * 1.02**2, 0.008],
  }
  found = ablations.effects(results_of(mse))
  np.testing.assert_allclose(found['soft'].percent, 10)
  np.testing.assert_allclose(found['linear'].percent, 0, atol=1e-9)
  np.testing.assert_allclose(found['batch'].percent, 2)
  # Squares about the means: 0, 2 a^2 and 2 a^2 with a = log 1.02; 3 degrees.
  spread = math.sqrt(4 / 3) * math.log(1.02)
  assert [name for name in found if found[name].matters] == ['soft']
  assert math.log(1.02) < 2 * spread / math.sqrt(2) < math.log(1.1)


def test_tables_say_what_diverged():
  mse = {'default': [0.004, 0.005], 'no_kmeans': [None, None]}
  assert '| a random codebook | diverged |' in ablations.table(results_of(mse))
  assert 'a random codebook' not in ablations.figure(results_of(mse))


def test_trends_are_of_ranks():
  falling = of_betas({0.0: [0.009, 0.008], 1.0: [0.007, 0.006], 10.0: [0.005]})
  mse, perplexity = entropy_sweep.trends(falling)
  # Spearman's, with ties among betas: by hand -2.5 ... of ranks 1.5 1.5 3.5 3.5
  # and 5 against 5 4 3 2 1.
  expected = np.corrcoef([1.5, 1.5, 3.5, 3.5, 5], [5, 4, 3, 2, 1])[0, 1]
  assert f'β {expected:+.2f} over 5 runs' in mse
  assert 'lowest at β = 10 (5.00), highest at β = 0 (8.50)' in mse
  assert 'lowest at β = 10 (500), highest at β = 0 (850)' in perplexity


@pytest.mark.parametrize('experiment', SWEEPS, ids=lambda e: e.name)
def test_pages_have_the_tables_of_their_results(experiment):
  results = json.loads((PAGES / f'{experiment.name}.json').read_text())
  page = (PAGES / f'{experiment.name}.md').read_text()
  assert experiment.table(results) in page
  assert f'gmvq_jax.experiments.{experiment.name}' in page
  for option in results['command'].split()[3:]:
    if not option.startswith('--workdir'):
      assert option in page
  assert len(experiment.figure(results)) > 1000
