"""Every method of the paper's Table 1 on CIFAR10, by one protocol.

    python -m gmvq_jax.compare --config=configs/table1_cifar10.py \\
        --workdir=runs/table1

The protocol is that of configs/cifar10.py, for all methods alike; `compare`
holds what is compared, and what is searched for.
"""

from ml_collections import ConfigDict

from gmvq_jax.training import command_line
from gmvq_jax.training import config as config_lib

_LEARNING_RATES = (3e-3, 1e-2, 3e-2)

# The grid from which trials are drawn, beside the defaults; numbers only.
_SPACES = {
    'gmvq': {
        'learning_rate': _LEARNING_RATES,
        'quantizer': {'gamma': (0.003, 0.01, 0.03)},
    },
    'gmvq+entropy': {
        'learning_rate': _LEARNING_RATES,
        'quantizer': {'gamma': (0.003, 0.01, 0.03), 'beta': (3.0, 10.0, 30.0)},
    },
    'vqvae': {
        'learning_rate': _LEARNING_RATES,
        'quantizer': {'alpha': (0.5, 1.25, 5.0), 'beta': (0.8, 0.9, 0.98)},
    },
    'sqvae': {
        'learning_rate': _LEARNING_RATES,
        'quantizer': {'initial_variance': (2.0, 20.0)},
    },
    'vqvae+affine+opt+replace+l2': {
        'learning_rate': _LEARNING_RATES,
        'quantizer': {
            'affine_scale': (2.0, 10.0),
            'opt_learning_rate': (5.0, 50.0, 1000.0),
        },
    },
}


def get_config() -> ConfigDict:
  """Returns the configuration."""
  config = command_line.load('cifar10')['get_config']()
  config.compare = ConfigDict({
      'methods': config_lib.METHODS,
      'seeds': (0, 1, 2),
      # Runs of each search (0: none), on validation, and their length.
      'trials': 4,
      'trial_steps': 150,
      'spaces': _SPACES,
  })
  return config
