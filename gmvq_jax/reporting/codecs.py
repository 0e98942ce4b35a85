"""Figures of public learned codecs, to compare a model with."""

from typing import NamedTuple


class Codec(NamedTuple):
  """What was published of a codec.

  Attributes:
    name: and year.
    bits: per image.
    mse: on [0, 1], per pixel and channel, of the test split.
    note: how the figures came about.
    source: where the codec is described.
  """

  name: str
  bits: float
  mse: float
  note: str
  source: str


_READ = 'interpolated between published points'
_BOUND = f'a bound of theory, not a file; {_READ}'

# By data set, as TensorFlow Datasets calls it. Nothing here was run by us.
CODECS = {
    'cifar10': (
        Codec('BPG', 640, 4.5e-3, _READ, 'https://bellard.org/bpg'),
        Codec(
            'Ballé 2018', 640, 2.57e-3, _READ, 'https://arxiv.org/abs/1802.01436'
        ),
        Codec(
            'Minnen 2020', 640, 2.17e-3, _READ,
            'https://arxiv.org/abs/2007.08739',
        ),
        Codec(
            'variational diffusion', 640, 1.4e-3, _BOUND,
            'https://arxiv.org/abs/2107.00630',
        ),
        Codec(
            'DDPM', 368, 2.22e-3, _BOUND, 'https://arxiv.org/abs/2006.11239'
        ),
    ),
}  # fmt: skip


def at_most(data: str, bits: float) -> list[Codec]:
  """Returns the codecs of a data set that take no more bits per image."""
  return [codec for codec in CODECS.get(data, ()) if codec.bits <= 1.01 * bits]
