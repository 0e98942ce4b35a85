"""CIFAR10 in the setting of the paper (https://arxiv.org/abs/2410.10180).

    python -m gmvq_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

`--config=configs/cifar10.py:gmvq` is the paper's GM-VQ, with beta = 1;
`:gmvq+entropy`, the default, has a larger beta. `:METHOD` is any of METHODS, or
another composition of the same parts.
"""

from ml_collections import ConfigDict

from gmvq_jax import config as config_lib

METHODS = (
    # The paper's Table 1.
    'gmvq',
    'gmvq+entropy',
    'vqvae',
    'vqvae+l2',
    'vqvae+replace',
    'vqvae+l2+replace',
    'vqvae+affine',
    'vqvae+opt',
    'vqvae+affine+opt',
    'sqvae',
    'gumbel',
    # What it leaves out.
    'vqvae+affine+opt+replace+l2',
    'vqvae+ema',
    'vqvae+ema+replace',
    'fsq',
    'frozen',
    # Later ones.
    'vqvae+rotation',
    'simvq',
    'diveq',
    'lfq',
    'bsq',
)


def get_config(method: str = 'gmvq+entropy') -> ConfigDict:
  """Returns the configuration of a method."""
  config = config_lib.default_config()
  config.data.name = 'cifar10'
  name = 'gmvq' if method == 'gmvq+entropy' else method
  config.quantizer = config_lib.quantizer_config(name)
  if method == 'gmvq':
    config.quantizer.beta = 1.0
  return config
