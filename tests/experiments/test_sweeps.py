"""The sweeps of gmvq_jax.experiments: what is run, and what is made of it."""

import json
import math
import pathlib

import commands
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from gmvq_jax.experiments import ablations
from gmvq_jax.experiments import comparison
from gmvq_jax.experiments import entropy_sweep
from gmvq_jax.experiments import records
from gmvq_jax.reporting import pages
from gmvq_jax.runtime import errors
from gmvq_jax.training import trainer

PAGES = pathlib.Path('docs/results')
DEFAULT = {'default': {}}
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
  # The report of each run stays empty: its charts take seconds.
  monkeypatch.setattr(pages, 'render', lambda contents: '')
  config = tiny.config(
      tiny.save_images(tmp_path, photographs), num_steps=4, eval_every_steps=4
  )
  seen, run = [], trainer.run

  def spy(config, workdir, *, loaded):
    seen.append((config.quantizer.beta, config.seed, config.num_steps))
    return run(config, workdir, loaded=loaded)

  monkeypatch.setattr(trainer, 'run', spy)

  def do(**options):
    return comparison.sweep(
        config, entropy_sweep.variants_of(['10', '0']), (1,),
        str(tmp_path / 'sweep'), **options,
    )  # fmt: skip

  counts = []
  results = do(command='it', each=lambda r: counts.append(len(r['runs'])))
  assert seen == [(0, 1, 4), (10, 1, 4)]
  assert counts == [1, 2]
  assert results['command'] == 'it' and results['config']['num_steps'] == 4
  assert {'hardware', 'versions', 'commit'} < set(results['runs'][0])
  mse = comparison.values_of(results, 'mse')
  assert list(mse) == ['beta_0', 'beta_10']
  assert mse['beta_0'][1] != mse['beta_10'][1] > 0
  assert do()['runs'] == results['runs']
  assert len(seen) == 2
  comparison.write(entropy_sweep.EXPERIMENT, results, str(tmp_path / 'output'))
  written = json.loads((tmp_path / 'output/entropy_sweep.json').read_text())
  assert written == results
  assert 'perplexity' in (tmp_path / 'output/entropy_sweep.svg').read_text()


def test_a_signal_ends_a_sweep(tmp_path, photographs, monkeypatch):
  config = tiny.config(tiny.save_images(tmp_path, photographs))
  monkeypatch.setattr(records, 'run', lambda *args: None)
  ended = comparison.sweep(config, DEFAULT, (0,), str(tmp_path / 's'))
  assert ended is None


@pytest.mark.parametrize('betas', [['x'], ['-1'], ['1', '1.0'], ['inf'], []])
def test_weights_that_are_none(betas):
  with pytest.raises(errors.UserError, match=f'--betas={",".join(betas)}: '):
    entropy_sweep.variants_of(betas)


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path):
  config = tiny.config('array:nowhere.npz')
  workdir = str(tmp_path / 'sweep')
  with pytest.raises(errors.UserError, match='--seeds=1,1: must be different'):
    comparison.sweep(config, DEFAULT, (1, 1), workdir)
  with pytest.raises(errors.UserError, match="quantizer.latent='None'"):
    odd = {'odd': {'quantizer.latent': 'None'}}
    comparison.sweep(config, odd, (0,), workdir)
  with pytest.raises(errors.UserError, match='quantizer.name=vqvae: must be'):
    comparison.sweep(tiny.method_config('vqvae'), DEFAULT, (0,), workdir)
  assert not (tmp_path / 'sweep').exists()
  with pytest.raises(errors.UserError, match='--only=softer: is none of'):
    ablations.variants_of(['softer'])


