"""Checkpoints: latest and best, damage, and foreign ones."""

import errno
import re
import shutil

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.training import checkpoint


def state(value):
  value = {'a': np.full(3, value, np.float32), 'b': (np.int32(value),)}
  return jax.device_put(value)


def fill(tmp_path, mses):
  """Saves step 1, 2, ... with these errors; None: not evaluated."""
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step, mse in enumerate(mses, 1):
    checkpoints.save(step, state(step), {'n': step}, mse and {'mse': mse})
  checkpoints.close()
  return checkpoint.Checkpoints(tmp_path)


def steps(tmp_path):
  return sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())


def truncate(tmp_path, step):
  """Empties the files that hold the arrays of a checkpoint."""
  folder = tmp_path / 'checkpoints' / str(step)
  files = [p for p in folder.rglob('d/*') if p.is_file()]
  assert files
  for path in files:
    path.write_bytes(b'')


def test_keeps_the_last_two_and_the_best(tmp_path):
  checkpoints = fill(tmp_path, [0.5, 0.2, 0.3, None, None])
  assert steps(tmp_path) == [2, 4, 5]
  restored, place, step = checkpoints.restore_latest(state(0))
  assert step == place['n'] == checkpoints.steps[0] == 5
  chex.assert_trees_all_equal(restored, state(5))
  restored, _, step = checkpoints.restore_best(state(0))
  assert step == 2
  chex.assert_trees_all_equal(restored, state(2))


def test_an_empty_directory_has_no_checkpoint(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert checkpoints.restore_latest(state(0)) is None
  with pytest.raises(errors.UserError, match='no checkpoint yet'):
    checkpoints.restore_best(state(0))


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(tmp_path, caplog):
  fill(tmp_path, [None, None, None]).close()
  truncate(tmp_path, 3)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  restored, _, step = checkpoints.restore_latest(state(0))
  assert step == checkpoints.steps[0] == 2
  chex.assert_trees_all_equal(restored, state(2))
  assert 'Checkpoint 3' in caplog.text
  assert (tmp_path / 'damaged_checkpoints' / '3').is_dir()
  # The run comes to that step again, and saves it.
  checkpoints.save(3, state(3), {})
  checkpoints.close()
  again, _, step = checkpoint.Checkpoints(tmp_path).restore_latest(state(0))
  assert step == 3
  chex.assert_trees_all_equal(again, state(3))


def test_if_the_best_is_damaged_the_next_best_is_used(tmp_path, caplog):
  fill(tmp_path, [0.1, 0.3, 0.2]).close()
  truncate(tmp_path, 1)
  *_, step = checkpoint.Checkpoints(tmp_path).restore_best(state(0))
  assert step == 3
  assert 'Checkpoint 1' in caplog.text


# Orbax abandons what else it was reading.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:coroutine')
@pytest.mark.parametrize(
    'foreign',
    [
        {'other': np.zeros(3, np.float32)},
        {'a': np.zeros(4, np.float32), 'b': (np.zeros((), np.int32),)},
    ],
    ids=['other names', 'other shapes'],
)
def test_a_checkpoint_of_another_structure_is_refused(tmp_path, foreign):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, jax.device_put(foreign), {})
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(tmp_path)
  with pytest.raises(errors.UserError, match='none of its checkpoints can be'):
    checkpoints.restore_latest(state(0))
  assert steps(tmp_path) == [1]


def swap(step):
  """Gives a checkpoint the arrays of the one before."""
  shutil.rmtree(step / 'state')
  shutil.copytree(step.with_name('2') / 'state', step / 'state')


def move(step):
  """Gives a checkpoint another place in the data."""
  path = step / 'record' / 'metadata'
  changed = re.sub(r'"n": ?3', '"n": 7', path.read_text())
  assert changed != path.read_text()
  path.write_text(changed)


