"""GM-VQ on crops of photographs that come inside Python packages.

    launch/local.sh

Needs no data set and no GPU: a few minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from gmvq_jax.training import config as config_lib


def get_config() -> ConfigDict:
  """Returns the configuration."""
  config = config_lib.default_config()
  config.data.name = 'photographs'
  config.data.size = 32
  config.quantizer = config_lib.method_config('gmvq+annealed')
  config.quantizer.num_codes = 512
  config.quantizer.dim = 32
  config.network.width = 32
  config.batch_size = 64
  config.num_steps = 1200
  config.random_flip = True
  config.eval_every_steps = 200
  config.checkpoint_every_steps = 200
  config.log_every_steps = 25
  return config