@pytest.mark.parametrize('name', ['entropy_sweep', 'ablations'])
def test_the_command_line(name, tmp_path):
  def call(*flags):
    result = commands.run_here(*flags, module=f'gmvq_jax.experiments.{name}')
    assert result.returncode == 2
    return result.stderr

  assert 'error: --config is missing' in call()
  assert 'error: --seeds=a: must be numbers' in call(
      '--config=cifar10:gmvq+entropy', '--seeds=a'
  )
  assert 'error: --workdir is missing' in call(
      '--config=cifar10:gmvq+entropy'
  )


def test_all_choices_can_be_configured():
  """With a default beside each that is different."""
  from gmvq_jax.training import command_line
  from gmvq_jax.training import config as config_lib
  from gmvq_jax.training import config_checks

  config = tiny.config('cifar10')
  assert command_line.find('cifar10')
  for name, fields in ablations.variants_of([]).items():
    varied = ConfigDict(config.to_dict())
    varied.update_from_flattened_dict(fields)
    config_checks.validate(varied)
    flat = config_lib.flatten(config)
    assert name == 'default' or all(flat[k] != v for k, v in fields.items())


def test_effects_are_paired():
  """By hand: what a seed does to all choices cancels, and medians are used."""
  mse = {
      'default': [0.004, 0.008],
      'soft': [0.0044, 0.0088],  # A tenth more, whatever the seed.
      'linear': [0.004 * 1.02, 0.008 / 1.02],
      'batch': [0.004 * 1.02**2, 0.008],
      'no_kmeans': [0.4, 0.008],  # One seed that has not trained.
      'no_decay': [0.003],  # Not ended.
  }
  found = ablations.effects(results_of(mse))
  assert set(found) == {'soft', 'linear', 'batch', 'no_kmeans'}
  np.testing.assert_allclose(found['soft'].percent, 10)
  np.testing.assert_allclose(found['linear'].percent, 0, atol=1e-9)
  np.testing.assert_allclose(found['batch'].percent, 2)
  np.testing.assert_allclose(found['no_kmeans'].percent, 900)
  # Half of the differences of seeds, less their median (that of `linear` and
  # `batch`): a, a, 0, 0 and more, with a = log 1.02; the median of all is a.
  error = 1.4826 * math.sqrt(2) * math.log(1.02)
  assert math.log(1.1) > 2 * error
  assert [name for name in found if found[name].matters] == []
  # With the default and five more that only a seed tells apart, no error.
  even = {name: mse['default'] for name in list(ablations.CHOICES)[-5:]}
  some = {name: mse[name] for name in ('default', 'soft', 'linear')}
  found = ablations.effects(results_of(even | some))
  assert [name for name in found if found[name].matters] == ['soft']


def test_of_choices_that_do_nothing_few_matter():
  """1 in 35 of two seeds, as the docstring has it."""
  names, count = list(ablations.CHOICES)[:13], 0
  rng = np.random.default_rng(0)
  for _ in range(300):
    logs = rng.normal(size=(14, 2)) + 3 * rng.normal(size=2)
    mse = dict(zip(['default', *names], np.exp(0.03 * logs), strict=True))
    found = ablations.effects(results_of({k: list(v) for k, v in mse.items()}))
    count += sum(effect.matters for effect in found.values())
  assert 1 / 70 < count / (300 * 13) < 1 / 25


@pytest.mark.parametrize('diverged', ['no_kmeans', 'default'])
def test_what_diverged_is_said(diverged):
  mse = {'default': [0.004, 0.005], 'no_kmeans': [0.006, 0.007]}
  mse[diverged] = [None, None]
  table = ablations.table(results_of(mse))
  figure = ablations.figure(results_of(mse))
  what = {'no_kmeans': 'a random codebook', 'default': '**the default**'}
  assert f'| {what[diverged]} | diverged |' in table
  assert what[diverged].strip('*') not in figure


def test_trends_are_of_ranks():
  falling = of_betas({0.0: [0.009, 0.008], 1.0: [0.007, 0.006], 10.0: [0.005]})
  mse, perplexity = entropy_sweep.trends(falling)
  # Spearman's: the ranks of β, ties at their mean, against those of the MSE.
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
