"""A trained model as a generative one: bounds on images, and samples."""

import json
import math
import pathlib

import numpy as np
from PIL import Image
import pytest
import test_main
import tiny

from gmvq_jax import bounds
from gmvq_jax import encoding
from gmvq_jax import errors
from gmvq_jax import generative
from gmvq_jax import likelihood
from gmvq_jax import tokenizer as tokenizer_lib
from gmvq_jax import train
from gmvq_jax import workdir as workdir_lib


@pytest.fixture
def loaded(trained, tmp_path):
  """A tokenizer, and nine images."""
  workdir, images = trained
  np.save(tmp_path / 'images.npy', images[:9])
  tokenizer = tokenizer_lib.Tokenizer.load(workdir)
  return tokenizer, encoding.load_images(
      tokenizer, f'array:{tmp_path}/images.npy'
  )


def bound(loaded, output, **options):
  tokenizer, images = loaded
  variances = likelihood.variances_of(tokenizer, '0.05,0.01', 0.5)
  options = {'num_samples': 20} | options
  return likelihood.bound(tokenizer, images, variances, str(output), **options)


def test_the_variances_are_those_of_the_loss(loaded):
  tokenizer, _ = loaded
  # beta = 2 sigma_z^2, and gamma = sigma_x^2 / sigma_z^2.
  assert likelihood.variances_of(tokenizer) == ((0.05,), 5.0)


def test_bounds_of_a_trained_model(loaded, tmp_path):
  result = bound(loaded, tmp_path / 'bounds')
  assert result == json.loads((tmp_path / 'bounds/bounds.json').read_text())
  assert (tmp_path / 'bounds/bounds.svg').read_text().count('IWAE, k = 20') == 1
  assert sorted(p.name for p in (tmp_path / 'bounds').iterdir()) == [
      '.lock', 'bounds.json', 'bounds.svg',
  ]  # fmt: skip
  assert list(result['bounds']) == ['0.05', '0.01']
  for found in result['bounds'].values():
    nats = {name: of['nats'] for name, of in found.items() if 'nats' in of}
    assert {'iwae_1', 'iwae_10', 'iwae_20'} < set(nats)
    assert nats['elbo'] < nats['iwae_1'] < nats['iwae_10'] < nats['iwae_20']
    assert nats['albo_repaired'] < nats['iwae_20']
    assert nats['albo'] < nats['albo_coupled']
    for of in found.values():
      if 'nats' in of:
        bits = math.log2(255) - of['nats'] / (768 * math.log(2))
        np.testing.assert_allclose(of['bits_per_dim'], bits)
        assert of['nats_se'] > 0
    over = found['albo_coupled_over_best']
    np.testing.assert_allclose(
        over['mean'], nats['albo_coupled'] - nats['iwae_20'], rtol=1e-4
    )


def test_likelihoods_are_of_latents_with_noise(loaded, tmp_path):
  """An independent estimate, by the quantizer's own sampling."""
  import jax

  from gmvq_jax import autoencoder

  tokenizer, images = loaded
  result = bound(loaded, tmp_path / 'bounds', num_samples=60)
  model, variables = tokenizer.model, tokenizer.variables
  x = autoencoder.to_unit(images.images[:])
  h, _ = model.encode(variables, x)

  @jax.jit
  def error(key):
    # Training's noise, but the statistics of evaluation.
    quantized, _ = model.quantize(
        variables, h, key=key, temperature=1.0, train=True
    )
    decoded, _ = model.decode(variables, quantized.z)
    return ((decoded - x) ** 2).sum(axis=(1, 2, 3))

  errors_of = np.array([error(jax.random.key(i)) for i in range(60)])
  expected = bounds.log_likelihood(errors_of, 0.05, data_dim=768)
  found = result['bounds']['0.05']
  # What the ELBO has besides it cancels in a difference of variances.
  other = bounds.log_likelihood(errors_of, 0.01, data_dim=768)
  difference = found['elbo']['nats'] - result['bounds']['0.01']['elbo']['nats']
  of_draws = (expected - other).mean(axis=1)
  tolerance = 5 * of_draws.std() / math.sqrt(60)
  np.testing.assert_allclose(difference, of_draws.mean(), atol=tolerance)


