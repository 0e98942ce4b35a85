"""The bytes that a train step holds and sends are those of docs/scaling.md."""

import pathlib
import sys

import pytest

from gmvq_jax.planning import hlo
from gmvq_jax.training import config as config_lib

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import scaling  # noqa: E402


def compiled(batch_size, codes, dim, size, devices, **fields):
  config = config_lib.default_config()
  config.quantizer = config_lib.quantizer_config('gmvq')
  config.quantizer.assignment = 'tiled'
  config.batch_size = batch_size
  config.quantizer.num_codes, config.quantizer.dim = codes, dim
  config.update(fields)
  program, _ = scaling.compile_step(config, size, devices)
  return config, program


@pytest.mark.parametrize(
    'batch_size, codes, dim, size, devices, ema_decay',
    [
        pytest.param(64, 1024, 64, 32, 8, 0.0, marks=pytest.mark.slow),
        (64, 1024, 64, 32, 2, 0.9),
        pytest.param(16, 1000, 32, 64, 4, 0.0, marks=pytest.mark.slow),
    ],
)
def test_the_formulas(batch_size, codes, dim, size, devices, ema_decay):
  """What is sent does not depend on the batch, by its formula."""
  config, program = compiled(
      batch_size, codes, dim, size, devices, ema_decay=ema_decay
  )
  expected = scaling.predicted(config, size, devices)
  memory = program.memory_analysis()
  # What is donated is the state.
  assert memory.alias_size_in_bytes == expected['state']
  sent = sum(x.bytes for x in hlo.collectives(program.as_text()))
  # XLA may send a sum or two more, or less.
  assert sent == pytest.approx(expected['sent'], rel=1e-4)
  temporaries = memory.temp_size_in_bytes
  assert temporaries == pytest.approx(expected['temporaries'], rel=0.15)


@pytest.mark.slow
def test_nothing_that_is_sent_grows_with_the_batch():
  sent = []
  for batch_size in (16, 32):
    _, program = compiled(
        batch_size, 256, 8, 16, 4, ema_decay=0.5,
        network=dict(width=8, encoder_blocks=0, decoder_blocks=0),
    )  # fmt: skip
    sent.append(hlo.collectives(program.as_text()))
  assert sent[0] == sent[1]
