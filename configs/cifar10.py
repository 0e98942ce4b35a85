"""CIFAR10 in the setting of the paper (https://arxiv.org/abs/2410.10180).

    python -m gmvq_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

`--config=configs/cifar10.py:gmvq` is the paper's GM-VQ, with beta = 1;
`:gmvq+entropy`, the default, has a larger beta.
"""

from ml_collections import ConfigDict

from gmvq_jax import config as config_lib
from gmvq_jax import errors

METHODS = {
    'gmvq': {'beta': 1.0},
    'gmvq+entropy': {'beta': 10.0},
}


def get_config(method: str = 'gmvq+entropy') -> ConfigDict:
  """Returns the configuration of a method."""
  if method not in METHODS:
    raise errors.UserError(
        f'configs/cifar10.py:{method}: there is no such method; there are'
        f' {", ".join(METHODS)}'
    )
  config = config_lib.default_config()
  config.data.name = 'cifar10'
  config.quantizer = config_lib.gmvq_config()
  config.quantizer.update(METHODS[method])
  return config
