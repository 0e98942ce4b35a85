"""Programs compiled by the real compilers for TPUs and GPUs; nothing runs.

The compilers are in the extra `plan`; the one for TPUs is in `test` too.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

import gmvq_jax
from gmvq_jax.tokenizer import export

TPU = pytest.param(
    'v5e',
    marks=pytest.mark.skipif(
        not importlib.util.find_spec('libtpu'), reason='libtpu is missing'
    ),
)
GPU = pytest.param(
    'h100',
    marks=pytest.mark.skipif(
        not importlib.util.find_spec('jax_cuda12_plugin'),
        reason='jax_cuda12_plugin is missing',
    ),
)
LARGE, SMALL = {'v5e': '4x4', 'h100': '1x8'}, {'v5e': '2x2', 'h100': '1x4'}

PROGRAM = """
import json
import sys
import jax
import jax.export
from jax.sharding import SingleDeviceSharding
import tiny
from gmvq_jax.planning import compilation
from gmvq_jax.planning import programs
from gmvq_jax.planning import topologies
from gmvq_jax.runtime import distributed

jax.config.update('jax_platforms', 'cpu')
"""

TRAIN_STEP = """
config = tiny.config('cifar10', quantizer__assignment='tiled')
for name in sys.argv[1:]:
  target = topologies.find(name)
  mesh = distributed.mesh_of(target.devices)
  step = programs.train_step(config, (16, 16, 3), mesh, 32 * mesh.size)
  print(json.dumps(compilation.compile_for(target, step).to_json()))
"""

EXPORTED = """
target = topologies.find(sys.argv[1])
placed = SingleDeviceSharding(target.devices[0])
for path, shape, dtype in zip(
    sys.argv[2:4], ((5, 16, 16, 3), (5, 4, 4)), ('uint8', 'int32')
):
  exported = jax.export.deserialize(bytearray(open(path, 'rb').read()))
  batch = jax.ShapeDtypeStruct(shape, dtype, sharding=placed)
  lowered = jax.jit(exported.call).lower(batch)
  compiled = lowered.compile(compiler_options=dict(target.compiler_options))
  print(json.dumps([x.shape for x in jax.tree.leaves(compiled.out_info)]))
"""


def run(program, *arguments):
  """Returns the lines of JSON that a program prints in its own process.

  Compilers end a process for flags that they do not know, and the flags of the
  tests are those of the CPU's compiler.
  """
  here = str(pathlib.Path(__file__).parents[1])
  done = subprocess.run(
      [sys.executable, '-c', PROGRAM + program, *map(str, arguments)],
      env=os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': here},
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize('kind', [TPU])
def test_a_step_compiles(kind):
  (step,) = run(TRAIN_STEP, f'{kind}:{SMALL[kind]}')
  assert step['fits']
  assert step['estimated_seconds'] > 0
  assert {x['kind'] for x in step['sent']} == {'all-reduce'}


@pytest.mark.slow
@pytest.mark.parametrize('kind', [TPU, GPU])
def test_devices_hold_and_send_as_much_among_more(kind):
  small, large = run(
      TRAIN_STEP, f'{kind}:{SMALL[kind]}', f'{kind}:{LARGE[kind]}'
  )
  for step in (small, large):
    step['sent'] = sum(x['bytes'] for x in step['sent'])
  assert small['sent'] == large['sent'] > 0
  assert large['needed'] == pytest.approx(small['needed'], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [TPU, GPU])
def test_exports_compile(kind, trained, tmp_path):
  tokenizer = gmvq_jax.Tokenizer.load(trained[0])
  for name, content in export.programs(tokenizer).items():
    (tmp_path / name).write_bytes(content)
  shapes = run(
      EXPORTED, f'{kind}:1x1', tmp_path / 'encode', tmp_path / 'decode'
  )
  assert shapes == [[[5, 4, 4]], [[5, 16, 16, 3]]]
