"""Comparisons: fair, resumable, and their tables."""

import json

from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from gmvq_jax.experiments import comparison
from gmvq_jax.experiments import comparison_table
from gmvq_jax.reporting import charts
from gmvq_jax.reporting import codecs
from gmvq_jax.reporting import pages
from gmvq_jax.runtime import errors
from gmvq_jax.training import build
from gmvq_jax.training import trainer


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
  """Leaves the report of each run empty: its charts take seconds."""
  monkeypatch.setattr(pages, 'render', lambda contents: '')


@pytest.fixture
def config(tmp_path, photographs):
  name = tiny.save_images(tmp_path, photographs)
  config = tiny.config(name, num_steps=3, eval_every_steps=3)
  config.compare = ConfigDict({
      'methods': ('vqvae', 'frozen'),
      'seeds': (0, 1),
      'trials': 2,
      'trial_steps': 3,
      'spaces': {'vqvae': {'learning_rate': (1e-3, 1e-2),
                           'quantizer': {'beta': (0.5,)}}},
  })
  return config


def test_a_comparison_from_start_to_end(config, tmp_path, monkeypatch):
  """Every method by every seed, once, on one copy of the data."""
  configs = []
  run = trainer.run

  def spy(config, workdir, *, loaded, test=True):
    configs.append((ConfigDict(config.to_dict()), workdir, test))
    return run(config, workdir, loaded=loaded, test=test)

  monkeypatch.setattr(trainer, 'run', spy)
  build._programs.cache_clear()
  results = comparison.compare(config, str(tmp_path / 'table'), 'the command')
  assert [(r['variant'], r['seed']) for r in results['runs']] == [
      (m, s) for m in config.compare.methods for s in (0, 1)
  ]
  # As many programs as methods: trials of the same length have no others.
  assert build._programs.cache_info().misses == 2
  trials = results['searches']['vqvae']
  assert len(trials) == 2
  assert trials[0]['fields'] == {
      'learning_rate': 3e-3, 'quantizer.beta': 0.9
  }
  best = min(trials, key=lambda trial: trial['mse'])['fields']
  for run_config, _, test in configs:
    if test and run_config.quantizer.name == 'vqvae':
      assert run_config.learning_rate == best['learning_rate']
      assert run_config.quantizer.beta == best['quantizer.beta']
  for record in results['runs']:
    assert record['metrics']['mse'] > 0
    assert record['wall_seconds'] > 0
    assert {'fields', 'hardware', 'versions', 'commit'} <= set(record)
    assert record['fields']['quantizer.name'] == record['variant']
    if record['variant'] == 'vqvae':
      assert record['fields'] | best == record['fields']
  assert list(results['searches']) == ['vqvae']
  assert results['command'] == 'the command'
  # The test split takes no part in the search.
  for trial in range(2):
    logged = tmp_path / 'table' / 'search' / 'vqvae' / f'trial_{trial}'
    assert '"test"' not in (logged / 'metrics.jsonl').read_text()
    assert not (logged / 'summary.json').exists()

  # Everything again is nothing again.
  written = (tmp_path / 'table' / 'results.json').read_text()
  count = len(configs)
  with monkeypatch.context() as patch:
    patch.setattr(charts, '_svg', lambda figure: '')  # It takes seconds.
    again = comparison.compare(config, str(tmp_path / 'table'), 'another')
  assert [r['metrics'] for r in again['runs']] == [
      r['metrics'] for r in results['runs']
  ]
  assert len(configs) == count + 2  # The trials, whose runs are complete.
  assert json.loads(written)['runs'] == json.loads(
      (tmp_path / 'table' / 'results.json').read_text()
  )['runs']
  page = (tmp_path / 'table' / 'table.html').read_text()
  assert 'literature values' in page and 'searched' in page
  for method in config.compare.methods:
    assert f'reconstructions by {method}' in page
    assert f'usage of codes by {method}' in page
  assert 'frozen' in (tmp_path / 'table' / 'table.md').read_text()


