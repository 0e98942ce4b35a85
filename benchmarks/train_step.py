"""Speed of a whole train step, beside the same model in PyTorch.

    python benchmarks/train_step.py --config=configs/cifar10.py \\
        [--config.batch_size=256] [--output=FILE.json]

Networks, quantizer and AdamW, forward, backward and update, on one fixed batch.
PyTorch runs in both memory layouts, eagerly and with `torch.compile`, which on
CPUs needs g++. Install with `pip install -e '.[oracle]'`. Floating-point
operations are XLA's count for the step with `assignment=plain`: XLA counts the
body of a loop only once.
"""

import shutil

from absl import app
from absl import flags
import jax
from ml_collections import config_flags
import numpy as np
import peer
import timing
import torch

from gmvq_jax.runtime import memory
from gmvq_jax.training import experiment

_CONFIG = config_flags.DEFINE_config_file('config')
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write the result.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Measurements of each kind.')
_PEAK = flags.DEFINE_float(
    'peak', 0.0, "The device's peak, in teraflop/s, to state the share of."
)
_STEPS = flags.DEFINE_integer('steps', 3, 'Steps in a measurement.')


def ours(config):
  """Returns a function that runs steps, the compiled step, and its images."""
  run = experiment.Experiment(config)
  holder = [run.init_state()]
  images = next(run.batches())
  step = jax.jit(run.make_train_step(), donate_argnums=0)
  step = step.lower(holder[0], images).compile()

  def steps():
    for _ in range(_STEPS.value):
      holder[0], _ = step(holder[0], images)
    jax.block_until_ready(holder[0])

  return steps, step, images


def theirs(images, *, channels_last, compiled):
  """Returns a function that runs the same steps in PyTorch, and the model."""
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  memory = torch.channels_last if channels_last else torch.contiguous_format
  model = peer.Autoencoder().to(device, memory_format=memory)
  batch = torch.tensor(np.asarray(images) / 255, dtype=torch.float32)
  batch = batch.permute(0, 3, 1, 2).to(device, memory_format=memory)
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
  forward = torch.compile(model) if compiled else model

  def steps():
    for _ in range(_STEPS.value):
      optimizer.zero_grad()
      forward(batch, 0.5).backward()
      optimizer.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return steps, model


def main(_):
  """Measures and prints."""
  memory.keep_freed()
  torch.backends.cudnn.benchmark = True
  config = _CONFIG.value
  steps, _, images = ours(config)
  if 'assignment' in config.quantizer:
    config.quantizer.assignment = 'plain'
  counted = ours(config)[1].cost_analysis()['flops'] / 1e12
  kinds = {'gmvq_jax': steps}
  compilers = {'pytorch': False}
  if torch.cuda.is_available() or shutil.which('g++'):
    compilers['torch.compile'] = True
  for layout in ('contiguous', 'channels_last'):
    for name, compiled in compilers.items():
      kinds[f'{name}, {layout}'], model = theirs(
          images, channels_last=layout == 'channels_last', compiled=compiled
      )
  taken = timing.seconds(kinds, _ROUNDS.value)
  per_step = {k: v / _STEPS.value for k, v in timing.medians(taken).items()}
  others = [name for name in kinds if name != 'gmvq_jax']
  best = min(others, key=per_step.get)
  timing.report(
      {
          'hardware': timing.hardware(),
          'jax': jax.__version__,
          'torch': torch.__version__,
          'batch_size': config.batch_size,
          'pytorch_parameters': sum(p.numel() for p in model.parameters()),
          'seconds_per_step': per_step,
          'images_per_second': config.batch_size / per_step['gmvq_jax'],
          'teraflop_per_step': counted,
          'teraflop_per_second': counted / per_step['gmvq_jax'],
          **(
              {'share_of_peak': counted / per_step['gmvq_jax'] / _PEAK.value}
              if _PEAK.value
              else {}
          ),
          'fastest_other': best,
          'fastest_other_over_gmvq_jax': timing.ratio(taken, best, 'gmvq_jax'),
      },
      _OUTPUT.value,
  )


if __name__ == '__main__':
  app.run(main)
