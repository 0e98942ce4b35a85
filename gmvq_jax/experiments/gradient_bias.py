r"""Figure 3 of the paper: the bias of gradients against entropy (appendix A.1).

    python -m gmvq_jax.experiments.gradient_bias --output=docs/results \
        [--networks=500] [--activations=relu,tanh] [--seed=0]

A network of hidden layers [50, 5] gives each of 10 actions a payoff; fixed
logits, divided by temperatures, give their probabilities. The gradient of the
expected payoff is estimated as the paper does, and its distance from the exact
one is taken apart into bias and variance, for many networks and estimators.

The paper leaves open: with respect to what gradients are (here the logits that
Gumbel-softmax is given, after they are divided), its temperature, the network's
activation and its start (here PyTorch's: uniform in ±1 / sqrt(inputs), biases
too), and the logits (here standard normal) and what they are divided by.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
import pathlib
import time
from typing import Any
from typing import NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from gmvq_jax.experiments import estimators
from gmvq_jax.ops import categorical
from gmvq_jax.reporting import charts
from gmvq_jax.reporting import pages
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.training import command_line

SIZES = (10, 50, 5, 1)
ACTIVATIONS = {'relu': jax.nn.relu, 'tanh': jnp.tanh}
# What logits are divided by: from one action almost surely to all alike.
DIVISORS = tuple(np.logspace(-1, 1, 24).tolist())
TEMPERATURES = (0.1, 0.5, 1.0, 2.0)
RELAXATIONS = {
    kind: tuple(f'{kind}, τ = {temperature:g}' for temperature in TEMPERATURES)
    for kind in ('straight-through', 'soft')
}
ESTIMATORS = (*sum(RELAXATIONS.values(), ()), 'REINFORCE')
PAPERS = 'straight-through, τ = 1'
PAPERS_CORRELATION = 0.77
# As many as a CIFAR10 image of the paper has latents, all with one reward.
CHOICES = 64
IN_COMPANY = f'REINFORCE, one of {CHOICES}'
# In thirds of the largest entropy.
BANDS = ('low', 'medium', 'high')
DRAWS = (1, 64, 4096)

Results = Mapping[str, Any]


class Settings(NamedTuple):
  """Of the experiment.

  Attributes:
    networks: how many, each with its own parameters and logits.
    repeats: draws in one average, 50 in the paper.
    rounds: how many such averages.
    seed: of everything.
    activations: names of `ACTIVATIONS`.
  """

  networks: int = 500
  repeats: int = 50
  rounds: int = 10
  seed: int = 0
  activations: tuple[str, ...] = tuple(ACTIVATIONS)


class Measured(NamedTuple):
  """N networks at T divisors.

  Attributes:
    entropy: `[N, T]`, of the actions, in nats.
    length2: `[N, T]`, the squared length of the exact gradient.
    others: `[N, T]`, see `estimators.noise_of_others`.
    spread: `[N]`, the largest payoff less the smallest.
    moments: by the name of the estimator, of shapes `[N, T]`.
  """

  entropy: Any
  length2: Any
  others: Any
  spread: Any
  moments: dict[str, estimators.Moments]


def init_network(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
  """Returns weights `[inputs, outputs]` and biases of each layer."""
  layers = []
  for inputs, outputs in zip(SIZES[:-1], SIZES[1:], strict=True):
    key, *keys = jax.random.split(key, 3)
    bound = 1 / math.sqrt(inputs)
    weights, biases = (
        jax.random.uniform(k, shape, minval=-bound, maxval=bound)
        for k, shape in zip(keys, ((inputs, outputs), (outputs,)), strict=True)
    )
    layers.append((weights, biases))
  return layers


def apply_network(
    layers: list[tuple[jax.Array, jax.Array]], x: jax.Array, activation: str
) -> jax.Array:
  """Returns payoffs `[...]` of `x [..., 10]`."""
  for weights, biases in layers[:-1]:
    x = ACTIVATIONS[activation](x @ weights + biases)
  weights, biases = layers[-1]
  return (x @ weights + biases)[..., 0]


@functools.partial(jax.jit, static_argnames=('activation', 'repeats', 'rounds'))
def measure(
    keys: jax.Array, *, activation: str, repeats: int, rounds: int
) -> Measured:
  """Measures a network for each key; all estimators see the same noise.

  Repeats and divisors are computed at once, rounds and networks in turn, so
  memory does not grow with them.
  """

  def one(key):
    key_network, key_logits, key_noise = jax.random.split(key, 3)
    layers = init_network(key_network)
    logits = jax.random.normal(key_logits, SIZES[:1])
    logits /= jnp.asarray(DIVISORS)[:, None]
    repeated = jnp.repeat(logits[:, None], repeats, axis=1)

    def f(x):
      return apply_network(layers, x, activation)

    def averages(key):
      found = {'REINFORCE': estimators.reinforce(f, key, repeated).mean(axis=1)}
      for kind, names in RELAXATIONS.items():

        def average(temperature, hard=kind == 'straight-through'):
          estimates = estimators.gumbel_softmax(
              f, key, repeated, temperature=temperature, hard=hard
          )
          return estimates.mean(axis=1)

        of_each = jax.vmap(average)(jnp.asarray(TEMPERATURES))
        found |= dict(zip(names, of_each, strict=True))
      return found

    exact = estimators.exact_gradient(f, logits)
    log_probs = jax.nn.log_softmax(logits)
    payoffs = f(jnp.eye(SIZES[0]))
    estimates = jax.lax.map(averages, jax.random.split(key_noise, rounds))
    return Measured(
        entropy=categorical.posterior_entropy(log_probs),
        length2=jnp.sum(jnp.square(exact), axis=-1),
        others=estimators.noise_of_others(
            f, logits, others=CHOICES - 1, repeats=repeats
        ),
        spread=payoffs.max() - payoffs.min(),
        moments={
            name: estimators.moments(values, exact, repeats=repeats)
            for name, values in estimates.items()
        },
    )

  return jax.lax.map(one, keys)


def experiment(settings: Settings) -> tuple[Results, dict[str, Measured]]:
  """Returns a summary, ready for JSON, and by activation what it is of."""
  start = time.monotonic()
  keys = jax.random.split(jax.random.key(settings.seed), settings.networks)
  measured, summaries = {}, {}
  for activation in settings.activations:
    arrays = measure(
        keys,
        activation=activation,
        repeats=settings.repeats,
        rounds=settings.rounds,
    )
    arrays = jax.tree.map(lambda x: np.asarray(x, np.float64), arrays)
    # A network whose last ReLUs are all dead has no gradient to estimate.
    measured[activation] = _select(arrays, arrays.spread > 1e-6)
    summaries[activation] = summarise(measured[activation], settings)
  results = {
      'settings': {**settings._asdict(), 'divisors': _rounded(DIVISORS)},
      'activations': summaries,
      'versions': pages.versions(),
      'seconds': round(time.monotonic() - start, 1),
  }
  return results, measured


def summarise(measured: Measured, settings: Settings) -> dict[str, Any]:
  """Returns what is to be said of networks with one activation.

  In bands of entropy, squares are sums over all that is in the band, relative
  to those of the exact gradients: the mean of ratios would be of the networks
  that have next to no gradient.
  """
  entropy, length2 = measured.entropy, measured.length2
  divisors = np.array(DIVISORS)
  summary: dict[str, Any] = {
      'networks': len(length2),
      'correlation': {},
      'bands': {},
  }
  for name, moments in measured.moments.items():
    noise2 = moments.variance / settings.repeats
    share = noise2.sum() / (noise2 + moments.bias2).sum()
    distance = np.asarray(moments.measured)
    values = {
        'measured': distance,
        'measured / gradient': distance / np.sqrt(length2),
        'measured, undivided logits': distance / divisors,
    }
    # Where noise is most of an average, that of all rounds hides the bias of
    # many a network.
    if share <= 0.5:
      values['bias'] = np.sqrt(np.maximum(moments.bias2, 0))
    of = {key: correlations(entropy, y) for key, y in values.items()}
    for key, some in (('at most', divisors <= 1), ('at least', divisors >= 1)):
      of[f'measured, divisors {key} 1'] = correlations(
          entropy[:, some], distance[:, some]
      )
    summary['correlation'][name] = {**of, 'noise_share': _rounded(share)}

  company = measured.moments['REINFORCE']
  company = company._replace(variance=company.variance + measured.others)
  thirds = np.clip(entropy / math.log(SIZES[0]) * 3, 0, 2).astype(int)
  for index, band in enumerate(BANDS):
    summary['bands'][band] = {
        name: _parts(
            jax.tree.map(np.sum, _select(moments, thirds == index)),
            length2[thirds == index].sum(),
        )
        for name, moments in {**measured.moments, IN_COMPANY: company}.items()
    }
  return summary


def correlations(entropy: np.ndarray, values: np.ndarray) -> dict[str, Any]:
  """Returns how Pearson's correlation is distributed over networks.

  Args:
    entropy: `[N, T]`.
    values: `[N, T]`.

  Returns:
    `mean` of the networks' own and the half-width of its 95 % interval (1.96
    standard errors), their 5 and 95 % quantiles, the share that reaches the
    paper's, and the correlation of all points together, `pooled`.
  """
  each = pearson(entropy, values)
  return _rounded({
      'mean': each.mean(),
      'interval': 1.96 * each.std(ddof=1) / math.sqrt(len(each)),
      'quantiles': np.quantile(each, (0.05, 0.95)),
      'share': np.mean(each >= PAPERS_CORRELATION),
      'pooled': pearson(entropy.ravel(), values.ravel()),
  })


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns the correlation along the last axis; 0 where one is constant."""
  x = x - x.mean(axis=-1, keepdims=True)
  y = y - y.mean(axis=-1, keepdims=True)
  lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
  return np.sum(x * y, axis=-1) / np.maximum(lengths, 1e-300)


