"""`report.html`: all there is to see of a run, on one page by itself."""

import base64
from collections.abc import Sequence
import importlib.metadata
import math
import os
import pathlib
import platform
import subprocess
from typing import Any
from typing import NamedTuple

import jax
import jinja2
import numpy as np

from gmvq_jax.reporting import charts
from gmvq_jax.reporting import paper
from gmvq_jax.reporting import pictures
from gmvq_jax.runtime import files

_PACKAGES = ('gmvq_jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_ENTROPIES = {
    'posterior_entropy': 'H(q(c|x)), mean of positions',
    'aggregated_entropy': 'H(q(c)), of the batch',
}
# What has a chart with others; everything else logged gets its own.
_TOGETHER = {
    'mse', 'perplexity', 'soft_perplexity', 'step', 'split', *_ENTROPIES,
}  # fmt: skip


class Contents(NamedTuple):
  """What a report is made of.

  Attributes:
    fields: of the run's configuration, flat: `{'data.name': 'cifar10', ...}`.
    defaults: of the same fields.
    metrics: of the test split, as `summary.json` has them.
    images_per_second: the rate of training, if known.
    anchors: of `baselines.compute`.
    records: the objects of `metrics.jsonl`.
    images: uint8 `[n, H, W, channels]`, of the test split.
    reconstructions: of the images, float in [0, 1].
    codes: `[n, h, w]`, of the images.
    codebook: `[C, L]`, what the decoder sees for each code.
    code_counts: `[C]`, over the test split.
    num_steps: of the whole run.
    plans: what `--mode=plan` wrote, for each topology.
  """

  fields: dict[str, Any]
  defaults: dict[str, Any]
  metrics: dict[str, Any]
  images_per_second: float | None
  anchors: dict[str, Any]
  records: list[dict[str, Any]]
  images: np.ndarray
  reconstructions: np.ndarray
  codes: np.ndarray
  codebook: np.ndarray
  code_counts: np.ndarray
  num_steps: int
  plans: Sequence[dict[str, Any]] = ()


def write(path: pathlib.Path, contents: Contents) -> None:
  """Writes the page, whole or not at all."""
  files.write_bytes(path, render(contents).encode())


def render(contents: Contents) -> str:
  """Returns the page."""
  fields, defaults = contents.fields, contents.defaults
  return template('report.html').render(
      data=fields['data.name'],
      quantizer=fields['quantizer.name'],
      metrics=contents.metrics,
      images_per_second=contents.images_per_second,
      validated=any('split' in record for record in contents.records),
      anchors=contents.anchors,
      paper=paper.TABLE_1.get(fields['data.name'], {}),
      num_codes=len(contents.codebook),
      positions=contents.codes[0].size,
      num_steps=contents.num_steps,
      dissections=_dissections(contents),
      code_charts=_code_charts(contents),
      training_charts=_training_charts(contents.records, contents.codebook),
      fields=[
          (k, v, v != defaults.get(k, v)) for k, v in sorted(fields.items())
      ],
      versions=versions(),
      plans=contents.plans,
  )


def template(name: str) -> jinja2.Template:
  """Returns a page of `templates/`, with filters for pictures and numbers."""
  environment = jinja2.Environment(
      loader=jinja2.PackageLoader('gmvq_jax.reporting'),
      autoescape=jinja2.select_autoescape(),
      trim_blocks=True,
      lstrip_blocks=True,
      undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {'png': png_uri, 'svg': svg_uri, 'sig': significant}
  return environment.get_template(name)


def _dissections(contents):
  colours = pictures.code_colours(contents.codebook)
  rows = zip(
      contents.images, contents.reconstructions, contents.codes, strict=True
  )
  return [pictures.dissection(*row, colours) for row in rows]


def _code_charts(contents):
  drawn = [('usage histogram', charts.usage(contents.code_counts))]
  if contents.codebook.shape[1] > 1:
    chart = charts.codebook_map(contents.codebook, contents.code_counts)
    drawn.append(('codebook in two dimensions', chart))
  return drawn


def _training_charts(records, codebook):
  """Returns `(description, SVG)` of every curve."""
  training = [r for r in records if 'split' not in r]
  validation = [r for r in records if r.get('split') == 'validation']

  def both(name):
    curves = {
        'training': _curve(training, name),
        'validation': _curve(validation, name),
    }
    return {k: v for k, v in curves.items() if v[0]}

  drawn = [
      ('MSE', charts.curves('MSE', both('mse'), log=True)),
      (
          'perplexity',
          charts.curves(
              'Perplexity of codes, per batch',
              both('perplexity')
              | {'training, soft': _curve(training, 'soft_perplexity')},
          ),
      ),
  ]
  entropies = {
      label: _curve(training, name) for name, label in _ENTROPIES.items()
  }
  entropies = {k: v for k, v in entropies.items() if v[0]}
  if training:
    steps = [training[0]['step'], training[-1]['step']]
    entropies['log C'] = (steps, [math.log(len(codebook))] * 2)
  drawn.append(('entropies', charts.curves('Entropies, nats', entropies)))
  names = dict.fromkeys(name for record in training for name in record)
  first = ('loss', 'reconstruction', 'latent', 'kl', 'temperature')
  for name in sorted(names, key=lambda n: first.index(n) if n in first else 9):
    if name not in _TOGETHER:
      title = name.replace('_', ' ')
      curve = {name: _curve(training, name)}
      drawn.append((title, charts.curves(title, curve)))
  return drawn


def _curve(records, name):
  """Returns steps and values of what is finite; the rest cannot be drawn."""
  points = [
      (r['step'], r[name])
      for r in records
      if name in r and math.isfinite(r[name])
  ]
  return [step for step, _ in points], [value for _, value in points]


def versions() -> dict[str, str]:
  """Returns the versions of packages and Python, and the devices."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  devices = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  return found | {'python': platform.python_version(), 'devices': devices}


def provenance() -> dict[str, Any]:
  """Returns what figures come from: `hardware`, `versions` and `commit`."""
  described = subprocess.run(
      ['git', 'describe', '--always', '--dirty'],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
  )
  return {
      'hardware': f'{jax.device_count()} x {jax.devices()[0].device_kind},'
      f' {os.cpu_count()} CPU cores',
      'versions': versions(),
      'commit': described.stdout.strip(),  # Empty where it is no checkout.
  }


def png_uri(picture: np.ndarray) -> str:
  """Returns uint8 `[H, W, 3]` as the address of an image."""
  return _uri('image/png', pictures.to_png(picture))


def svg_uri(text: str) -> str:
  """Returns an SVG as the address of an image."""
  return _uri('image/svg+xml', text.encode())


def _uri(kind, content):
  return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def significant(value: float, digits: int = 3) -> str:
  """Formats a number by its significant digits, without an exponent."""
  if not value or not math.isfinite(value):
    return f'{value:g}'
  decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
  return f'{value:,.{decimals}f}'
