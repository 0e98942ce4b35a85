"""What dividing a train step over devices costs, and what it sends.

    python benchmarks/partitioning.py --config=configs/cifar10.py
        [--image_size=32] [--output=FILE.json]

The same batch of noise on one device and on eight, all of this machine's CPU: a
ratio of times near 1 says that dividing adds little work. `sent` are the
collectives of the compiled step.
"""

import collections
import functools
import os
import re

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')

from absl import app  # noqa: E402  (JAX reads the environment)
from absl import flags  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from ml_collections import config_flags  # noqa: E402
import numpy as np  # noqa: E402
import timing  # noqa: E402

from gmvq_jax import distributed  # noqa: E402
from gmvq_jax import programs  # noqa: E402
from gmvq_jax import schedules  # noqa: E402
from gmvq_jax import train_step  # noqa: E402

_KINDS = (
    'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
    'collective-permute',
)  # fmt: skip
_SENT = re.compile(rf'= (.*?) ({"|".join(_KINDS)})(?:-start)?\(')
_ARRAY = re.compile(r'(pred|[a-z]+(\d+))\[([\d,]*)\]')


def sent(hlo: str) -> dict[str, int]:
  """Returns the collectives of a compiled program: bytes by kind and shape."""
  result = collections.Counter()
  for shapes, kind in _SENT.findall(hlo):
    for dtype, bits, dims in _ARRAY.findall(shapes):
      sizes = [int(n) for n in dims.split(',') if n]
      size = int(np.prod(sizes)) * int(bits or 8) // 8
      result[f'{kind} {dtype}[{dims}]'] += size
  return dict(result)


def compile_step(config, image_size, num_devices):
  """Returns a compiled train step, and a function that makes its arguments.

  Args:
    config: of a run.
    image_size: H = W, of three channels.
    num_devices: that share a batch of `config.batch_size`.
  """
  mesh = jax.make_mesh(
      (num_devices,),
      (distributed.AXIS,),
      axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:num_devices],
  )
  whole, divided = distributed.replicated(mesh), distributed.batched(mesh)
  model, optimizer, _ = programs.build(
      config, programs.numbers_of(config), 3, 1000
  )
  shape = (config.batch_size, image_size, image_size, 3)
  init = functools.partial(
      train_step.init_state,
      model=model,
      optimizer=optimizer,
      images=jax.ShapeDtypeStruct(shape, jnp.uint8),
      kmeans=False,
      ema=config.ema_decay > 0,
  )
  step = train_step.make_train_step(
      model,
      optimizer,
      schedules.temperature(1.0, 0.5, 1000),
      ema_decay=config.ema_decay,
  )

  def like(tree, sharding):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
    )

  state = jax.eval_shape(init, jax.random.key(0))
  images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=divided)
  compiled = step.lower(like(state, whole), images).compile()

  def arguments():
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    state = jax.jit(init, out_shardings=whole)(jax.random.key(0))
    return state, jax.device_put(images, divided)

  return compiled, arguments


def _runner(compiled, arguments):
  state, images = arguments()

  def run():
    nonlocal state
    state, metrics = compiled(state, images)
    jax.block_until_ready(metrics)

  return run


_CONFIG = config_flags.DEFINE_config_file('config')
_SIZE = flags.DEFINE_integer('image_size', 32, 'H = W of the images.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each kind.')
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')


def main(_):
  """Measures and prints."""
  config, kinds, result = _CONFIG.value, {}, {}
  for count in (1, 8):
    compiled, arguments = compile_step(config, _SIZE.value, count)
    name = f'{count} devices'
    kinds[name] = _runner(compiled, arguments)
    memory = compiled.memory_analysis()
    result[name] = {
        'sent': sent(compiled.as_text()),
        'mib_of_state': memory.argument_size_in_bytes / 2**20,
        'mib_of_temporaries': memory.temp_size_in_bytes / 2**20,
    }
  taken = timing.seconds(kinds, _ROUNDS.value)
  for name, seconds in timing.medians(taken).items():
    result[name]['seconds'] = seconds
  timing.report(
      {
          'hardware': timing.hardware(),
          'batch_size': config.batch_size,
          **result,
          'ratio': timing.ratio(taken, '8 devices', '1 devices'),
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
