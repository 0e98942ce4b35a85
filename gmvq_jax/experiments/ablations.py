r"""What the paper leaves open, one choice at a time.

    python -m gmvq_jax.experiments.ablations --config=cifar10:gmvq+entropy \
        --workdir=runs/ablations [--only=soft,no_kmeans] [--seeds=0,1,2,3,4]

trains by the configuration's schedule; `--config.num_steps=300
--config.batch_size=128 --seeds=0,1` is what two CPU cores can do. The letters
are those of docs/equations.md. See `comparison` for what is written.
"""

from typing import NamedTuple

from absl import flags
import numpy as np

from gmvq_jax.experiments import comparison
from gmvq_jax.reporting import charts
from gmvq_jax.runtime import errors


class Choice(NamedTuple):
  """Another answer to an open question.

  Attributes:
    letter: of the question.
    what: it is, in a few words.
    fields: in which it differs from the default.
  """

  letter: str
  what: str
  fields: dict


DEFAULT = 'default'
CHOICES = {
    'expected': Choice(
        'c', 'latent term averaged over q(c\\|x)',
        {'quantizer.latent': 'expected'},
    ),
    'aggregated': Choice(
        'c', 'latent term with c ~ q(c), apart from z',
        {'quantizer.latent': 'aggregated'},
    ),
    'soft': Choice(
        'f', 'z around the relaxed mixture', {'quantizer.hard': False}
    ),
    'stop_gradient': Choice(
        'g', 'no gradient through σ',
        {'quantizer.stop_variance_gradient': True},
    ),
    'quarter_noise': Choice('b', '2σ² = 4', {'quantizer.two_sigma2': 4.0}),
    'no_noise': Choice('b', 'σ = 0', {'quantizer.gaussian_noise': False}),
    'constant_1': Choice(
        'h', 'τ = 1 throughout',
        {'temperature.shape': 'constant', 'temperature.start': 1.0},
    ),
    'linear': Choice('h', 'τ falls linearly', {'temperature.shape': 'linear'}),
    'warm_end': Choice(
        'h', 'τ falls to 0.5 only', {'temperature.end': 0.5}
    ),
    'no_kmeans': Choice('–', 'a random codebook', {'kmeans.images': 0}),
    'no_batch_norm': Choice(
        'a', 'no batch norm', {'network.batch_norm': False}
    ),
    'batch': Choice(
        'e', 'q(c) of each position apart', {'quantizer.aggregate': 'batch'}
    ),
    'gamma_0.001': Choice('l', 'γ = 0.001', {'quantizer.gamma': 0.001}),
    'gamma_0.1': Choice('l', 'γ = 0.1', {'quantizer.gamma': 0.1}),
    'no_decay': Choice('j', 'no weight decay', {'weight_decay': 0.0}),
    'no_calibration': Choice(
        'n', 'running statistics of batch norms', {'calibration_images': 0}
    ),
}  # fmt: skip


def variants_of(only: list[str]) -> comparison.Variants:
  """Returns the default and the named choices; all, if none is named.

  Raises:
    errors.UserError: for an unknown name.
  """
  for name in only:
    if name not in CHOICES:
      raise errors.UserError(
          f'--only={name}: is none of {", ".join(CHOICES)}'
      )
  chosen = [name for name in CHOICES if name in only or not only]
  return {DEFAULT: {}} | {name: CHOICES[name].fields for name in chosen}


class Effect(NamedTuple):
  """What a choice does to the MSE, against the default, seed by seed.

  Attributes:
    percent: the geometric mean of the ratios over seeds, as a change.
    matters: whether all seeds agree on its sign, and it is over three standard
      errors. Of choices that do nothing, two seeds of each, 1 in 35 passes.
  """

  percent: float
  matters: bool


def effects(results: comparison.Results) -> dict[str, Effect]:
  """Returns the effects of the choices all of whose runs have ended.

  Seeds are paired: a seed is the same order of images, and mostly the same
  start. The error is that of a model without an interaction of choice and seed,
  log MSE = choice + seed + noise, by medians, as some choices do not train.
  """
  of_seed = comparison.values_of(results, 'mse')
  seeds = sorted({record['seed'] for record in results['runs']})
  logs = {
      name: np.log([values[seed] for seed in seeds])
      for name, values in of_seed.items()
      if len(values) == len(seeds)
  }
  if DEFAULT not in logs or len(seeds) < 2:
    return {}
  within = np.array([x - x.mean() for x in logs.values()])
  rest = np.abs(within - np.median(within, axis=0))
  # Of a normal distribution, from the median; of residuals, from S - 1 of S.
  deviation = 1.4826 * np.median(rest) * (len(seeds) / (len(seeds) - 1)) ** 0.5
  error = deviation * (2 / len(seeds)) ** 0.5
  found = {}
  for name in logs.keys() - {DEFAULT}:
    changes = logs[name] - logs[DEFAULT]
    mean = changes.mean()
    agree = bool(np.all(np.sign(changes) == np.sign(mean)))
    found[name] = Effect(
        percent=float(100 * np.expm1(mean)),
        matters=agree and bool(abs(mean) > 3 * error),
    )
  return found


def table(results: comparison.Results) -> str:
  """Returns a row for each choice, the one that does most harm last."""
  effect_of = effects(results)
  metrics = {
      metric: comparison.values_of(results, metric)
      for metric in ('mse', 'perplexity', 'posterior_entropy')
  }
  names = sorted(
      metrics['mse'],
      key=lambda name: effect_of[name].percent if name in effect_of else 0,
  )
  lines = [
      '| | choice | MSE × 10⁻³ | change | perplexity | H(q(c\\|x)), nats |',
      '|---|---|---|---|---|---|',
  ]
  for name in names:
    choice = CHOICES.get(name, Choice('', '**the default**', {}))
    mse, perplexity, entropy = (
        np.array(list(of_seed[name].values())) for of_seed in metrics.values()
    )
    change = ''
    if name in effect_of:
      percent, matters = effect_of[name]
      change = f'**{percent:+.0f} %**' if matters else f'{percent:+.0f} %'
    cells = [
        choice.letter,
        choice.what,
        comparison.mean_and_all(1e3 * mse),
        change,
        comparison.mean_and_all(perplexity),
        comparison.mean_and_all(entropy),
    ]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def figure(results: comparison.Results) -> str:
  """Returns how the MSE of each choice differs from the default's, by seed."""
  values = comparison.values_of(results, 'mse')
  default = values[DEFAULT]
  whats = {DEFAULT: 'the default'} | {
      name: choice.what.replace('\\|', '|') for name, choice in CHOICES.items()
  }
  changes = {
      whats[name]: [
          100 * (value / default[seed] - 1)
          for seed, value in of_seed.items()
          if seed in default
      ]
      for name, of_seed in values.items()
  }
  ended = {name: x for name, x in changes.items() if x}
  return charts.rows(
      {'change of the MSE, %': dict(sorted(ended.items(), key=_mean_of))},
      highlighted=whats[DEFAULT],
      linear_to=10,
  )


def _mean_of(item):
  return np.mean(np.log1p(np.array(item[1]) / 100))


EXPERIMENT = comparison.Experiment(
    name='ablations',
    variants=lambda: variants_of(flags.FLAGS.only),
    table=table,
    figure=figure,
)

if __name__ == '__main__':
  flags.DEFINE_list('only', [], 'These choices, besides the default.')
  comparison.run_sweep(EXPERIMENT)
