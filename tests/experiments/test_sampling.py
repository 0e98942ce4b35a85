"""A trained model as a generative one: bounds on images, and samples."""

import json
import math
import pathlib

import commands
import jax
import numpy as np
from PIL import Image
import pytest
import tiny

from gmvq_jax.experiments import log_likelihood
from gmvq_jax.experiments import sampling
from gmvq_jax.nn import autoencoder
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.tokenizer import encode
from gmvq_jax.tokenizer import saved_model
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib
from gmvq_jax.tokenizer import weights


@pytest.fixture(scope='module')
def loaded(trained, tmp_path_factory):
  """A tokenizer, and nine images."""
  workdir, images = trained
  path = tmp_path_factory.mktemp('images') / 'images.npy'
  np.save(path, images[:9])
  tokenizer = tokenizer_lib.Tokenizer.load(workdir)
  return tokenizer, encode.load_images(tokenizer, f'array:{path}')


def bound(loaded, output, **options):
  tokenizer, images = loaded
  variances = log_likelihood.variances_of(tokenizer, '0.05,0.01', 0.5)
  options = {'num_samples': 60} | options
  return log_likelihood.bound(
      tokenizer, images, variances, str(output), **options
  )


@pytest.fixture(scope='module')
def known_bounds(loaded, tmp_path_factory):
  """The folder of bounds on the nine images, and what `bound` returned."""
  path = tmp_path_factory.mktemp('found') / 'bounds'
  return path, bound(loaded, path)


def test_the_variances_are_those_of_the_loss(loaded):
  tokenizer, _ = loaded
  # beta = 2 sigma_z^2, and gamma = sigma_x^2 / sigma_z^2.
  assert log_likelihood.variances_of(tokenizer) == ((0.05,), 5.0)


def test_bounds_of_a_trained_model(known_bounds):
  path, result = known_bounds
  assert result == json.loads((path / 'bounds.json').read_text())
  assert (path / 'bounds.svg').read_text().count('IWAE, k = 60') == 1
  assert sorted(p.name for p in path.iterdir()) == [
      '.lock', 'bounds.json', 'bounds.svg',
  ]  # fmt: skip
  assert list(result['bounds']) == ['0.05', '0.01']
  for found in result['bounds'].values():
    nats = {name: of['nats'] for name, of in found.items() if 'nats' in of}
    assert {'iwae_1', 'iwae_10', 'iwae_60'} < set(nats)
    assert nats['elbo'] < nats['iwae_1'] < nats['iwae_10'] < nats['iwae_60']
    assert nats['albo_repaired'] < nats['iwae_60']
    assert nats['albo'] < nats['albo_coupled']
    for of in found.values():
      if 'nats' in of:
        bits = math.log2(255) - of['nats'] / (768 * math.log(2))
        np.testing.assert_allclose(of['bits_per_dim'], bits)
        assert of['nats_se'] > 0
    over = found['albo_coupled_over_best']
    np.testing.assert_allclose(
        over['mean'], nats['albo_coupled'] - nats['iwae_60'], rtol=1e-4
    )


@pytest.fixture(scope='module')
def sampled(loaded):
  """60 samples of the nine images by the quantizer's own sampling.

  Returns:
    Squared errors `[60, 9]`, latents `[60, 9, 16, 4]` and their posterior.
  """
  tokenizer, images = loaded
  model = tokenizer.model

  @jax.jit
  def sample(variables, images, keys):
    x = autoencoder.to_unit(images)
    h, _ = model.encode(variables, x)

    def of_key(key):
      # Training's noise, but the statistics of evaluation.
      quantized, _ = model.quantize(
          variables, h, key=key, temperature=1.0, train=True
      )
      decoded, _ = model.decode(variables, quantized.z)
      return ((decoded - x) ** 2).sum(axis=(1, 2, 3)), quantized.z

    squares, z = jax.lax.map(of_key, keys)
    return squares, z, sampling.posterior_of(model, variables, images, 1.0)

  keys = jax.random.split(jax.random.key(0), 60)
  variables = jax.device_get(tokenizer.variables)
  squares, z, posterior = jax.device_get(
      sample(variables, images.images[:], keys)
  )
  return squares, z.reshape(60, 9, 16, 4), posterior


def log_likelihoods(squares, variance):
  """log p(x|z) of 768 values."""
  return -0.5 * (squares / variance + 768 * np.log(2 * np.pi * variance))


