"""An exported tokenizer."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny

import gmvq_jax
from gmvq_jax.runtime import errors
from gmvq_jax.tokenizer import export
from gmvq_jax.training import summary

EXAMPLES = pathlib.Path(__file__).parents[2] / 'examples'

COUNTS = 1, 3, 60
# Without this package.
RUN = '''
import sys
sys.modules['gmvq_jax'] = sys.modules['flax'] = sys.modules['optax'] = None
import jax.export
import numpy as np

folder, *counts = sys.argv[1:]
programs = [open(f'{folder}/{name}.stablehlo', 'rb').read()
            for name in ('encode', 'decode')]
encode, decode = map(jax.export.deserialize, programs)
assert set(encode.platforms) == {'cpu', 'cuda', 'tpu'} == set(decode.platforms)
images = np.load(f'{folder}/../images.npy')
for count in map(int, counts):
  codes = encode.call(images[:count])
  np.savez(f'{folder}/../{count}.npz', codes=codes, images=decode.call(codes))
'''


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
  path = tmp_path_factory.mktemp('export')
  np.save(path / 'images.npy', trained[1])
  export.export(str(trained[0]), str(path / 'tokenizer'))
  return path / 'tokenizer'


@pytest.fixture(scope='module')
def tokenizer(trained):
  return gmvq_jax.Tokenizer.load(trained[0])


def test_files(exported):
  assert sorted(p.name for p in exported.iterdir()) == [
      'README.md', 'config.json', 'decode.stablehlo', 'encode.stablehlo',
      'weights.safetensors',
  ]  # fmt: skip


def test_it_runs_with_jax_alone(exported, trained, tokenizer):
  """On any number of images, with the codes and pixels of the tokenizer."""
  code = exported.parent / 'code.py'
  code.write_text(RUN)
  done = subprocess.run(
      [sys.executable, code, exported, *map(str, COUNTS)],
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
      cwd=exported.parent,
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr
  for count in COUNTS:
    case = f'{count} images'
    made = np.load(exported.parent / f'{count}.npz')
    codes = tokenizer.encode(trained[1][:count])
    np.testing.assert_array_equal(made['codes'], codes, case)
    np.testing.assert_array_equal(made['images'], tokenizer.decode(codes), case)


def test_it_loads_as_a_tokenizer(exported, trained, tokenizer):
  loaded = gmvq_jax.Tokenizer.load(exported)
  assert loaded.hash == tokenizer.hash
  assert loaded.image_shape == tokenizer.image_shape
  codes = loaded.encode(trained[1])
  np.testing.assert_array_equal(codes, tokenizer.encode(trained[1]))
  np.testing.assert_array_equal(loaded.decode(codes), tokenizer.decode(codes))


def test_metrics_and_anchors_are_exported(exported, trained, tokenizer):
  config = json.loads((exported / 'config.json').read_text())
  known = summary.evaluate_workdir(str(trained[0]))
  assert config['metrics'] == known
  assert config['tokenizer'] == tokenizer.hash
  assert config['grid'] == [4, 4]
  card = (exported / 'README.md').read_text()
  (row,) = re.findall(r'this tokenizer \|(.*)\|', card)
  columns = [float(x.replace(',', '')) for x in row.split('|')]
  fields = ('mse', 'psnr', 'ssim', 'perplexity', 'bits_per_image')
  expected = [known[name] for name in fields]
  expected[0] *= 1000
  np.testing.assert_allclose(columns, expected, rtol=1e-2)
  bound = config['anchors']['gaussian']['mse']
  (row,) = re.findall(r'Gaussian rate-distortion \|([^|]*)\|', card)
  np.testing.assert_allclose(float(row), 1000 * bound, rtol=1e-2)
  assert 'k-means on patches' in card
  assert tokenizer.hash in card
  assert '&' not in card, 'escaped as if it were HTML'


def test_the_card_has_code_that_runs(exported, monkeypatch):
  card = (exported / 'README.md').read_text()
  code = card.partition('```python\n')[2].partition('```')[0]
  monkeypatch.chdir(exported)
  names = {}
  exec(code, names)
  assert names['codes'].shape == (5, 4, 4)
  assert names['restored'].shape == (5, 16, 16, 3)


@pytest.fixture(scope='module')
def without_data(photographs, tmp_path_factory):
  """The work directory of a run whose images were removed."""
  path = tmp_path_factory.mktemp('without_data')
  exp = tiny.make(tiny.save_images(path, photographs))
  tiny.save_checkpoints(exp, path / 'run', {1: 0.1})
  (path / 'images.npz').unlink()
  return path / 'run'


def test_without_the_data_the_card_says_so(without_data, tmp_path):
  path = tmp_path / 'out'
  export.export(str(without_data), str(path))
  card = (path / 'README.md').read_text()
  assert 'Not known:' in card and 'images.npz' in card
  assert gmvq_jax.Tokenizer.load(path).num_codes == 16


def message_of(function, *args):
  with pytest.raises(errors.UserError) as caught:
    function(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_outputs_that_exist_are_refused(exported, trained, tmp_path):
  before = {p: p.read_bytes() for p in exported.iterdir()}
  workdir = str(trained[0])
  assert 'is there already' in message_of(export.export, workdir, str(exported))
  assert {p: p.read_bytes() for p in exported.iterdir()} == before
  (tmp_path / 'file').write_text('')
  assert 'is there already' in message_of(
      export.export, workdir, str(tmp_path / 'file')
  )
  assert 'exported tokenizer' in message_of(
      export.export, str(exported), str(tmp_path / 'new')
  )


def test_an_export_is_written_whole_or_not_at_all(
    without_data, tmp_path, monkeypatch
):
  def fail(*_):
    raise OSError('No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_bytes', fail)
  with pytest.raises(OSError, match='No space'):
    export.export(str(without_data), str(tmp_path / 'out'))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'file, change, said',
    [
        ('config.json', lambda x: b'', 'cannot be read'),
        ('config.json', lambda x: b'{}', 'is not that of an exported'),
        ('config.json', None, 'is missing'),
        (
            'config.json',
            lambda x: x.replace(b'"weight_scale": 1.0', b'"weight_scale": 2.0'),
            'is damaged',
        ),
        ('config.json', lambda x: x.replace(b'"gmvq"', b'"gm"'), 'gm'),
        (
            'config.json',
            lambda x: x.replace(b'"width": 8', b'"width": 16'),
            'its configuration makes it',
        ),
        ('weights.safetensors', lambda x: x[:-1], 'cannot be read'),
        (
            'weights.safetensors',
            lambda x: x[:-1] + bytes([x[-1] ^ 1]),
            'is damaged',
        ),
    ],
)
def test_damage_is_seen(exported, tmp_path, file, change, said):
  path = shutil.copytree(exported, tmp_path / 'copy')
  if change is None:
    (path / file).unlink()
  else:
    before = (path / file).read_bytes()
    (path / file).write_bytes(change(before))
    assert (path / file).read_bytes() != before
  assert said in message_of(gmvq_jax.Tokenizer.load, path)


def test_the_decoder_in_pytorch(exported, tokenizer, rng):
  torch = pytest.importorskip('torch')
  sys.path.insert(0, str(EXAMPLES))
  try:
    import torch_decoder
  finally:
    sys.path.pop(0)
  codes = rng.integers(0, 24, (9, 4, 5))
  decoded = torch_decoder.decode(exported, torch.from_numpy(codes))
  np.testing.assert_allclose(decoded, tokenizer.decode(codes), atol=1e-4)
