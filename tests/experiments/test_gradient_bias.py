"""Figure 3: exact gradients, estimators, and their bias and variance apart."""

import functools
import json
import pathlib

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax.experiments import estimators
from gmvq_jax.experiments import gradient_bias
from gmvq_jax.ops import counter_rng

C = 10
RESULTS = pathlib.Path('docs/results')


init_network = jax.jit(gradient_bias.init_network)
apply_network = jax.jit(gradient_bias.apply_network, static_argnums=2)
exact_gradient = jax.jit(estimators.exact_gradient, static_argnums=0)


@functools.cache
def payoff(activation='tanh', dtype=np.float32):
  """Returns the payoff of a network, the same function for all tests."""
  layers = [
      tuple(np.asarray(x, dtype) for x in layer)
      for layer in init_network(jax.random.key(0))
  ]
  return jax.jit(lambda x: apply_network(layers, x, activation))


def softmax(logits):
  exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exp / exp.sum(axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames='hard')
def estimate(estimator, f, key, logits, **fields):
  return estimator(f, key, logits, **fields)


@functools.partial(
    jax.jit,
    static_argnums=(0, 1),
    static_argnames=('rounds', 'repeats', 'hard'),
)
def average(estimator, f, logits, *, rounds=200, repeats=50, **fields):
  """Returns the `Moments` of an estimator, and its averages' errors."""
  repeated = jnp.broadcast_to(logits, (rounds, repeats, len(logits)))
  averages = estimator(f, jax.random.key(0), repeated, **fields).mean(axis=1)
  exact = exact_gradient(f, logits)
  return estimators.moments(averages, exact, repeats=repeats), averages - exact


@pytest.mark.parametrize('activation', gradient_bias.ACTIVATIONS)
def test_the_exact_gradient_is_that_of_the_expected_payoff(
    rng, x64, activation
):
  f, logits = payoff(activation, np.float64), rng.normal(size=(3, C))
  payoffs = np.asarray(f(np.eye(C)))

  def expected(logits):
    return softmax(logits) @ payoffs

  step = 1e-5
  differences = np.stack(
      [
          expected(logits + step * row) - expected(logits - step * row)
          for row in np.eye(C)
      ],
      axis=-1,
  )
  np.testing.assert_allclose(
      exact_gradient(f, logits),
      differences / (2 * step),
      atol=1e-10,
  )


@pytest.mark.parametrize('activation', gradient_bias.ACTIVATIONS)
def test_the_network_is_the_papers(rng, activation):
  layers = init_network(jax.random.key(0))
  shapes = [(w.shape, b.shape) for w, b in layers]
  assert shapes == [((10, 50), (50,)), ((50, 5), (5,)), ((5, 1), (1,))]
  for weights, biases in layers:
    bound = len(weights) ** -0.5
    values = np.abs(np.concatenate([np.ravel(weights), biases]))
    assert 0.6 * bound < values.max() <= bound
  x = rng.normal(size=(2, 3, C)).astype(np.float32)
  hidden = x
  of = {'relu': lambda x: np.maximum(x, 0), 'tanh': np.tanh}[activation]
  for weights, biases in layers[:-1]:
    hidden = of(hidden @ np.asarray(weights) + np.asarray(biases))
  expected = hidden @ np.asarray(layers[-1][0]) + np.asarray(layers[-1][1])
  np.testing.assert_allclose(
      apply_network(layers, x, activation),
      expected[..., 0],
      rtol=1e-5,
      atol=1e-6,
  )


@pytest.mark.parametrize('hard', [True, False])
def test_gumbel_softmax_against_numpy(rng, x64, hard):
  """On the same noise, in float64, with the network's gradient by hand."""
  count = 40
  logits = rng.normal(size=(count, C))
  a, b = rng.normal(size=(C, 7)), rng.normal(size=7)
  key = jax.random.key(3)

  def f(x):
    return jnp.tanh(x @ a) @ b

  @jax.jit
  def perturb(logits):
    seeds = counter_rng.row_seeds(key, count)
    return logits + counter_rng.gumbel(seeds, C, dtype=jnp.float64)

  scores = np.asarray(perturb(logits))
  for temperature in (0.1, 1.0, 2.0):
    estimates = estimate(
        estimators.gumbel_softmax,
        f,
        key,
        logits,
        temperature=temperature,
        hard=hard,
    )
    soft = softmax(scores / temperature)
    c_q = np.eye(C)[scores.argmax(axis=-1)] if hard else soft
    slopes = ((1 - np.tanh(c_q @ a) ** 2) * b) @ a.T
    centred = slopes - np.sum(soft * slopes, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        estimates,
        soft * centred / temperature,
        rtol=1e-6,
        atol=1e-9,
        err_msg=f'temperature {temperature}',
    )