def test_likelihoods_are_of_latents_with_noise(known_bounds, sampled):
  _, result = known_bounds
  squares, _, _ = sampled
  # The other terms of the ELBO cancel in a difference of variances.
  elbos = [of['elbo']['nats'] for of in result['bounds'].values()]
  expected = log_likelihoods(squares, 0.05) - log_likelihoods(squares, 0.01)
  check_mean_of_samples(elbos[0] - elbos[1], expected)


def test_importance_weights_are_those_of_the_model(
    loaded, known_bounds, sampled
):
  """p(x|z) p(z) / q(z|x), with the given latent variance in p(z)."""
  _, result = known_bounds
  _, z, posterior = sampled
  codebook = loaded[0].codebook.astype(np.float64)
  distances = np.sum((z[..., None, :] - codebook) ** 2, axis=-1)

  def log_density(log_weights, variances):
    log_codes = log_weights - 0.5 * (
        distances / variances + 4 * np.log(2 * np.pi * variances)
    )
    return np.logaddexp.reduce(log_codes, axis=-1).sum(axis=-1)

  prior = log_density(-np.log(24), np.float64(0.5))
  ratios = prior - log_density(posterior.log_weights, posterior.variances)
  # The likelihood of the samples follows from two ELBOs, whose other terms are
  # the same. It varies more than the ratio.
  one, other = result['bounds'].values()
  constants = log_likelihoods(0, 0.05) - log_likelihoods(0, 0.01)
  difference = one['elbo']['nats'] - other['elbo']['nats'] - constants
  square = difference / (-0.5 / 0.05 + 0.5 / 0.01)
  check_mean_of_samples(
      one['iwae_1']['nats'] - log_likelihoods(square, 0.05), ratios
  )


def check_mean_of_samples(found, expected):
  """Compares with the mean of `expected [samples, images]`."""
  of_samples = expected.mean(axis=1)
  tolerance = 5 * of_samples.std() / math.sqrt(len(of_samples))
  np.testing.assert_allclose(found, of_samples.mean(), atol=tolerance)


def test_batches_change_nothing_and_a_stop_loses_nothing(
    loaded, known_bounds, tmp_path, monkeypatch
):
  _, whole = known_bounds
  # A batch of as few images as there are devices.
  monkeypatch.setattr(sampling, '_LOGITS', {'cpu': 1})
  written, write = [], files.write_json

  def stop_after_one(path, value):
    write(path, value)
    written.append(path.name)
    if len(written) == 1:
      raise KeyboardInterrupt

  monkeypatch.setattr(files, 'write_json', stop_after_one)
  with pytest.raises(KeyboardInterrupt):
    bound(loaded, tmp_path / 'parts')
  again = bound(loaded, tmp_path / 'parts')
  assert written == ['bounds.partial.json'] * 2 + ['bounds.json']
  for variance, found in whole['bounds'].items():
    for name, of in found.items():
      for key, value in of.items():
        np.testing.assert_allclose(
            again['bounds'][variance][name][key], value, rtol=1e-4, atol=1e-2,
            err_msg=f'depends on batches: {name} {key}',
        )  # fmt: skip
  assert bound(loaded, tmp_path / 'parts') == again
  assert len(written) == 3  # Nothing was done.
  with pytest.raises(errors.UserError, match='seed is 0, given 1.; give'):
    bound(loaded, tmp_path / 'parts', seed=1)


@pytest.mark.parametrize('observation, latent, message', [
    ('0', None, r'--observation_variance=0: must be positive numbers'),
    ('1,x', None, r'--observation_variance=1,x: must be positive'),
    ('1,1.0', None, r'--observation_variance=1,1.0: must be .*different'),
    ('nan', None, r'--observation_variance=nan: must be positive'),
    ('', -1.0, r'--latent_variance=-1: must be positive'),
    ('', math.nan, r'--latent_variance=nan: must be positive'),
])
def test_invalid_variances(loaded, observation, latent, message):
  with pytest.raises(errors.UserError, match=message):
    log_likelihood.variances_of(loaded[0], observation, latent)


def test_other_quantizers_are_refused():
  config = tiny.method_config('vqvae')
  tensors = weights.of_model(*tiny.random_model(config))
  tokenizer = tokenizer_lib.Tokenizer(
      saved_model.Stored(config, tensors, (16, 16, 3))
  )
  with pytest.raises(errors.UserError, match='the model is of vqvae: only'):
    sampling.latent_variance_of(tokenizer)