def _select(tree, where):
  return jax.tree.map(lambda x: x[where], tree)


def _parts(moments, length2):
  """Returns sums over a band, relative to that of the exact gradients."""

  def of_average(draws):
    noise2 = moments.variance / draws
    length = math.sqrt(length2 * max(moments.length2 + noise2, 1e-30))
    return {
        'mse': (moments.bias2 + noise2) / length2,
        'cosine': moments.product / length,
    }

  averages = {str(draws): of_average(draws) for draws in (*DRAWS, math.inf)}
  return _rounded({
      'bias2': moments.bias2 / length2,
      'variance': moments.variance / length2,
      'mse': {draws: values['mse'] for draws, values in averages.items()},
      'cosine': {draws: values['cosine'] for draws, values in averages.items()},
  })


def tables(results: Results) -> dict[str, str]:
  """Returns tables of a summary by title, in Markdown."""
  found = {'correlation with entropy': _correlation_table(results)}
  for activation, summary in results['activations'].items():
    title = f'{activation}, medium entropy'
    found[title] = _parts_table(summary['bands']['medium'])
  return found


def _correlation_table(results):
  activations = results['activations']
  head, rows = ['estimator'], {name: [name] for name in ESTIMATORS}
  for activation, summary in activations.items():
    head += [f'{activation}: ρ', '≥ 0.77', 'noise', 'ρ of bias']
    for name, row in rows.items():
      of = summary['correlation'][name]
      values, bias = of['measured'], of.get('bias')
      low, high = values['quantiles']
      row += [
          f'{values["mean"]:.2f} ± {values["interval"]:.2f}'
          f' ({low:.2f} to {high:.2f})',
          f'{values["share"]:.0%}',
          f'{of["noise_share"]:.0%}',
          f'{bias["mean"]:.2f} ± {bias["interval"]:.2f}' if bias else '–',
      ]
  return _markdown(head, rows.values())