def test_reinforce_against_numpy(rng):
  """Its baselines, one by one."""
  f, repeats = payoff(), 6
  logits = rng.normal(size=C).astype(np.float32)
  key, repeated = jax.random.key(2), np.broadcast_to(logits, (repeats, C))
  estimates = np.asarray(estimate(estimators.reinforce, f, key, repeated))

  @jax.jit
  def gumbel():
    return counter_rng.gumbel(counter_rng.row_seeds(key, repeats), C)

  draws = np.eye(C, dtype=np.float32)[np.argmax(repeated + gumbel(), axis=-1)]
  payoffs = np.asarray(f(draws))
  for index in range(repeats):
    baseline = np.delete(payoffs, index).mean()
    expected = (payoffs[index] - baseline) * (draws[index] - softmax(logits))
    np.testing.assert_allclose(estimates[index], expected, atol=1e-6)


@pytest.mark.parametrize('repeats', [2, 50])
def test_reinforce_has_no_bias(rng, repeats):
  """Within 4.5 standard errors in each of 10 components."""
  rounds = 20_000 // repeats
  logits = rng.normal(size=C).astype(np.float32)
  _, errors = average(
      estimators.reinforce, payoff(), logits, rounds=rounds, repeats=repeats
  )
  errors = np.asarray(errors)
  deviations = errors.std(axis=0, ddof=1) / rounds**0.5
  assert np.all(np.abs(errors.mean(axis=0)) < 4.5 * deviations)
  exact = exact_gradient(payoff(), logits)
  # A test of something: it would see a bias of a fifth of the gradient.
  assert np.linalg.norm(deviations) < 0.2 * np.linalg.norm(exact)


def test_variance_in_company(rng):
  """Each of 4 choices is told the payoffs of all."""
  f, others, repeats, rounds = payoff(), 3, 5, 20_000
  logits = rng.normal(size=C).astype(np.float32)
  payoffs = np.asarray(f(np.eye(C, dtype=np.float32)))
  repeated = np.broadcast_to(logits, (rounds, repeats, C))
  chosen = rng.choice(C, (others, rounds, repeats), p=_probs(logits))
  picked = payoffs[chosen].sum(axis=0)

  @jax.jit
  def variance(picked):
    averages = estimators.reinforce(
        lambda x: f(x) + picked, jax.random.key(1), repeated
    ).mean(axis=1)
    return estimators.moments(
        averages, jnp.zeros(C), repeats=repeats
    ).variance

  gained = jax.jit(
      functools.partial(
          estimators.noise_of_others, f, others=others, repeats=repeats
      )
  )(logits)
  found = np.asarray(variance(picked)) - np.asarray(variance(0 * picked))
  np.testing.assert_allclose(found, gained, rtol=0.05)


def _probs(logits):
  """Returns probabilities whose float64 sum is 1."""
  return softmax(logits.astype(np.float64))


def test_bias_and_variance_of_two_actions():
  """Equal odds, payoffs 1 and 0, τ = 1: the softmax is uniform on [0, 1].

  So the estimate is ±y(1 - y), of mean 1/6 and variance 1/180 in each of two
  components, and the exact gradient ±1/4.
  """
  found, _ = average(
      estimators.gumbel_softmax,
      lambda x: x[..., 0],
      np.zeros(2, np.float32),
      rounds=2000,
      repeats=10,
      temperature=1.0,
      hard=True,
  )
  np.testing.assert_allclose(found.bias2, 2 / 12**2, rtol=0.03)
  np.testing.assert_allclose(found.variance, 2 / 180, rtol=0.1)
  np.testing.assert_allclose(found.length2, 2 / 36, rtol=0.03)
  np.testing.assert_allclose(found.product, 2 / 24, rtol=0.03)


