"""CIFAR10, in the schedule of the paper (https://arxiv.org/abs/2410.10180).

    python -m gmvq_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

The default, `gmvq+annealed`, is our variant of GM-VQ (docs/annealed.md). The
paper's are `--config=configs/cifar10.py:gmvq`, with beta = 1, and
`:gmvq+entropy`, with a larger beta. `:METHOD` is any of
`gmvq_jax.config.METHODS`, or another composition of the same parts.
"""

from ml_collections import ConfigDict

from gmvq_jax.training import config as config_lib

METHODS = config_lib.METHODS


def get_config(method: str = 'gmvq+annealed') -> ConfigDict:
  """Returns the configuration of a method."""
  config = config_lib.default_config()
  config.data.name = 'cifar10'
  config.quantizer = config_lib.method_config(method)
  return config
