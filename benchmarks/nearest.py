"""Speed and memory of the search for the nearest code, beside its peers.

    python benchmarks/nearest.py [--output=FILE.json]

Forward alone, in one run: `gmvq_jax.nearest_codes`, `torch.cdist` and argmin,
and a step of vector-quantize-pytorch's `VectorQuantize` in evaluation, whose
work is that search. Needs `pip install -e '.[oracle]'`.
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
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Measurements of each kind.')
_ROWS = flags.DEFINE_integer('rows', 65_536, 'N.')
_CODES = flags.DEFINE_integer('codes', 16_384, 'C.')
_DIM = flags.DEFINE_integer('dim', 64, 'L.')


def main(_):
  """Measures and prints."""
  rng = np.random.default_rng(0)
  points, codebook = (
      rng.normal(size=(n, _DIM.value)).astype(np.float32)
      for n in (_ROWS.value, _CODES.value)
  )
  arrays = jnp.asarray(points), jnp.asarray(codebook)
  search = jax.jit(gmvq_jax.nearest_codes).lower(*arrays).compile()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  tensors = [torch.tensor(x, device=device) for x in (points, codebook)]
  theirs = vector_quantize_pytorch.VectorQuantize(
      dim=_DIM.value, codebook_size=_CODES.value, kmeans_init=False
  ).to(device)
  theirs.eval()
  with torch.no_grad():
    theirs._codebook.embed.copy_(tensors[1][None])
  found = {}

  def ours():
    found['gmvq_jax'] = jax.block_until_ready(search(*arrays))

  @torch.no_grad()
  def cdist():
    found['torch.cdist'] = torch.cdist(*tensors).argmin(dim=-1)
    if device == 'cuda':
      torch.cuda.synchronize()

  @torch.no_grad()
  def library():
    _, found['vector-quantize-pytorch'], _ = theirs(tensors[0][None])
    if device == 'cuda':
      torch.cuda.synchronize()

  kinds = {
      'gmvq_jax': ours,
      'torch.cdist': cdist,
      'vector-quantize-pytorch': library,
  }
  taken = timing.seconds(kinds, _ROUNDS.value)
  codes = np.asarray(found['gmvq_jax'])
  memory = search.memory_analysis()
  timing.report(
      {
          'hardware': timing.hardware(),
          'torch': torch.__version__,
          'rows': _ROWS.value,
          'codes': _CODES.value,
          'dim': _DIM.value,
          'seconds': timing.medians(taken),
          'over_gmvq_jax': {
              name: timing.ratio(taken, name, 'gmvq_jax') for name in kinds
          },
          'same_codes': {
              name: float(np.mean(codes == np.asarray(other.cpu()).ravel()))
              for name, other in found.items()
              if name != 'gmvq_jax'
          },
          'temporary_mib': memory.temp_size_in_bytes / 2**20,
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