def test_moments_have_no_bias(rng):
  """Of averages of normal numbers, few of them: over many repetitions."""
  rounds, repeats, offset = 3, 4, 0.2
  exact = np.array([1.0, -2.0, 0.5])
  draws = rng.normal(size=(rounds, repeats, 20_000, 3)) * [1, 2, 3]
  averages = (exact + offset + draws).mean(axis=1)
  exact = np.broadcast_to(exact, averages[0].shape)
  found = jax.jit(functools.partial(estimators.moments, repeats=repeats))(
      averages, exact
  )
  found = jax.tree.map(np.asarray, found)
  np.testing.assert_allclose(found.bias2.mean(), 3 * offset**2, atol=0.05)
  np.testing.assert_allclose(found.variance.mean(), 1 + 4 + 9, rtol=0.03)
  length2 = np.sum((exact[0] + offset) ** 2)
  np.testing.assert_allclose(found.length2.mean(), length2, rtol=0.03)
  product = (exact[0] + offset) @ exact[0]
  np.testing.assert_allclose(found.product.mean(), product, rtol=0.02)
  # What the paper measures holds the variance of its average too.
  squares = np.mean(np.square(found.measured))
  np.testing.assert_allclose(squares, 3 * offset**2 + 14 / repeats, rtol=0.03)


def test_of_a_linear_payoff_both_relaxations_are_one(rng):
  """Its slope is the same everywhere, so hard and soft estimates agree."""
  w = rng.normal(size=C).astype(np.float32)
  logits = rng.normal(size=(30, C)).astype(np.float32)
  hard, soft = (
      estimate(
          estimators.gumbel_softmax,
          lambda x: x @ w,
          jax.random.key(0),
          logits,
          temperature=0.7,
          hard=hard,
      )
      for hard in (True, False)
  )
  np.testing.assert_allclose(hard, soft, rtol=1e-5, atol=1e-6)
  assert np.abs(hard).max() > 0.1


def test_of_a_linear_payoff_bias_vanishes_with_the_temperature(rng):
  """Then the expected softmax tends to the probabilities, and only then."""
  w = rng.normal(size=C).astype(np.float32)
  logits = rng.normal(size=C).astype(np.float32)

  def f(x):
    return x @ w

  exact2 = np.sum(np.square(exact_gradient(f, logits)))
  shares = {}
  for temperature in (0.1, 0.5, 1.0):
    found, _ = average(
        estimators.gumbel_softmax,
        f,
        logits,
        rounds=2000,
        temperature=temperature,
        hard=True,
    )
    shares[temperature] = float(found.bias2 / exact2)
  assert abs(shares[0.1]) < 0.005
  assert 0.01 < shares[0.5] < 0.05 < shares[1.0]


def small(**fields):
  settings = dict(networks=12, repeats=10, rounds=4, activations=('tanh',))
  return gradient_bias.Settings(**(settings | fields))


@pytest.fixture(scope='module')
def measured():
  return gradient_bias.experiment(small())


def test_divisors_span_all_entropies(measured):
  _, arrays = measured
  entropy = arrays['tanh'].entropy
  assert np.all(np.diff(entropy, axis=1) > 0)
  assert np.median(entropy[:, 0]) < 0.3
  assert np.all(entropy[:, -1] > 0.99 * np.log(C))
  assert np.all(entropy < np.log(C) + 1e-6)


def test_what_is_measured_is_of_the_networks(measured):
  """One network of the run, computed by itself."""
  _, arrays = measured

  @jax.jit
  def of_network_5():
    key = jax.random.split(jax.random.key(0), 12)[5]
    key_network, key_logits, _ = jax.random.split(key, 3)
    layers = gradient_bias.init_network(key_network)
    payoffs = gradient_bias.apply_network(layers, jnp.eye(C), 'tanh')
    return payoffs, jax.random.normal(key_logits, (C,))

  payoffs, logits = map(np.asarray, of_network_5())
  probs = softmax(logits / np.array(gradient_bias.DIVISORS)[:, None])
  exact = probs * (payoffs - probs @ payoffs[:, None])
  of = arrays['tanh']
  length2 = np.sum(exact**2, axis=-1)
  # A float32 payoff less another: nothing is left of it when one is certain.
  np.testing.assert_allclose(of.length2[5], length2, rtol=1e-3, atol=1e-12)
  entropy = -np.sum(probs * np.log(probs), axis=-1)
  np.testing.assert_allclose(of.entropy[5], entropy, rtol=1e-3, atol=1e-6)
  assert of.spread[5] == pytest.approx(np.ptp(payoffs), rel=1e-4)


def test_the_seed_determines_all(measured):
  first = measured[0]['activations']
  assert gradient_bias.experiment(small())[0]['activations'] == first
  assert gradient_bias.experiment(small(seed=1))[0]['activations'] != first


