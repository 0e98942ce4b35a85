"""Nothing that is loaded is run: a pickle, wherever it lies, stays closed.

Code of the user's choosing does run, in two places that exist for it: the file
of --config, and the module of --config.reconstruction_loss=MODULE:FUNCTION.
"""

import contextlib
import pathlib
import pickle
import re
import shutil

import numpy as np
import pytest

import gmvq_jax
from gmvq_jax import data
from gmvq_jax.data import images as images_lib
from gmvq_jax.runtime import cache
from gmvq_jax.runtime import errors
from gmvq_jax.tokenizer import export
from gmvq_jax.training import checkpoint
from gmvq_jax.training import summary

RUNS_CODE = re.compile(
    r'\b(pickle|cPickle|cloudpickle|dill|joblib|marshal|shelve|runpy)\b'
    r'|allow_pickle=True|(yaml|torch)\.(unsafe_)?load'
    r'|(?<![\w.])(eval|exec|__import__)\(|\b(import_module|exec_module)\('
)
ALLOWED = {
    'gmvq_jax/__init__.py': {'import_module('},  # Modules of its own.
    'gmvq_jax/training/command_line.py': {'runpy'},  # --config
    'gmvq_jax/nn/losses.py': {'import_module('},  # reconstruction_loss
}


def test_only_what_a_user_names_as_code_is_run():
  found = {}
  for top in ('gmvq_jax', 'configs'):
    for path in pathlib.Path(top).rglob('*.py'):
      matches = {m[0] for m in RUNS_CODE.finditer(path.read_text())}
      if matches:
        found[str(path)] = matches
  assert found == ALLOWED


class Payload:
  """A pickle of it writes a file when it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.fixture
def payload(tmp_path):
  """One, that must not have been loaded in the end."""
  ran = tmp_path / 'ran'
  payload = Payload(ran)
  pickle.loads(pickle.dumps(payload))
  assert ran.exists()
  ran.unlink()
  yield payload
  assert not ran.exists()


def raw(file, payload):
  pickle.dump(payload, file)


def npy(file, payload):
  np.save(file, np.array([payload]), allow_pickle=True)


def npz(file, payload):
  splits = ('train', 'validation', 'test')
  np.savez(file, **{split: np.array([payload]) for split in splits})


@pytest.mark.parametrize('write, name', [
    (raw, 'array:images.npy'),
    (raw, 'array:images.npz'),
    (npy, 'array:images.npy'),
    (npz, 'array:images.npz'),
    (npz, 'array:images.npy'),
    (raw, 'folder:images.png'),
    (npy, 'folder:images.png'),
])
def test_data(tmp_path, payload, write, name):
  kind, _, file = name.partition(':')
  path = tmp_path / 'data' / file
  path.parent.mkdir()
  with open(path, 'wb') as opened:
    write(opened, payload)
  with pytest.raises(errors.UserError) as refused:
    data.load(f'{kind}:{path if kind == "array" else path.parent}')
  assert str(path) in str(refused.value)


def test_the_cache(tmp_path, payload, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
  lazy = data.Lazy(lambda indices: images[indices], 3, identity='x')
  for write in (raw, npy):
    path = cache.path_of('name', 'x', '.npy')
    path.parent.mkdir(exist_ok=True)
    with open(path, 'wb') as file:
      write(file, payload)
    np.testing.assert_array_equal(images_lib.read_all(lazy, 'name'), images)
  with open(cache.path_of('name', 'y', '.json'), 'wb') as file:
    raw(file, payload)
  assert cache.remember('name', 'y', lambda: 1) == 1


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:coroutine')
def test_checkpoints(tmp_path, payload):
  """Each file of a checkpoint in turn, and all of them."""
  state = {'a': np.ones(3)}
  checkpoints = checkpoint.Checkpoints(tmp_path / 'whole')
  checkpoints.save(1, state, {'n': 1}, {'mse': 0.1})
  checkpoints.close()
  whole = tmp_path / 'whole' / 'checkpoints' / '1'
  files = [p.relative_to(whole) for p in whole.rglob('*') if p.is_file()]
  for number, damaged in enumerate([*([file] for file in files), files]):
    run = tmp_path / str(number)
    shutil.copytree(tmp_path / 'whole', run)
    for file in damaged:
      with open(run / 'checkpoints' / '1' / file, 'wb') as opened:
        raw(opened, payload)
    checkpoints = checkpoint.Checkpoints(run)
    for restore in (checkpoints.restore_best, checkpoints.restore_latest):
      with contextlib.suppress(errors.UserError):
        restore(state)
  with pytest.raises(errors.UserError, match='can be read'):
    checkpoints.restore_best(state)


def test_a_work_directory(trained, tmp_path, payload):
  """The small files of a run."""
  run = shutil.copytree(trained[0], tmp_path / 'run')
  for file in ('examples.npz', 'metrics.jsonl'):
    with open(run / file, 'wb') as opened:
      raw(opened, payload)
  summary.report_workdir(str(run))
  with np.load(run / 'examples.npz') as arrays:
    assert 'images' in arrays
  for file in ('summary.json', 'config.json'):
    with open(run / file, 'wb') as opened:
      raw(opened, payload)
    with pytest.raises(errors.UserError, match=f'{file}: cannot be read'):
      summary.report_workdir(str(run))


def test_a_tokenizer_and_its_codes(trained, tmp_path, payload):
  """Each file that is read of an export, and both forms of codes."""
  exported = tmp_path / 'export'
  export.export(str(trained[0]), str(exported))
  for file in ('weights.safetensors', 'config.json'):
    whole = (exported / file).read_bytes()
    with open(exported / file, 'wb') as opened:
      raw(opened, payload)
    with pytest.raises(errors.UserError, match=file):
      gmvq_jax.Tokenizer.load(exported)
    (exported / file).write_bytes(whole)
  with open(tmp_path / 'codes.json', 'wb') as opened:
    raw(opened, payload)
  np.savez(
      tmp_path / 'codes.npz',
      names=np.array([payload]),
      codes=np.array([payload]),
      description=np.array(payload),
  )
  for path in (tmp_path, tmp_path / 'codes.npz'):
    with pytest.raises(errors.UserError, match='read'):
      gmvq_jax.codes.open(path)