@pytest.mark.parametrize('field', ['hard', 'gaussian_noise'])
def test_other_posteriors_are_refused(loaded, field, monkeypatch):
  tokenizer, _ = loaded
  monkeypatch.setitem(tokenizer.stored.config.quantizer._fields, field, False)
  with pytest.raises(errors.UserError, match=f'quantizer.{field}=False'):
    log_likelihood.variances_of(tokenizer)


def test_outputs_that_are_no_folder_or_in_use_are_refused(loaded, tmp_path):
  with pytest.raises(errors.UserError, match='cannot be a .json; give a'):
    bound(loaded, tmp_path / 'bounds.json')
  assert not (tmp_path / 'bounds.json').exists()
  (tmp_path / 'bounds').mkdir()
  with files.lock(tmp_path / 'bounds'):
    with pytest.raises(errors.UserError, match='another run is using it'):
      bound(loaded, tmp_path / 'bounds')


def test_a_sheet_of_samples(loaded, tmp_path):
  tokenizer, images = loaded
  variance = sampling.latent_variance_of(tokenizer)

  def sample(name, **options):
    path = tmp_path / f'{name}.png'
    summary = sampling.sample(tokenizer, variance, str(path), **options)
    return np.asarray(Image.open(path)), summary

  uniform, summary = sample('uniform', count=4)
  assert uniform.shape == (68, 68, 3)  # Two by two of 16 pixels, doubled.
  assert summary['codes'] == 'uniform' and summary['latent_variance'] == 5
  np.testing.assert_array_equal(sample('same', count=4)[0], uniform)
  # An image depends on the seed and its number alone.
  more = sample('more', count=9)[0]
  np.testing.assert_allclose(more[:32, :32], uniform[:32, :32], atol=1)
  assert np.any(sample('seed', count=4, seed=1)[0] != uniform)
  empirical, summary = sample('q', count=4, images=images)
  assert summary['codes'].startswith('q(c) of array:')
  assert np.any(empirical != uniform)
  with pytest.raises(errors.UserError, match='is there already'):
    sample('uniform')
  with pytest.raises(errors.UserError, match=r'must be a \.png'):
    sampling.sample(tokenizer, variance, str(tmp_path / 'sheet.jpg'))


def test_the_command_line(trained, loaded, known_bounds, tmp_path):
  workdir, _ = trained
  _, images = loaded
  _, known = known_bounds
  source = f'--input={images.source}'
  result = commands.run_here(
      '--mode=bound', f'--workdir={workdir}', source, '--samples=60',
      '--observation_variance=0.05,0.01', '--latent_variance=0.5',
      f'--output={tmp_path}/bounds',
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  printed = json.loads(result.stdout)
  assert printed['settings'] == known['settings']
  assert printed['bounds'] == known['bounds']
  result = commands.run_here(
      '--mode=sample', f'--workdir={workdir}', source, '--limit=4', '--seed=2',
      '--latent_variance=0.1', f'--output={tmp_path}/sheet.png',
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  summary = json.loads(result.stdout)
  assert summary['images'] == 4
  assert summary['latent_variance'] == 0.1
  assert summary['codes'].startswith('q(c) of array:')
  result = commands.run_here(
      '--mode=sample', f'--workdir={workdir}', '--latent_variance=0',
      f'--output={tmp_path}/none.png',
  )  # fmt: skip
  assert result.returncode == 2
  assert '--latent_variance=0: must be positive and finite' in result.stderr


def table_of(results):
  """Returns the rows of docs/results/bounds.md: nats, and bits per value."""
  columns = [of for result in results for of in result['bounds'].values()]
  lines = []
  for name in log_likelihood.names_in(columns[0]):
    cells = [
        f'{of[name]["nats"]:,.0f} ± {of[name]["nats_se"]:.0f}'
        f' ({of[name]["bits_per_dim"]:.2f})'
        for of in columns
    ]
    label = log_likelihood.label_of(name).replace('|', '\\|')
    lines.append('| ' + ' | '.join([label, *cells]) + ' |')
  return '\n'.join(lines)


def test_the_documented_bounds_are_those_of_the_results():
  folder = pathlib.Path('docs/results')
  results = [
      json.loads((folder / f'bounds_{beta}/bounds.json').read_text())
      for beta in (1, 10)
  ]
  page = (folder / 'bounds.md').read_text()
  assert table_of(results) in page
  for result in results:
    assert result['input'] in page
    for of in result['bounds'].values():
      for name in ('albo', 'albo_coupled'):
        over = of[f'{name}_over_best']
        assert f'{over["mean"]:,.0f} ± {over["se"]:.0f}' in page
        assert f'{over["share_of_images"]:.0%}' in page
