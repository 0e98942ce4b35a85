r"""Figure 4 of the paper: GM-VQ by the weight of its entropy term.

    python -m gmvq_jax.experiments.entropy_sweep --config=cifar10:gmvq+entropy \
        --workdir=runs/entropy_sweep [--betas=0,1,3,10,30] [--seeds=0,1,2,3,4]

trains by the configuration's schedule; `--config.num_steps=300
--config.batch_size=128 --seeds=0,1` is what two CPU cores can do. See
`comparison` for what is written.
"""

from collections.abc import Iterable
import math

from absl import flags
import numpy as np

from gmvq_jax.experiments import comparison
from gmvq_jax.reporting import charts
from gmvq_jax.reporting import pages
from gmvq_jax.runtime import errors

# Metric, heading and factor.
_METRICS = (
    ('mse', 'MSE × 10⁻³', 1e3),
    ('perplexity', 'perplexity', 1.0),
    ('posterior_entropy', 'mean H(q(c\\|x)), nats', 1.0),
)


def variants_of(betas: Iterable[str]) -> comparison.Variants:
  """Returns the variants of these values of β, in ascending order.

  Raises:
    errors.UserError: for what is no number of at least 0, or is there twice.
  """
  given = ','.join(betas)
  try:
    values = sorted(float(beta) for beta in betas)
  except ValueError as error:
    raise errors.UserError(f'--betas={given}: must be numbers') from error
  fits = all(0 <= value < math.inf for value in values)
  if not fits or len(set(values)) < len(values) or not values:
    raise errors.UserError(
        f'--betas={given}: must be numbers of at least 0, all different'
    )
  return {
      f'beta_{str(value).removesuffix(".0")}': {'quantizer.beta': value}
      for value in values
  }


def table(results: comparison.Results) -> str:
  """Returns a row for each β: means over seeds, and in brackets the seeds'."""
  lines = ['| β | ' + ' | '.join(title for _, title, _ in _METRICS) + ' |']
  lines.append('|---' * (1 + len(_METRICS)) + '|')
  for name, beta in _betas(results).items():
    cells = [f'{beta:g}']
    for metric, _, factor in _METRICS:
      values = comparison.values_of(results, metric)[name].values()
      cells.append(comparison.mean_and_all(factor * np.array(list(values))))
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n\n'.join(['\n'.join(lines), *trends(results)]) + '\n'


def trends(results: comparison.Results) -> list[str]:
  """Returns what is to be said of the paper's claim, a sentence a metric."""
  betas = _betas(results)
  sentences = []
  for metric, title, factor in _METRICS[:2]:
    values = comparison.values_of(results, metric)
    pairs = [
        (rank, value)
        for rank, name in enumerate(betas)
        for value in values[name].values()
    ]
    means = {
        betas[name]: factor * float(np.mean(list(values[name].values())))
        for name in betas
        if values[name]
    }
    if len(means) < 2:
      continue
    least = min(means, key=means.__getitem__)
    most = max(means, key=means.__getitem__)
    sentences.append(
        f'{title.partition(" ×")[0]}: rank correlation with β'
        f' {_rank_correlation(pairs):+.2f} over {len(pairs)} runs; lowest at'
        f' β = {least:g} ({pages.significant(means[least])}), highest at'
        f' β = {most:g} ({pages.significant(means[most])}).'
    )
  return sentences


def figure(results: comparison.Results) -> str:
  """Returns the box plots, MSE beside perplexity."""
  betas = _betas(results)
  panels = {}
  for metric, title, factor in _METRICS[:2]:
    values = comparison.values_of(results, metric)
    panels[title] = {
        f'{beta:g}': [factor * value for value in values[name].values()]
        for name, beta in betas.items()
    }
  return charts.boxes('β, the weight of the KL of q(c)', panels)


def _betas(results):
  """Returns β by the name of its variant, in ascending order."""
  betas = {
      record['variant']: record['fields']['quantizer.beta']
      for record in results['runs']
  }
  return dict(sorted(betas.items(), key=lambda item: item[1]))


def _rank_correlation(pairs):
  """Returns Spearman's, ties at their mean rank."""

  def ranks(values):
    ordered = np.sort(values)
    first = np.searchsorted(ordered, values, 'left')
    return first + np.searchsorted(ordered, values, 'right')

  return float(np.corrcoef([ranks(x) for x in np.array(pairs).T])[0, 1])


EXPERIMENT = comparison.Experiment(
    name='entropy_sweep',
    variants=lambda: variants_of(flags.FLAGS.betas),
    table=table,
    figure=figure,
)

if __name__ == '__main__':
  flags.DEFINE_list('betas', ['0', '1', '3', '10', '30'], 'Weights of the KL.')
  comparison.run_sweep(EXPERIMENT)
