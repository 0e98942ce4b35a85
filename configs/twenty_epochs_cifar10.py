"""Six methods on CIFAR10 for 20 epochs, each after a search of equal length.

    python -m gmvq_jax.compare --config=configs/twenty_epochs_cifar10.py \\
        --workdir=runs/twenty_epochs

A search has 6 trials of 600 steps. The first trial has the default
hyperparameters; the others are sampled from the method's grid.
"""

from ml_collections import ConfigDict

from gmvq_jax.training import command_line

_LEARNING_RATES = (3e-3, 1e-2, 3e-2)
_GMVQ = {
    'learning_rate': _LEARNING_RATES,
    'quantizer': {'gamma': (0.003, 0.01, 0.03), 'beta': (3.0, 10.0, 30.0)},
}
_SPACES = {
    'gmvq+annealed': _GMVQ,
    'vqvae+l2+replace': {
        'learning_rate': _LEARNING_RATES,
        'quantizer': {'alpha': (1.25, 5.0, 20.0), 'beta': (0.8, 0.9, 0.98)},
    },
    'gmvq+entropy': _GMVQ,
    'vqvae+ema+replace': {
        'learning_rate': _LEARNING_RATES,
        'quantizer': {'commitment': (0.1, 0.25, 1.0), 'decay': (0.95, 0.99)},
    },
    'fsq': {'learning_rate': (2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2)},
    'sqvae': {
        'learning_rate': _LEARNING_RATES,
        'quantizer': {'initial_variance': (2.0, 20.0, 60.0)},
    },
}


def get_config() -> ConfigDict:
  """Returns the configuration."""
  config = command_line.load('cifar10')['get_config']()
  config.num_epochs = 20
  config.compare = ConfigDict({
      'methods': tuple(_SPACES),
      'seeds': (0, 1, 2),
      'trials': 6,
      'trial_steps': 600,
      'spaces': _SPACES,
  })
  return config
