"""Baselines of a data set that need no network, at the same bits.

    python -m gmvq_jax.anchors --config=configs/cifar10.py [--bits=640]

See `training.baselines`.
"""

from gmvq_jax.training.baselines import compute
from gmvq_jax.training.baselines import main
from gmvq_jax.training.baselines import of_config

__all__ = ['compute', 'of_config']

if __name__ == '__main__':
  main()