def _parts_table(band):
  head = ['estimator', 'bias²', 'variance']
  head += [f'MSE of {draws:,}' for draws in DRAWS]
  head += [f'cosine of {draws}' for draws in (*DRAWS[:-1], '∞')]
  rows = []
  for name in (*ESTIMATORS, IN_COMPANY):
    of = band[name]
    errors2 = [of['mse'][str(draws)] for draws in DRAWS]
    cosines = [of['cosine'][str(draws)] for draws in (*DRAWS[:-1], math.inf)]
    rows.append(
        [name, f'{of["bias2"]:.3f}']
        + [f'{value:.3g}' for value in (of['variance'], *errors2)]
        + [f'{value:.2f}' for value in cosines]
    )
  return _markdown(head, rows)


def _markdown(head: Sequence[str], rows) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def scatter(measured: Measured, *, networks: int = 12) -> str:
  """Draws Figure 3: entropy against what the paper calls bias.

  Args:
    measured: with one activation.
    networks: whose points are drawn; lines are of all.
  """
  bins = np.floor(measured.entropy / math.log(SIZES[0]) * 12)
  lines, dots = {}, {}
  for name in (PAPERS, PAPERS.replace('straight-through', 'soft'), 'REINFORCE'):
    moments = measured.moments[name]
    squares: dict[str, np.ndarray] = {
        'measured': np.square(moments.measured),
        'bias alone': np.asarray(moments.bias2),
    }
    lines[name] = {
        label: (
            [measured.entropy[bins == b].mean() for b in np.unique(bins)],
            [max(of[bins == b].mean(), 0) ** 0.5 for b in np.unique(bins)],
        )
        for label, of in squares.items()
    }
    dots[name] = (
        measured.entropy[:networks].ravel(),
        moments.measured[:networks].ravel(),
    )
  return charts.panels(
      'entropy of the actions, nats', 'distance from the gradient', lines, dots
  )


