"""Devices that are not here, as their compilers know them.

TPUs are known to libtpu; NVIDIA's cards are described by `targets.json`, whose
facts are those of OpenXLA's target descriptions
(https://github.com/openxla/xla, xla/backends/gpu/target_config/specs).
"""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib.util
import json
import math
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

import jax
from jax.experimental import topologies

from gmvq_jax.runtime import errors

_TARGETS = json.loads(
    pathlib.Path(__file__).with_name('targets.json').read_text()
)
_CARDS_PER_NODE = 8

# libtpu asks for these where there is no TPU; their values do not matter.
_TPU_ENVIRONMENT = {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_ID': '0',
    'TPU_WORKER_HOSTNAMES': 'localhost',
}
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_per_block}
  shared_memory_per_core: {shared_per_core}
  core_count: {cores}
  fpus_per_core: {units_per_core}
  clock_rate_ghz: {clock_ghz}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_cache}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


class Topology(NamedTuple):
  """Devices of one kind.

  Attributes:
    name: as the user gave it, such as `v5e:4x4`.
    devices: for a mesh.
    memory: of each, in bytes.
    clock_hz: of a TPU's cores; None where it is not known.
    peak_flops: of a TPU a second, in bfloat16; None for GPUs.
    compiler_options: of `jax.stages.Lowered.compile`.
  """

  name: str
  devices: Sequence[jax.Device]
  memory: int
  clock_hz: float | None
  peak_flops: float | None
  compiler_options: Mapping[str, Any]


def find(name: str) -> Topology:
  """Returns the devices of a name.

  Args:
    name: a slice of TPUs, `v5e:4x4` or `v4:2x2x2`, or nodes and cards of GPUs,
      `h100:2x8`.

  Raises:
    errors.UserError: for a name that is none, and for a missing compiler.
  """
  kind, _, sizes = name.partition(':')
  target = _TARGETS.get(kind)
  if target is None:
    raise errors.UserError(
        f'--topology={name}: {kind!r} is unknown; there are'
        f' {", ".join(_TARGETS)}, such as v5e:4x4 or h100:1x8'
    )
  of_tpus = target['kind'] == 'tpu'
  dimensions = target.get('dimensions', 2)
  wanted = (
      f'{kind}:{"x".join("4" * dimensions)}' if of_tpus else f'{kind}:1x8'
  )
  shape = [int(x) for x in sizes.split('x')] if _SIZES.match(sizes) else []
  if len(shape) != dimensions or min(shape) < 1:
    meaning = 'chips along each side' if of_tpus else 'nodes and cards of each'
    raise errors.UserError(
        f'--topology={name}: must give {meaning}, such as {wanted}'
    )
  if not of_tpus and shape[1] > _CARDS_PER_NODE:
    raise errors.UserError(
        f'--topology={name}: {shape[1]} cards in a node: must be at most'
        f' {_CARDS_PER_NODE}'
    )
  describe = _tpus if of_tpus else _gpus
  try:
    described = describe(kind, shape, target)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    line = str(error).partition('\n')[0]
    raise errors.UserError(
        f'--topology={name}: the compiler knows no such devices ({line})'
    ) from error
  return Topology(
      name,
      described.devices,
      target['memory'],
      target.get('clock_hz'),
      target.get('peak_flops'),
      {} if of_tpus else {'xla_gpu_autotune_level': 0},
  )


_SIZES = re.compile(r'\d{1,4}(x\d{1,4})*$')


def _tpus(kind, shape, target):
  _need('libtpu', kind)
  for variable, value in _TPU_ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  options = dict(target.get('options', {}))
  if math.prod(shape) < 4:  # Of one machine, which may have fewer.
    options['chips_per_host_bounds'] = (shape + [1])[:3]
  return topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{kind}:{"x".join(map(str, shape))}',
      **options,
  )


def _gpus(kind, shape, target):
  if not any(map(_installed, ('jax_cuda12_plugin', 'jax_cuda13_plugin'))):
    _need('jax_cuda12_plugin', kind)
  nodes, cards = shape
  return topologies.get_topology_desc(
      platform='cuda',
      topology_name='described',
      topology=f'1x{nodes}x{cards}',
      target_config=_DESCRIPTION.format(**target),
  )


def _need(package, kind):
  if not _installed(package):
    raise errors.UserError(
        f'--topology={kind}: its compiler, {package}, is not installed; pip'
        " install 'gmvq_jax[plan]'"
    )


def _installed(package):
  return importlib.util.find_spec(package) is not None