def test_batches_change_nothing_and_a_stop_loses_nothing(
    loaded, tmp_path, monkeypatch
):
  whole = bound(loaded, tmp_path / 'whole')
  # A batch of as few images as there are devices.
  monkeypatch.setattr(generative, '_LOGITS', {'cpu': 1})
  written, write = [], workdir_lib.write_json

  def stop_after_one(path, value):
    write(path, value)
    written.append(path.name)
    if len(written) == 1:
      raise KeyboardInterrupt

  monkeypatch.setattr(workdir_lib, 'write_json', stop_after_one)
  with pytest.raises(KeyboardInterrupt):
    bound(loaded, tmp_path / 'parts')
  again = bound(loaded, tmp_path / 'parts')
  assert written == ['bounds.partial.json'] * 2 + ['bounds.json']
  for variance, found in whole['bounds'].items():
    for name, of in found.items():
      for key, value in of.items():
        np.testing.assert_allclose(
            again['bounds'][variance][name][key], value, rtol=1e-4, atol=1e-2,
            err_msg=f'{name} {key}',
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
def test_variances_that_are_none(loaded, observation, latent, message):
  with pytest.raises(errors.UserError, match=message):
    likelihood.variances_of(loaded[0], observation, latent)


def test_other_quantizers_are_refused(tmp_path, photographs):
  config = tiny.method_config('vqvae')
  config.data.name = tiny.save_images(tmp_path, photographs)
  config.num_steps = 1
  train.run(config, str(tmp_path / 'run'), test=False)
  tokenizer = tokenizer_lib.Tokenizer.load(tmp_path / 'run')
  with pytest.raises(errors.UserError, match='the model is of vqvae: only'):
    generative.latent_variance_of(tokenizer)


@pytest.mark.parametrize('field', ['hard', 'gaussian_noise'])
def test_other_posteriors_are_refused(loaded, field, monkeypatch):
  tokenizer, _ = loaded
  monkeypatch.setitem(tokenizer.stored.config.quantizer._fields, field, False)
  with pytest.raises(errors.UserError, match=f'quantizer.{field}=False'):
    likelihood.variances_of(tokenizer)


def test_a_folder_is_a_folder_and_nobody_elses(loaded, tmp_path):
  with pytest.raises(errors.UserError, match='cannot be a .json; give a'):
    bound(loaded, tmp_path / 'bounds.json')
  assert not (tmp_path / 'bounds.json').exists()
  (tmp_path / 'bounds').mkdir()
  with workdir_lib.lock(tmp_path / 'bounds'):
    with pytest.raises(errors.UserError, match='another run is using it'):
      bound(loaded, tmp_path / 'bounds')


def test_samples_are_a_sheet(loaded, tmp_path):
  tokenizer, images = loaded
  variance = generative.latent_variance_of(tokenizer)

  def draw(name, **options):
    path = tmp_path / f'{name}.png'
    summary = generative.sample(tokenizer, variance, str(path), **options)
    return np.asarray(Image.open(path)), summary

  uniform, summary = draw('uniform', count=4)
  assert uniform.shape == (68, 68, 3)  # Two by two of 16 pixels, doubled.
  assert summary['codes'] == 'uniform' and summary['latent_variance'] == 5
  np.testing.assert_array_equal(draw('same', count=4)[0], uniform)
  # An image is its number's, whatever stands beside it.
  more = draw('more', count=9)[0]
  np.testing.assert_allclose(more[:32, :32], uniform[:32, :32], atol=1)
  assert np.any(draw('seed', count=4, seed=1)[0] != uniform)
  empirical, summary = draw('q', count=4, images=images)
  assert summary['codes'].startswith('q(c) of array:')
  assert np.any(empirical != uniform)
  with pytest.raises(errors.UserError, match='is there already'):
    draw('uniform')
  with pytest.raises(errors.UserError, match=r'must be a \.png'):
    generative.sample(tokenizer, variance, str(tmp_path / 'sheet.jpg'))


def test_the_command_line(trained, tmp_path):
  workdir, images = trained
  np.save(tmp_path / 'images.npy', images[:3])
  source = f'--input=array:{tmp_path}/images.npy'
  result = test_main.call(
      '--mode=bound', f'--workdir={workdir}', source, '--samples=10',
      '--observation_variance=0.1', f'--output={tmp_path}/bounds',
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  settings = json.loads(result.stdout)['settings']
  assert settings['samples'] == 10
  assert settings['observation_variances'] == [0.1]
  result = test_main.call(
      '--mode=sample', f'--workdir={workdir}', source, '--limit=4', '--seed=2',
      '--latent_variance=0.1', f'--output={tmp_path}/sheet.png',
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  assert json.loads(result.stdout)['images'] == 4
  result = test_main.call(
      '--mode=sample', f'--workdir={workdir}', '--latent_variance=0',
      f'--output={tmp_path}/none.png',
  )  # fmt: skip
  assert result.returncode == 2
  assert '--latent_variance=0: must be positive and finite' in result.stderr


def table_of(results):
  """Returns the rows of docs/results/bounds.md: nats, and bits per value."""
  columns = [of for result in results for of in result['bounds'].values()]
  lines = []
  for name in likelihood.names_in(columns[0]):
    cells = [
        f'{of[name]["nats"]:,.0f} ± {of[name]["nats_se"]:.0f}'
        f' ({of[name]["bits_per_dim"]:.2f})'
        for of in columns
    ]
    label = likelihood.label_of(name).replace('|', '\\|')
    lines.append('| ' + ' | '.join([label, *cells]) + ' |')
  return '\n'.join(lines)


def test_the_page_has_the_bounds_of_its_results():
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
