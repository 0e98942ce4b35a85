"""The decoder of an exported tokenizer, in PyTorch, from its weights alone.

    python examples/torch_decoder.py EXPORTED CODES.npy IMAGES.npy
"""

import json
import pathlib
import sys

import numpy as np
from safetensors.torch import load_file
import torch
from torch.nn import functional

_NORM = ('mean', 'var', 'scale', 'bias')


def decode(folder: str, codes: torch.Tensor) -> torch.Tensor:
  """Returns images `[B, H, W, channels]` in [0, 1] of codes `[B, h, w]`."""
  folder = pathlib.Path(folder)
  network = json.loads((folder / 'config.json').read_text())['network']
  weights = load_file(folder / 'weights.safetensors')
  of = {k.removeprefix('decoder.'): v for k, v in weights.items()}

  def conv(x, name):
    kernel = of[f'{name}.kernel'].permute(3, 2, 0, 1)
    return functional.conv2d(x, kernel, of.get(f'{name}.bias'), padding='same')

  def double(x):
    b, k, h, w = x.shape
    x = x.reshape(b, 2, 2, k // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, k // 4, 2 * h, 2 * w)

  def layer(x, name, then=lambda x: x):
    x = then(conv(x, f'{name}.Conv_0'))
    if not network['batch_norm']:
      return x
    norm = [of[f'{name}.BatchNorm_0.{k}'] for k in _NORM]
    return functional.batch_norm(x, *norm)

  x = weights['codebook'][codes].permute(0, 3, 1, 2)
  last = 'Conv_0'  # Convolutions are numbered in the order of their use.
  if x.shape[1] != network['width']:
    x, last = conv(x, 'Conv_0'), 'Conv_1'
  for i in range(network['decoder_blocks']):
    h = layer(functional.relu(x), f'ResidualBlock_{i}.ConvNorm_0')
    x = x + layer(functional.relu(h), f'ResidualBlock_{i}.ConvNorm_1')
  x = functional.relu(layer(x, 'ConvNorm_0'))
  for level in range(1, network['num_downsamplings']):
    x = functional.relu(layer(x, f'ConvNorm_{level}', then=double))
  x = conv(x, last)
  x = double(x) if network['num_downsamplings'] else x
  return torch.sigmoid(x).permute(0, 2, 3, 1)


if __name__ == '__main__':
  codes_of = torch.from_numpy(np.load(sys.argv[2])).long()
  np.save(sys.argv[3], decode(sys.argv[1], codes_of).numpy())
