"""A training step of residual quantization, beside its peer.

    python benchmarks/residual.py [--output=FILE.json]

Forward and backward to the latents, with moving averages, in one run:
`gmvq_jax.residual(gmvq_jax.vqvae_ema(C, L), depth)` and
vector-quantize-pytorch's `ResidualVQ`, straight through. Needs `pip install -e
'.[oracle]'`.
"""

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
import vector_quantize_pytorch

import gmvq_jax

_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each kind.')
_POSITIONS = flags.DEFINE_integer('positions', 4096, 'N.')
_CODES = flags.DEFINE_integer('codes', 1024, 'C.')
_DIM = flags.DEFINE_integer('dim', 64, 'L.')
_DEPTH = flags.DEFINE_integer('depth', 8, 'Levels.')


def main(_):
  """Measures and prints."""
  latents = np.random.default_rng(0).normal(size=(_POSITIONS.value, _DIM.value))
  latents = latents.astype(np.float32)
  quantizer = gmvq_jax.residual(
      gmvq_jax.vqvae_ema(_CODES.value, _DIM.value), _DEPTH.value
  )
  params, state = quantizer.init(jax.random.key(0))

  @jax.jit
  def step(state, h):
    def loss(h):
      quantized, moved = quantizer.apply(params, state, h, train=True)
      return jnp.sum(jnp.square(quantized.z)) + quantized.loss, moved

    return jax.grad(loss, has_aux=True)(h)

  h = jnp.asarray(latents)
  compiled = step.lower(state, h).compile()

  def ours():
    jax.block_until_ready(compiled(state, h))

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  peer = vector_quantize_pytorch.ResidualVQ(
      dim=_DIM.value,
      num_quantizers=_DEPTH.value,
      codebook_size=_CODES.value,
      rotation_trick=False,
  ).to(device)
  tensor = torch.tensor(latents[None], device=device, requires_grad=True)

  def theirs():
    tensor.grad = None
    z, _, losses = peer(tensor)
    (torch.sum(z**2) + losses.sum()).backward()
    if device == 'cuda':
      torch.cuda.synchronize()

  kinds = {'gmvq_jax': ours, 'vector-quantize-pytorch': theirs}
  taken = timing.seconds(kinds, _ROUNDS.value)
  timing.report(
      {
          'hardware': timing.hardware(),
          'torch': torch.__version__,
          'positions': _POSITIONS.value,
          'codes': _CODES.value,
          'dim': _DIM.value,
          'depth': _DEPTH.value,
          'seconds': timing.medians(taken),
          'over_gmvq_jax': {
              name: timing.ratio(taken, name, 'gmvq_jax') for name in kinds
          },
          'gmvq_jax_temporary_mib': (
              compiled.memory_analysis().temp_size_in_bytes / 2**20
          ),
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
