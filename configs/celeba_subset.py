"""celeba.py, for 600 steps of 16, on 4,000 images of CelebA.

    TFDS_DATA_DIR=../shared/tfds python -m gmvq_jax.main \\
        --config=configs/celeba_subset.py --workdir=runs/celeba_subset

To see that the setting runs: what it measures is never to be reported as
CelebA, and no picture of it published. The images are for non-commercial
research only.
"""

from ml_collections import ConfigDict

from gmvq_jax.training import command_line
from gmvq_jax.training import config as config_lib

METHODS = config_lib.METHODS


def get_config(method: str = 'gmvq+entropy') -> ConfigDict:
  """Returns the configuration of a method."""
  config = command_line.load('celeba')['get_config'](method)
  config.data.name = 'celeb_a_subset'
  config.batch_size = 16
  config.num_steps = 600
  config.kmeans.images = 64
  config.calibration_images = 512
  config.log_every_steps = 10
  config.eval_every_steps = 150
  config.checkpoint_every_steps = 50
  return config