def test_a_run_that_diverges_is_a_row_and_stops_no_other(
    config, tmp_path, monkeypatch
):
  run = trainer.run

  def diverges(config, workdir, *, loaded, test=True):
    if config.seed == 1:
      raise errors.DivergedError('step 3: loss is nan')
    return run(config, workdir, loaded=loaded, test=test)

  monkeypatch.setattr(trainer, 'run', diverges)
  config.compare.methods = ('frozen',)
  config.compare.seeds = (1, 0)
  config.compare.spaces = ConfigDict()
  results = comparison.compare(config, str(tmp_path / 'table'))
  assert [bool(r['failure']) for r in results['runs']] == [True, False]
  (row,) = [r for r in comparison_table.rows_of(results) if r.name == 'frozen']
  assert row.notes[0] == '1 of 2 runs diverged'


def record(method, seed, mse, **metrics):
  return {
      'variant': method, 'seed': seed, 'failure': None,
      'metrics': {'mse': mse, 'perplexity': 500.0} | metrics,
  }  # fmt: skip


def test_rows_are_ranked_by_mse_and_say_what_they_lose_to():
  results = {
      'runs': [
          record('gmvq', 0, 0.004), record('gmvq', 1, 0.006),
          record('vqvae', 0, 0.009), record('frozen', 0, 0.008),
      ],
      'searches': {},
      'config': {'data': {'name': 'cifar10'}},
      'anchors': {
          'gaussian': {'mse': 0.002}, 'kmeans': {'mse': 0.007}, 'bits': 640,
          'codecs': [
              codec._asdict() for codec in codecs.at_most('cifar10', 640)[:1]
          ],
      },
  }  # fmt: skip
  rows = comparison_table.rows_of(results)
  assert [row.name for row in rows] == [
      'Gaussian rate-distortion', 'BPG', 'gmvq', 'k-means on patches',
      'frozen', 'vqvae',
  ]  # fmt: skip
  by_name = {row.name: row for row in rows}
  np.testing.assert_allclose(by_name['gmvq'].mean['mse'], 0.005)
  np.testing.assert_allclose(by_name['gmvq'].spread['mse'], 2e-3 / 2**0.5)
  assert by_name['gmvq'].notes == []
  assert by_name['vqvae'].notes == [
      'loses to the codebook left at its start',
      'loses to k-means on patches',
  ]
  assert by_name['frozen'].notes == ['loses to k-means on patches']
  assert by_name['gmvq'].paper.mse == 3.13
  lines = comparison_table.markdown(results).splitlines()
  assert '5.00 ± 1.4' in lines[4]
  assert '3.13, 731.9' in lines[4]
  assert lines[-1] == (
      'gmvq over vqvae: MSE 5.00 against 9.00 × 10⁻³; the margin holds for'
      ' every seed.'
  )


@pytest.mark.parametrize('rival, verdict', [
    (0.0061, 'the margin holds for every seed'),
    (0.0055, 'the margin does not hold for every seed'),
    (0.0049, 'there is no margin'),
])
def test_the_margin_over_vqvae_is_stated(rival, verdict):
  runs = [
      record('gmvq', 0, 0.004), record('gmvq', 1, 0.006),
      record('vqvae', 0, rival), record('vqvae', 1, None),
  ]  # fmt: skip
  runs[-1]['failure'] = 'diverged'
  (sentence,) = comparison_table.margins({'runs': runs})
  assert sentence.endswith(f'; {verdict}.')


@pytest.mark.parametrize('change, message', [
    (dict(methods=('vqvea',)), "--methods: .*'vqvea' is unknown"),
    (dict(methods=()), 'methods=.*at least one'),
    (dict(seeds=(1, 1)), 'seeds=.*must be different'),
    (dict(trials=-1), 'trials=-1'),
    (dict(spaces={'vqvae': {'typo': (1.0,)}}), 'spaces.vqvae.typo'),
])
def test_a_mistake_is_one_line(config, tmp_path, change, message):
  with config.unlocked(), config.ignore_type():
    config.compare.update(change)
    if 'spaces' in change:
      config.compare.spaces = ConfigDict(change['spaces'])
  with pytest.raises(errors.UserError, match=message) as caught:
    comparison.compare(config, str(tmp_path / 'table'))
  assert '\n' not in str(caught.value)


def test_a_configuration_of_one_run_is_none_of_a_comparison(config, tmp_path):
  del config['compare']
  with pytest.raises(errors.UserError, match='config.compare is missing'):
    comparison.compare(config, str(tmp_path / 'table'))
