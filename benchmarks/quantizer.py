"""Memory and time of the GM-VQ quantizer, forward and backward.

    python benchmarks/quantizer.py [--output=FILE.json] [--curves=FILE.svg]

Through `Quantizer.apply`, by tiles and plainly, and plainly in PyTorch (needs
`pip install -e '.[oracle]'`). Memory is what XLA reserves for temporaries.
Ratios are medians over alternating rounds in this process.
"""

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import peer
import timing
import torch

from gmvq_jax import quantizers
from gmvq_jax.ops import counter_rng
from gmvq_jax.ops import numerics
from gmvq_jax.ops import soft_assignment

_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')
_CURVES = flags.DEFINE_string('curves', '', 'Where to draw how cost grows.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each kind.')
_HUGE = flags.DEFINE_boolean('huge', True, 'Run 2^18 codes, for a minute.')

_MIB = 2**20
# Rows, codes, and MiB that they may take.
_SIZES = (
    (16_384, 1024, None),
    (262_144, 1024, 350),
    (16_384, 65_536, 300),
    (16_384, 262_144, 1024),
)


def compiled(rows, codes, method, dim=64):
  """Returns a compiled gradient through `Quantizer.apply`, and arguments."""
  quantizer = quantizers.gmvq(
      codes, dim, gamma=0.01, beta=10.0, assignment=method
  )
  params, state = jax.eval_shape(quantizer.init, jax.random.key(0))

  def loss(params, h, key, temperature):
    quantized, _ = quantizer.apply(
        params, state, h, key=key, temperature=temperature, train=True
    )
    return jnp.sum(jnp.square(quantized.z)) + quantized.loss

  arguments = (
      params,
      jax.ShapeDtypeStruct((rows, 2 * dim), jnp.float32),
      jax.random.key(0),
      jnp.float32(0.5),
  )
  program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()

  def run():
    params, _ = quantizer.init(jax.random.key(0))
    h = jax.random.normal(jax.random.key(1), (rows, 2 * dim))
    return lambda: jax.block_until_ready(
        program(params, h, *arguments[2:])
    )

  return program.memory_analysis().temp_size_in_bytes / _MIB, run


def pytorch(rows, codes, dim=64):
  """Returns the same gradient in PyTorch, as a function that runs it."""
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  quantizer = peer.GMVQ(codes, dim, gamma=0.01, beta=10.0).to(device)
  h = torch.randn(rows, 2 * dim, device=device, requires_grad=True)

  def run():
    h.grad = quantizer.codebook.grad = None
    z, loss, _ = quantizer(h, 0.5)
    (z.square().sum() + loss).backward()
    if device == 'cuda':
      torch.cuda.synchronize()

  return run


def floor(rows, codes, dim=64):
  """Returns what cannot be avoided, tile by tile: the products, the noise."""
  plan = soft_assignment.plan('tiled', rows, codes, 1)
  num_rows = plan.rows.cpu
  queries = jax.random.normal(jax.random.key(0), (rows, 2 * dim))
  keys = jax.random.normal(jax.random.key(1), (codes, 2 * dim))
  seeds = counter_rng.row_seeds(jax.random.key(2), rows)

  def product(queries):
    logits = jnp.matmul(queries, keys.T, precision=numerics.PRECISION)
    # So that none is held for long, and none is left out.
    return jnp.max(logits, axis=-1)

  def add_noise(total, seeds):
    return total + counter_rng.gumbel(seeds, codes), None

  def tiles(x):
    return x.reshape(-1, num_rows, x.shape[-1])

  products = jax.jit(lambda x: jax.lax.map(product, x))
  start = jnp.zeros((num_rows, codes))
  sums = jax.jit(lambda x: jax.lax.scan(add_noise, start, x)[0])
  return {
      'products': lambda: jax.block_until_ready(products(tiles(queries))),
      'noise': lambda: jax.block_until_ready(sums(tiles(seeds))),
  }


