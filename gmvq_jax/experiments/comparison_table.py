"""The tables of a comparison, ranked by MSE: `table.md` and `table.html`."""

import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from gmvq_jax.reporting import charts
from gmvq_jax.reporting import pages
from gmvq_jax.reporting import paper
from gmvq_jax.reporting import pictures

# Of metrics: the heading, the factor, and the digits that are shown.
COLUMNS = {
    'mse': ('MSE × 10⁻³', 1e3, 3),
    'perplexity': ('perplexity, per batch', 1, 3),
    'split_perplexity': ('perplexity, whole split', 1, 3),
    'quantization_error': ('quantisation error', 1, 2),
    'latent_variance': ('latent variance', 1, 2),
    'bits_per_image': ('bits, entropy-coded', 1, 3),
    'images_per_second': ('images/s', 1, 3),
}
_SHOWN = 10
_PAPERS_NAMES = {
    'gmvq': 'GM-VQ',
    'gmvq+entropy': 'GM-VQ + Entropy',
    'sqvae': 'SQVAE',
    'gumbel': 'Gumbel-VQVAE',
    'vqvae': 'VQVAE',
    'vqvae+l2': 'VQVAE + l2',
    'vqvae+replace': 'VQVAE + replace',
    'vqvae+l2+replace': 'VQVAE + l2 + replace',
    'vqvae+affine': 'VQVAE + Affine',
    'vqvae+opt': 'VQVAE + OPT',
    'vqvae+affine+opt': 'VQVAE + Affine + OPT',
}


class Row(NamedTuple):
  """A line of the table.

  Attributes:
    name: of the method or the anchor.
    mean: by metric, over seeds; what is not known is left out.
    spread: like it, the standard deviation of a sample; empty of one seed.
    seeds: how many; 0 of an anchor.
    numbers: where they come from: `searched`, `literature values`, `anchor`.
    paper: what the paper printed, if it did.
    notes: what it loses to, and how many runs diverged.
  """

  name: str
  mean: dict[str, float]
  spread: dict[str, float]
  seeds: int
  numbers: str
  paper: paper.Row | None
  notes: list[str]


def rows_of(results: dict[str, Any]) -> list[Row]:
  """Returns the rows of `results.json`, the lowest MSE first."""
  methods = dict.fromkeys(run['variant'] for run in results['runs'])
  rows = [_row(method, results) for method in methods]
  rows += _anchor_rows(results['anchors'])
  known = {row.name: row.mean['mse'] for row in rows if 'mse' in row.mean}
  rivals = {
      'the codebook left at its start': known.get('frozen'),
      'k-means on patches': known.get('k-means on patches'),
  }
  for row in rows:
    for rival, mse in rivals.items():
      if row.seeds and mse is not None and row.mean.get('mse', 0) > mse:
        row.notes.append(f'loses to {rival}')
  return sorted(rows, key=lambda row: row.mean.get('mse', np.inf))


def markdown(results: dict[str, Any]) -> str:
  """Returns the table as Markdown."""
  headings = ['', *(heading for heading, *_ in COLUMNS.values())]
  headings += ['seeds', 'numbers', 'paper: MSE, perplexity', '']
  lines = [headings, ['---'] * len(headings)]
  for row in rows_of(results):
    printed = f'{row.paper.mse}, {row.paper.perplexity}' if row.paper else ''
    cells = [row.name, *(cell(row, metric) for metric in COLUMNS)]
    cells += [str(row.seeds or ''), row.numbers, printed, '; '.join(row.notes)]
    lines.append(cells)
  text = '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines) + '\n'
  return '\n'.join([text, *margins(results)]).rstrip() + '\n'


def margins(results: dict[str, Any]) -> list[str]:
  """Returns a sentence about each GM-VQ's margin over VQVAE, seed by seed."""

  def errors_of(method):
    return [
        1e3 * run['metrics']['mse']
        for run in results['runs']
        if run['variant'] == method and not run['failure']
    ]

  sentences, rival = [], errors_of('vqvae')
  for method in ('gmvq', 'gmvq+entropy'):
    ours = errors_of(method)
    if not ours or not rival:
      continue
    if max(ours) < min(rival):
      verdict = 'the margin holds for every seed'
    elif np.mean(ours) < np.mean(rival):
      verdict = 'the margin does not hold for every seed'
    else:
      verdict = 'there is no margin'
    means = [pages.significant(np.mean(x), 3) for x in (ours, rival)]
    sentences.append(
        f'{method} over vqvae: MSE {means[0]} against {means[1]} × 10⁻³;'
        f' {verdict}.'
    )
  return sentences