def parts(summary: Mapping[str, Any]) -> str:
  """Draws errors against how many draws are averaged, at medium entropy."""
  draws = np.logspace(0, 4, 30)
  lines: dict[str, charts.Curves] = {}
  for kind, names in RELAXATIONS.items():
    curves = lines[kind] = {}
    for name in (*names, 'REINFORCE'):
      of = summary['bands']['medium'][name]
      errors2 = max(of['bias2'], 0) + of['variance'] / draws
      label = name.removeprefix(f'{kind}, ')
      curves[label] = (draws.tolist(), errors2.tolist())
  return charts.panels(
      'draws averaged', 'squared error / squared gradient', lines, log=True
  )


def write(
    results: Results, measured: Mapping[str, Measured], folder: pathlib.Path
) -> None:
  """Writes a summary, and figures of its first activation."""
  first = next(iter(measured))
  drawings = {
      'gradient_bias.svg': scatter(measured[first]),
      'gradient_bias_parts.svg': parts(results['activations'][first]),
  }
  for name, drawing in drawings.items():
    files.write_bytes(folder / name, drawing.encode())
  files.write_json(folder / 'gradient_bias.json', results)


def _rounded(value):
  """Returns numbers, and what holds them, to four significant digits."""
  if isinstance(value, dict):
    return {key: _rounded(v) for key, v in value.items()}
  if np.ndim(value):
    return [_rounded(v) for v in value]
  return float(f'{value:.4g}')


def _main(argv):
  if len(argv) > 1:
    raise errors.UserError(f'{argv[1]!r}: unexpected; flags begin with --')
  given = flags.FLAGS
  unknown = set(given.activations) - set(ACTIVATIONS)
  if unknown or not given.activations:
    raise errors.UserError(
        f'--activations={",".join(given.activations)}: must be of'
        f' {", ".join(ACTIVATIONS)}'
    )
  folder = files.create(given.output, 'output')
  settings = Settings(
      networks=given.networks,
      repeats=given.repeats,
      rounds=given.rounds,
      seed=given.seed,
      activations=tuple(dict.fromkeys(given.activations)),
  )
  results, measured = experiment(settings)
  write(results, measured, folder)
  for title, table in tables(results).items():
    print(f'{title}\n\n{table}')


if __name__ == '__main__':
  default = Settings()
  flags.DEFINE_string('output', None, 'Folder for figures and numbers.')
  flags.DEFINE_integer('networks', default.networks, 'How many.', lower_bound=2)
  flags.DEFINE_integer(
      'repeats', default.repeats, 'Draws in an average.', lower_bound=2
  )
  flags.DEFINE_integer(
      'rounds', default.rounds, 'Averages of each.', lower_bound=2
  )
  flags.DEFINE_integer('seed', default.seed, 'Of everything.', lower_bound=0)
  flags.DEFINE_list(
      'activations', list(default.activations), 'Of hidden layers.'
  )
  command_line.run(_main)
