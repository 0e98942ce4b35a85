"""CelebA at 128 x 128 in the setting of the paper.

    TFDS_DATA_DIR=DIR python -m gmvq_jax.main --config=configs/celeba.py \\
        --workdir=runs/celeba

DIR holds `celeb_a` of TensorFlow Datasets, prepared with
`file_format=array_record`. `:METHOD` is as in cifar10.py.

Latents are on a grid of 32 x 32, which the paper does not say; for 16 x 16 give
`--config.network.num_downsamplings=3`. An epoch of the 162,770 training images
is 636 steps, the whole run 63,582.
"""

from ml_collections import ConfigDict

from gmvq_jax.training import config as config_lib

METHODS = config_lib.METHODS


def get_config(method: str = 'gmvq+entropy') -> ConfigDict:
  """Returns the configuration of a method."""
  config = config_lib.default_config()
  config.data.name = 'celeb_a'
  config.data.train = 'train'
  config.data.validation = 'validation'
  config.data.test = 'test'
  # Of 178 x 218, the centre; as in the literature.
  config.data.crop = 140
  config.data.size = 128
  config.learning_rate = 1e-4
  config.network.encoder_blocks = 6
  config.network.decoder_blocks = 5
  config.quantizer = config_lib.method_config(method)
  config.eval_every_steps = 2000
  return config