DAMAGES = {
    'another place': move,
    'arrays of another': swap,
    'no arrays': lambda step: shutil.rmtree(step / 'state'),
    'no record': lambda step: shutil.rmtree(step / 'record'),
    'nothing': lambda step: (shutil.rmtree(step), step.mkdir()),
    'no metrics': lambda step: (step / 'metrics' / 'metrics').write_text(''),
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_no_damage_to_the_newest_hides_the_others(tmp_path, damage):
  """The run goes on from one of them, and saves that step again."""
  fill(tmp_path, [0.3, 0.2, 0.1]).close()
  damage(tmp_path / 'checkpoints' / '3')
  checkpoints = checkpoint.Checkpoints(tmp_path)
  restored, place, step = checkpoints.restore_latest(state(0))
  assert step in (2, 3)
  assert place == {'n': step}
  chex.assert_trees_all_equal(restored, state(step))
  chex.assert_trees_all_equal(*checkpoints.restore_best(state(0))[:1], state(2))
  checkpoints.save(3, state(3), {})
  checkpoints.save(4, state(4), {}, {'mse': 0.5})
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert checkpoints.steps == [4, 3, 2]
  assert checkpoints.restore_best(state(0))[2] == 2


def test_a_disk_that_becomes_read_only(tmp_path, monkeypatch):
  """One line, and the checkpoint before can be restored."""
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, state(1), {})
  checkpoints.wait()

  def refuse(*args, **kwargs):
    raise OSError(errno.EROFS, 'Read-only file system')

  monkeypatch.setattr(ocp.CheckpointManager, 'save', refuse)
  with pytest.raises(errors.UserError, match='cannot be written.*Read-only'):
    checkpoints.save(2, state(2), {})
  restored, _, step = checkpoints.restore_latest(state(0))
  assert step == 1
  chex.assert_trees_all_equal(restored, state(1))


def test_other_names_are_left_alone(tmp_path):
  fill(tmp_path, [0.5]).close()
  for name in ('\u00b2', '0007', 'notes', '-1'):
    (tmp_path / 'checkpoints' / name).mkdir()
  assert checkpoint.Checkpoints(tmp_path).steps == [1]


def test_replicas_that_differ_are_saved_as_the_first(tmp_path):
  """On devices whose rounding differs; the digest is of what is written."""
  mesh = distributed.data_mesh()
  shards = [
      jax.device_put(np.full(3, 1 + 1e-6 * i, np.float32), device)
      for i, device in enumerate(jax.devices())
  ]
  array = jax.make_array_from_single_device_arrays(
      (3,), distributed.replicated(mesh), shards
  )
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, {'a': array}, {})
  checkpoints.close()
  restored, *_ = checkpoints.restore_latest({'a': array})
  np.testing.assert_array_equal(restored['a'], 1)


def test_a_step_that_is_there_is_not_saved_again(tmp_path):
  checkpoints = fill(tmp_path, [0.5])
  checkpoints.save(1, state(9), {}, {'mse': 0.1})
  checkpoints.wait()
  restored, *_ = checkpoints.restore_latest(state(0))
  chex.assert_trees_all_equal(restored, state(1))


def files(tmp_path, step):
  """Returns the files of a checkpoint, relative to it."""
  folder = tmp_path / 'checkpoints' / str(step)
  return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


def flip(path, rng):
  """Flips one bit."""
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(bytes(content))


def halve(path, rng):
  del rng
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path, rng):
  del rng
  path.unlink()


def replace(path, rng):
  path.write_bytes(rng.bytes(100))


def nothing(path, rng):
  del rng
  path.write_text('null')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:coroutine')
@pytest.mark.parametrize('damage', [flip, halve, delete, replace, nothing])
def test_no_damage_to_any_file_goes_unnoticed(tmp_path, rng, damage):
  """A state that was saved is restored, of the last step or the one before.

  Then the run can save again.
  """
  fill(tmp_path / 'whole', [0.3, 0.2, 0.1]).close()
  older = 0
  for number, file in enumerate(files(tmp_path / 'whole', 3)):
    here = tmp_path / str(number)
    shutil.copytree(tmp_path / 'whole', here)
    path = here / 'checkpoints' / '3' / file
    if not path.stat().st_size:
      continue
    damage(path, rng)
    checkpoints = checkpoint.Checkpoints(here)
    restored, place, step = checkpoints.restore_latest(state(0))
    assert step in (2, 3), file
    older += step == 2
    assert place == {'n': step}
    chex.assert_trees_all_equal(restored, state(step))
    checkpoints.save(step + 1, state(step + 1), {}, {'mse': 0.5})
    checkpoints.close()
    assert checkpoints.steps[0] == step + 1
  assert older >= 3  # Arrays, their names and the record, at least.