def main(_):
  """Measures, prints and draws."""
  result = {'hardware': timing.hardware(), 'torch': torch.__version__}
  memory = []
  for rows, codes, bar in _SIZES:
    row = {'rows': rows, 'codes': codes}
    row['tiled_mib'], _ = compiled(rows, codes, 'tiled')
    if bar is None:
      row['plain_mib'], _ = compiled(rows, codes, 'plain')
    else:
      row['at_most_mib'] = bar
    memory.append(row)
  result['memory'] = memory

  rows, codes = 16_384, 1024
  kinds = {
      'tiled': compiled(rows, codes, 'tiled')[1](),
      'plain': compiled(rows, codes, 'plain')[1](),
      'pytorch': pytorch(rows, codes),
  }
  taken = timing.seconds(kinds, _ROUNDS.value)
  result['time'] = {
      'rows': rows,
      'codes': codes,
      'seconds': timing.medians(taken),
      'plain_over_tiled': timing.ratio(taken, 'plain', 'tiled'),
      'pytorch_over_tiled': timing.ratio(taken, 'pytorch', 'tiled'),
  }

  codes = 65_536
  kinds = {'tiled': compiled(rows, codes, 'tiled')[1](), **floor(rows, codes)}
  taken = timing.seconds(kinds, 2)
  of = timing.medians(taken)
  result['time_many_codes'] = {
      'rows': rows,
      'codes': codes,
      'seconds': of,
      # Both products of the logits, forward, backward and of gradients, and
      # that of the values; the noise once.
      'tiled_over_floor': of['tiled'] / (4.5 * of['products'] + of['noise']),
  }
  if _HUGE.value:
    run = compiled(rows, 262_144, 'tiled')[1]()
    result['huge'] = {
        'rows': rows,
        'codes': 262_144,
        'seconds': timing.seconds({'tiled': run}, 1)['tiled'][0],
    }
  if _CURVES.value:
    result['curves'] = curves()
    draw(result['curves'], _CURVES.value)
  timing.report(result, _OUTPUT.value)


def curves():
  """Returns memory and time against rows, codes and dimensions."""
  around = {'rows': 8192, 'codes': 1024, 'dim': 64}
  ranges = {
      'rows': [2**i for i in range(10, 17)],
      'codes': [2**i for i in range(6, 15)],
      'dim': [2**i for i in range(2, 10)],
  }
  points = []
  for axis, values in ranges.items():
    for value in values:
      sizes = around | {axis: value}
      for method in ('plain', 'tiled'):
        if method == 'plain' and sizes['rows'] * sizes['codes'] > 2**26:
          continue
        mib, run = compiled(
            sizes['rows'], sizes['codes'], method, sizes['dim']
        )
        taken = timing.seconds({method: run()}, 3)
        point = {'axis': axis, 'value': value, 'method': method, 'mib': mib}
        points.append(point | {'seconds': min(taken[method])})
  return points


def draw(points, path):
  """Draws the curves."""
  matplotlib.rcParams['svg.fonttype'] = 'none'
  labels = {'rows': 'rows N', 'codes': 'codes C', 'dim': 'dimensions L'}
  figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), sharey='row')
  for column, (axis, label) in enumerate(labels.items()):
    for method, style in (('plain', 'o--'), ('tiled', 'o-')):
      chosen = [
          p for p in points if p['axis'] == axis and p['method'] == method
      ]
      for row, quantity in enumerate(('seconds', 'mib')):
        axes[row, column].loglog(
            [p['value'] for p in chosen],
            [p[quantity] for p in chosen],
            style,
            base=2,
            markersize=4,
            label=method,
        )
        axes[row, column].grid(alpha=0.3)
    axes[1, column].set_xlabel(label)
  axes[0, 0].set_ylabel('seconds')
  axes[1, 0].set_ylabel('temporary MiB')
  axes[0, 0].legend()
  figure.tight_layout()
  figure.savefig(path)


if __name__ == '__main__':
  app.run(main)
