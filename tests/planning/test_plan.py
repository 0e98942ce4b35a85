"""`--mode=plan`, with this machine's devices in place of those of a pod."""

import json

import commands
import jax
import pytest
import tiny

from gmvq_jax.planning import compilation
from gmvq_jax.planning import largest_batch
from gmvq_jax.planning import plan
from gmvq_jax.planning import topologies
from gmvq_jax.runtime import errors

PROGRAMS = {
    'train step', 'evaluation', 'calibration', 'start, with k-means', 'encode',
    'decode',
}  # fmt: skip


def topology(memory):
  """Returns two of this machine's devices, as if they had so much memory."""
  return topologies.Topology(
      'v5e:1x2', jax.devices()[:2], memory, None, None, {}
  )


@pytest.fixture(scope='module')
def config():
  return tiny.config('cifar10', data__size=16)


def test_the_plan_of_a_run(config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(topologies, 'find', lambda name: topology(2**21))
  result = plan.plan(config, 'v5e:1x2', str(tmp_path))
  written = json.loads((tmp_path / 'plans' / 'v5e_1x2.json').read_text())
  assert written == json.loads(json.dumps(result))
  assert set(result['programs']) == PROGRAMS
  for known in result['programs'].values():
    assert known['fits']
    assert known['needed'] == sum(known['sizes'].values()) <= 2**21
  step = result['programs']['train step']
  # At least the gradients, of all parameters, and the mean q(c).
  assert sum(x['bytes'] for x in step['sent']) > 10_000
  assert {x['kind'] for x in step['sent']} == {'all-reduce'}
  assert not any(x['bytes'] for x in result['programs']['encode']['sent'])
  assert result['largest_batch'] > 16
  assert result['largest_batch'] % 2 == 0
  printed = capsys.readouterr().out
  assert '2 x cpu, 2.0 MiB of memory each' in printed
  assert f'Largest batch that fits: {result["largest_batch"]}.' in printed
  assert 'Each train step sends' in printed


def test_what_does_not_fit(config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(topologies, 'find', lambda name: topology(2**10))
  with pytest.raises(errors.UserError, match='of 16 images does not fit.*is 0'):
    plan.plan(config, 'v5e:1x2', str(tmp_path))
  written = json.loads((tmp_path / 'plans' / 'v5e_1x2.json').read_text())
  assert not written['programs']['train step']['fits']
  assert written['largest_batch'] == 0


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--config=cifar10'], '--topology is missing; give devices, such as'),
        (['--config=cifar10', '--topology=v9:1'], "'v9' is unknown"),
        (
            ['--config=cifar10', '--topology=v5e:2x2', '--input=x'],
            '--input=x: is not for --mode=plan',
        ),
    ],
)
def test_mistakes_are_one_line(flags, said, tmp_path):
  result = commands.run_here('--mode=plan', f'--workdir={tmp_path}/x', *flags)
  assert result.returncode
  assert result.stderr.count('\n') == 1
  assert said in result.stderr
  assert not (tmp_path / 'x').exists()


def test_batches_that_do_not_divide(config, tmp_path, monkeypatch):
  three = topology(2**30)._replace(devices=jax.devices()[:3])
  monkeypatch.setattr(topologies, 'find', lambda name: three)
  with pytest.raises(errors.UserError, match='not divisible by the 3 devices'):
    plan.plan(config, 'v5e:1x3', str(tmp_path / 'x'))
  assert not (tmp_path / 'x').exists()


def compiled(images, needed, memory):
  return compilation.Compiled(images, 0.0, needed <= memory, needed)


@pytest.mark.parametrize('devices', [1, 4, 256])
@pytest.mark.parametrize('memory', [10**5, 10**7, 10**9])
@pytest.mark.parametrize(('bend', 'saved'), [(1, 0), (0.7, 0), (1, 0.7)])
def test_the_largest_batch_is_found_in_few_steps(devices, memory, bend, saved):
  """Also where memory is not proportional to the batch.

  The last case is a compiler that saves memory where there is little left.
  """
  tried = []

  def needed(size):
    size = int(50_000 + 300 * (size / devices) ** bend)
    return int(size - saved * max(size - 0.8 * memory, 0))

  def compile_step(size):
    assert size % devices == 0
    tried.append(size)
    return compiled(size, needed(size), memory)

  first = compiled(256, needed(256), memory)
  found = largest_batch.largest_batch(compile_step, first, memory, devices)
  assert found % devices == 0
  assert needed(found) <= memory
  assert needed(found + max(found // 15, devices)) > memory
  assert len(set(tried)) == len(tried) <= 9


def test_no_batch_fits():
  first = compiled(256, 2000, 1000)
  found = largest_batch.largest_batch(
      lambda size: compiled(size, 2000, 1000), first, 1000, 4
  )
  assert found == 0


@pytest.mark.parametrize(
    ('message', 'needed'),
    [
        ('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used'
         ' 20.50G of 15.75G hbm.', 20.5 * 2**30),
        ('INTERNAL: something else', None),
    ],
)  # fmt: skip
def test_shortages_are_told_from_other_errors(message, needed):
  assert compilation._needed(message) == needed
