"""It learns CIFAR10, where that is at hand: TFDS_DATA_DIR must be set."""

import os
import pathlib
import sys

import pytest

from gmvq_jax.training import trainer

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from configs import cifar10  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (pathlib.Path(os.environ.get('TFDS_DATA_DIR', '')) / 'cifar10')
        .is_dir(),
        reason='TFDS_DATA_DIR holds no cifar10',
    ),
]


def test_600_steps(tmp_path):
  """About four minutes on two cores."""
  config = cifar10.get_config()
  config.num_steps = 600
  config.batch_size = 128
  config.learning_rate = 3e-3
  summary = trainer.run(config, str(tmp_path / 'run'))
  assert summary['mse'] < 6.4e-3
  assert summary['perplexity'] > 500
  assert summary['ssim'] > 0.7
