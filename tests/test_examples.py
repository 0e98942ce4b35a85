"""The programs of examples/."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import commands
import jax
import numpy as np
from PIL import Image
import pytest

import gmvq_jax
from gmvq_jax.tokenizer import encode

EXAMPLES = pathlib.Path(__file__).parent.parent / 'examples'


def run(name, num_steps):
  return runpy.run_path(str(EXAMPLES / f'{name}.py'))['main'](num_steps)


@pytest.mark.parametrize('name, reads', [
    ('image_autoencoder', "print(f'step"),
    ('audio_codec', 'float('),
    ('semantic_ids', 'np.asarray(quantized.codes'),
    ('padded_sets', 'float(mean_error'),
])
def test_training_can_be_traced(name, reads):
  """Without values, up to the line that reads the first of the figures."""
  with pytest.raises(TypeError) as stopped:
    jax.eval_shape(lambda: run(name, 100))
  lines = [x for x in stopped.traceback if x.path == EXAMPLES / f'{name}.py']
  assert reads in str(lines[-1].statement)


def test_programs_with_flags_start():
  """They are imported, and parse their flags."""
  symptoms = commands.run_here('--only=none', module='examples/symptoms.py')
  assert symptoms.returncode == 0
  assert 'codebook_moved' in symptoms.stdout
  prior = commands.run_here(module='examples/prior.py')
  commands.assert_one_line(prior, '--tokenizer is missing')


@pytest.mark.slow
def test_linen_images():
  figures = run('image_autoencoder', 300)
  assert figures['mse'] < 0.2 * figures['variance']
  assert figures['perplexity'] > 8


@pytest.mark.slow
def test_nnx_audio():
  """Each level of codes is worth its bits."""
  figures = run('audio_codec', 400)
  assert figures['snr_1'] > 6
  for level in (1, 2, 3):
    assert figures[f'snr_{level + 1}'] > figures[f'snr_{level}'] + 0.8


@pytest.mark.slow
def test_jax_semantic_ids():
  """IDs tell items apart, and how they begin tells what they are."""
  figures = run('semantic_ids', 200)
  assert figures['distinct'] > 0.6
  assert figures['unexplained'] < 0.4
  assert figures['same_label'] > 0.8


@pytest.mark.slow
def test_equinox_padded_sets():
  """Where the padding is NaN a single slip would spoil everything."""
  figures = run('padded_sets', 300)
  assert figures['mse'] < 0.15 * figures['variance']
  assert figures['perplexity'] > 12


@pytest.mark.slow
def test_symptoms():
  """A state that is not kept is seen in the figure for it."""
  done = subprocess.run(
      [sys.executable, EXAMPLES / 'symptoms.py', '--only=ema', '--steps=2'],
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr
  names, _, *rows = (
      [cell.strip() for cell in line.split('|')[1:-1]]
      for line in done.stdout.splitlines()
  )
  moved = {row[0]: float(row[names.index('codebook_moved')]) for row in rows}
  assert moved['ema'] > 0
  assert moved['ema, state not kept'] == 0


@pytest.mark.slow
def test_prior(trained, photographs, tmp_path):
  """It is better than frequencies, on codes that follow one another."""
  workdir, held_out = trained
  tokenizer = gmvq_jax.Tokenizer.load(workdir)
  for name, images in (('train', photographs[:480]), ('held_out', held_out)):
    np.save(tmp_path / f'{name}.npy', images)
    loaded = encode.load_images(tokenizer, f'array:{tmp_path}/{name}.npy')
    encode.encode(tokenizer, loaded, str(tmp_path / name))
  done = subprocess.run(
      [
          *(sys.executable, EXAMPLES / 'prior.py', f'--tokenizer={workdir}'),
          *(f'--train={tmp_path}/train', f'--validation={tmp_path}/held_out'),
          *(f'--output={tmp_path}/prior', '--steps=150', '--width=32'),
          *('--layers=1', '--samples=9', '--batch=32'),
      ],
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / 'prior' / 'summary.json').read_text())
  bits = summary['bits_per_image']
  assert bits['transformer'] < bits['order 0'] < bits['uniform']
  assert bits['uniform'] == 16 * np.log2(24)
  sheet = Image.open(tmp_path / 'prior' / 'samples.png')
  assert sheet.size == (2 * 52, 2 * 52)