def cell(row: Row, metric: str) -> str:
  """Returns a metric of a row, with its spread; empty if it is not known."""
  if metric not in row.mean:
    return ''
  _, factor, digits = COLUMNS[metric]
  text = pages.significant(factor * row.mean[metric], digits)
  if metric in row.spread:
    text += f' ± {pages.significant(factor * row.spread[metric], 2)}'
  return text


def write(path: pathlib.Path, results: dict[str, Any]) -> None:
  """Writes both tables into a directory."""
  (path / 'table.md').write_text(markdown(results), encoding='utf-8')
  rows = rows_of(results)
  examples = _examples(path, results)
  strips = [(name, example['reconstructions']) for name, example in examples]
  if examples:
    strips.insert(0, ('originals', examples[0][1]['images']))
  points = {
      row.name: (row.mean['perplexity'], 1e3 * row.mean['mse'])
      for row in rows
      if {'perplexity', 'mse'} <= set(row.mean)
  }
  page = pages.template('table.html').render(
      columns=COLUMNS,
      rows=rows,
      cell=cell,
      margins=margins(results),
      searches=results['searches'],
      chart=charts.points('perplexity, per batch', 'MSE × 10⁻³', points),
      strips=[(name, pictures.strip(images)) for name, images in strips],
      usage=[
          (name, charts.usage(example['code_counts'], title=name))
          for name, example in examples
      ],
      command=results['command'],
      versions=results['runs'][-1]['versions'],
      num_steps=results['config']['num_steps'],
      batch_size=results['config']['batch_size'],
  )
  (path / 'table.html').write_text(page, encoding='utf-8')


def _examples(path, results):
  """Returns what the first run of each method shows of images, by method."""
  found = {}
  for run in results['runs']:
    file = path / 'runs' / run['variant'] / f'seed_{run["seed"]}/examples.npz'
    if run['variant'] not in found and file.exists():
      with np.load(file) as arrays:
        found[run['variant']] = {
            'images': arrays['images'][:_SHOWN],
            'reconstructions': arrays['reconstructions'][:_SHOWN],
            'code_counts': arrays['code_counts'],
        }
  return list(found.items())


def _row(method, results):
  runs = [run for run in results['runs'] if run['variant'] == method]
  finished = [run['metrics'] for run in runs if not run['failure']]
  values = {
      metric: [m[metric] for m in finished]
      for metric in COLUMNS
      if finished and all(metric in m for m in finished)
  }
  notes = []
  if len(finished) < len(runs):
    notes.append(f'{len(runs) - len(finished)} of {len(runs)} runs diverged')
  data = results['config']['data']['name']
  searched = method in results['searches']
  return Row(
      name=method,
      mean={k: float(np.mean(v)) for k, v in values.items()},
      spread={
          k: float(np.std(v, ddof=1)) for k, v in values.items() if len(v) > 1
      },
      seeds=len(runs),
      numbers='searched' if searched else 'literature values',
      paper=paper.TABLE_1.get(data, {}).get(_PAPERS_NAMES.get(method)),
      notes=notes,
  )


def _anchor_rows(anchors):
  def row(name, metrics):
    mean = {k: v for k, v in metrics.items() if k in COLUMNS}
    return Row(name, mean, {}, 0, 'anchor', None, [])

  rows = [row('Gaussian rate-distortion', anchors['gaussian'])]
  if anchors['kmeans']:
    rows.append(row('k-means on patches', anchors['kmeans']))
  for codec in anchors.get('codecs', ()):
    metrics = {'mse': codec['mse'], 'bits_per_image': codec['bits']}
    rows.append(
        row(codec['name'], metrics)._replace(notes=[codec['note']])
    )
  return rows