def test_networks_without_a_gradient_are_left_out(measured, monkeypatch):
  """As if the last ReLUs of every third were dead."""
  measure = gradient_bias.measure

  def some_dead(keys, **fields):
    found = measure(keys, **fields)
    return found._replace(spread=found.spread.at[::3].set(0))

  whole = measured[1]['tanh'].moments['REINFORCE']
  monkeypatch.setattr(gradient_bias, 'measure', some_dead)
  results, arrays = gradient_bias.experiment(small())
  assert results['activations']['tanh']['networks'] == 8
  expected = np.delete(whole.bias2, [0, 3, 6, 9], axis=0)
  found = arrays['tanh'].moments['REINFORCE'].bias2
  np.testing.assert_array_equal(found, expected)


def test_pearson(rng):
  x, y = rng.normal(size=(2, 4, 30))
  expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
  np.testing.assert_allclose(gradient_bias.pearson(x, y), expected)
  assert gradient_bias.pearson(x, np.ones_like(y)).tolist() == [0] * 4


def test_correlations_over_networks(rng):
  """Half of them correlate perfectly, half not at all."""
  x = np.tile(np.arange(4.0), (40, 1))
  y = np.where(np.arange(40)[:, None] < 20, x, np.array([1.0, -1, -1, 1]))
  found = gradient_bias.correlations(x, y)
  assert found['mean'] == found['share'] == 0.5
  deviation = np.std([0] * 20 + [1] * 20, ddof=1)
  assert found['interval'] == pytest.approx(
      1.96 * deviation / 40**0.5, rel=1e-3
  )
  assert found['quantiles'] == [0, 1]
  pooled = np.corrcoef(x.ravel(), y.ravel())[0, 1]
  assert found['pooled'] == pytest.approx(pooled, rel=1e-3)


def test_parts_are_sums_relative_to_the_gradients(measured):
  results, arrays = measured
  of = arrays['tanh']
  name = 'soft, τ = 0.5'
  inside = of.entropy > np.log(C) * 2 / 3
  length2 = of.length2[inside].sum()
  moments = of.moments[name]
  bias2 = moments.bias2[inside].sum() / length2
  variance = moments.variance[inside].sum() / length2
  found = results['activations']['tanh']['bands']['high'][name]
  assert found['bias2'] == pytest.approx(bias2, rel=1e-3)
  assert found['mse']['64'] == pytest.approx(bias2 + variance / 64, rel=1e-3)
  expected2 = moments.length2[inside].sum() / length2 + variance / 64
  product = moments.product[inside].sum() / length2
  assert found['cosine']['64'] == pytest.approx(
      product / expected2**0.5, rel=1e-3
  )


def command(*arguments):
  return commands.run_here(
      *arguments, module='gmvq_jax.experiments.gradient_bias'
  )


def test_mistakes_of_the_command(tmp_path):
  for name, arguments in {
      '--output': [],
      '--activations': [f'--output={tmp_path / "x"}', '--activations=gelu'],
  }.items():
    result = command(*arguments)
    commands.assert_one_line(result, name)
    assert not result.stdout
  assert not (tmp_path / 'x').exists()


def test_the_command(tmp_path, measured):
  folder = tmp_path / 'made' / 'here'
  sizes = ['--networks=12', '--repeats=10', '--rounds=4']
  result = command(f'--output={folder}', '--activations=tanh', *sizes)
  assert result.returncode == 0, result.stderr
  names = ['.json', '.svg', '_parts.svg']
  expected = sorted(f'gradient_bias{name}' for name in names)
  assert sorted(path.name for path in folder.iterdir()) == expected
  results = json.loads((folder / 'gradient_bias.json').read_text())
  assert results['activations'] == measured[0]['activations']
  assert results['versions']['jax'] == jax.__version__
  for table in gradient_bias.tables(results).values():
    assert table in result.stdout
  for name in ('gradient_bias.svg', 'gradient_bias_parts.svg'):
    assert (folder / name).read_text().count('straight-through') >= 1


def test_the_page_has_the_numbers_of_its_run():
  page = (RESULTS / 'gradient_bias.md').read_text()
  results = json.loads((RESULTS / 'gradient_bias.json').read_text())
  for title, table in gradient_bias.tables(results).items():
    assert table in page, title
  default = gradient_bias.Settings()
  settings = results['settings']
  for name, value in default._asdict().items():
    expected = list(value) if isinstance(value, tuple) else value
    assert settings[name] == expected, name
