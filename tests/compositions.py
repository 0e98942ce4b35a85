"""Compositions that keep every promise of a quantizer."""

from gmvq_jax import quantizers
from gmvq_jax.quantizers import grouped
from gmvq_jax.quantizers import projected
from gmvq_jax.quantizers import residual

C, L = 16, 4


def make(name, **fields):
  """Returns the quantizer of a name, with those of the fields that it has."""
  known = quantizers.fields(name)
  return quantizers.make(
      name, **{k: v for k, v in fields.items() if k in known}
  )


def of(name, **fields):
  return make(name, **dict(num_codes=C, dim=L, gamma=0.1, beta=0.5) | fields)


EXAMPLES = {
    'residual vqvae': residual(of('vqvae'), 3),
    'residual vqvae+ema+replace': residual(of('vqvae+ema+replace'), 3),
    'residual shared vqvae+replace': residual(
        of('vqvae+replace'), 3, shared=True
    ),
    'residual shared ema': residual(of('vqvae+ema'), 2, shared=True),
    'residual gmvq': residual(of('gmvq', gaussian_noise=False), 2),
    'residual gmvq, tiled': residual(of('gmvq', assignment='tiled'), 2),
    'residual sqvae': residual(of('sqvae', variance='position'), 2),
    'residual gumbel': residual(of('gumbel'), 2),
    'residual fsq': residual(of('fsq'), 3, scale=0.25),
    'residual lfq': residual(of('lfq'), 2, scale=0.5),
    'residual diveq': residual(of('diveq'), 2),
    'residual frozen': residual(of('frozen'), 2),
    'frozen residual': quantizers.with_frozen_codebook(
        residual(of('vqvae'), 2)
    ),
    'residual, rotated': quantizers.with_rotation_trick(
        residual(of('vqvae+l2'), 2)
    ),
    'grouped vqvae': grouped(of('vqvae'), 3),
    'grouped shared vqvae': grouped(of('vqvae'), 3, shared=True),
    'grouped shared gmvq': grouped(of('gmvq'), 2, shared=True),
    'grouped gmvq, tiled': grouped(of('gmvq', assignment='tiled'), 2),
    'grouped ema+replace': grouped(of('vqvae+ema+replace'), 2),
    'grouped bsq': grouped(of('bsq'), 2),
    'grouped residual': grouped(residual(of('vqvae+affine'), 2), 3),
    'residual grouped': residual(grouped(of('vqvae'), 3), 2),
    'residual shared grouped shared': residual(
        grouped(of('vqvae+ema'), 3, shared=True), 2, shared=True
    ),
    'projected vqvae': projected(of('vqvae'), 7),
    'projected gmvq': projected(of('gmvq'), 7),
    'projected residual': projected(residual(of('simvq'), 2), 7),
}
# Of every kind one.
SOME = (
    'residual vqvae+ema+replace',
    'residual shared ema',
    'residual gmvq, tiled',
    'grouped gmvq, tiled',
    'grouped shared gmvq',
    'residual grouped',
    'projected residual',
)
# Each kind around another mechanism: all others are slow.
DEFAULT = (
    'residual vqvae+ema+replace',
    'residual shared ema',
    'grouped shared gmvq',
    'projected residual',
)
