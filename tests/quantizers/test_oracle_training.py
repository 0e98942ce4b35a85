"""A hundred training steps beside vector-quantize-pytorch, from one start.

A linear encoder and decoder are trained around each quantizer by gradient
descent, here and there, on the same batches. Where nothing is drawn, codes are
the same in every step, and weights and codebooks at the end.

Runs where `pip install -e '.[oracle]'` was done.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmvq_jax import quantizers

torch = pytest.importorskip('torch')
oracle = pytest.importorskip('vector_quantize_pytorch')

C, L, STEPS, RATE = 16, 8, 100, 0.1
VQ = {
    'codebook_size': C,
    'kmeans_init': False,
    'threshold_ema_dead_code': 0,
    'rotation_trick': False,
    'decay': 0.95,
}
LEARNT = {
    'learnable_codebook': True,
    'ema_update': False,
    'commitment_use_cross_entropy_loss': False,
}


class Case(NamedTuple):
  """The same quantizer twice.

  Attributes:
    theirs: makes theirs.
    ours: makes ours.
    params: ours, from theirs.
    state: ours, from theirs.
    slope: how often theirs counts the decoder's gradient to the latents.
    options: of a call of theirs.
  """

  theirs: object
  ours: object
  params: object = lambda theirs: {}
  state: object = lambda theirs: {}
  slope: int = 1
  options: dict = {}


def array(tensor):
  return jnp.asarray(tensor.detach().numpy().copy())


def averages(codebook):
  """The state of `vqvae_ema` of one codebook of theirs."""
  return {
      'codebook': array(codebook.embed[0]),
      'counts': array(codebook.cluster_size[0]),
      'sums': array(codebook.embed_avg[0]),
  }


def stack(trees):
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def of_levels(residual):
  return stack([averages(layer._codebook) for layer in residual.layers])


def affine(linear):
  return {'kernel': array(linear.weight.T), 'bias': array(linear.bias)}


def ema(dim=L, **fields):
  return quantizers.vqvae_ema(C, dim, commitment=1.0, decay=0.95, **fields)


CASES = {
    'moving averages': Case(
        lambda: oracle.VectorQuantize(dim=L, **VQ),
        ema,
        state=lambda theirs: averages(theirs._codebook),
    ),
    'learnt codebook': Case(
        lambda: oracle.VectorQuantize(dim=L, **VQ | LEARNT),
        # Theirs is |z - e|^2, once, with the gradients of both halves of ours.
        lambda: quantizers.vqvae(C, L, alpha=2.0, beta=0.5),
        params=lambda theirs: {'codebook': array(theirs._codebook.embed[0])},
    ),
    'rotation trick': Case(
        lambda: oracle.VectorQuantize(dim=L, **VQ | {'rotation_trick': True}),
        lambda: quantizers.with_rotation_trick(ema()),
        state=lambda theirs: averages(theirs._codebook),
    ),
    'projection': Case(
        lambda: oracle.VectorQuantize(dim=L, codebook_dim=3, **VQ),
        lambda: quantizers.projected(ema(3), L),
        params=lambda theirs: {
            'inner': {},
            'project_in': affine(theirs.project_in),
            'project_out': affine(theirs.project_out),
        },
        state=lambda theirs: averages(theirs._codebook),
    ),
    'heads, one codebook': Case(
        lambda: oracle.VectorQuantize(
            dim=L, heads=2, codebook_dim=L // 2, **VQ
        ),
        lambda: quantizers.grouped(ema(L // 2), 2, shared=True),
        state=lambda theirs: averages(theirs._codebook),
    ),
    'heads, a codebook each': Case(
        lambda: oracle.VectorQuantize(
            dim=L,
            heads=2,
            codebook_dim=L // 2,
            separate_codebook_per_head=True,
            **VQ,
        ),
        lambda: quantizers.grouped(ema(L // 2), 2),
        state=lambda theirs: {
            'codebook': array(theirs._codebook.embed),
            'counts': array(theirs._codebook.cluster_size),
            'sums': array(theirs._codebook.embed_avg),
        },
    ),
    'residual': Case(
        lambda: oracle.ResidualVQ(dim=L, num_quantizers=3, **VQ),
        lambda: quantizers.residual(ema(), 3),
        state=of_levels,
        slope=3,
    ),
    'residual, learnt': Case(
        lambda: oracle.ResidualVQ(dim=L, num_quantizers=2, **VQ | LEARNT),
        lambda: quantizers.residual(
            quantizers.vqvae(C, L, alpha=2.0, beta=0.5), 2
        ),
        params=lambda theirs: {
            'codebook': jnp.stack(
                [array(x._codebook.embed[0]) for x in theirs.layers]
            )
        },
        slope=2,
    ),
    'grouped residual': Case(
        lambda: oracle.GroupedResidualVQ(
            dim=L, groups=2, num_quantizers=2, **VQ
        ),
        lambda: quantizers.grouped(quantizers.residual(ema(L // 2), 2), 2),
        state=lambda theirs: stack([of_levels(rvq) for rvq in theirs.rvqs]),
        slope=2,
    ),
    'simvq': Case(
        lambda: oracle.SimVQ(dim=L, codebook_size=C, rotation_trick=False),
        lambda: quantizers.simvq(C, L),
        params=lambda theirs: {
            'transform': array(theirs.code_transform.weight.T)
        },
        state=lambda theirs: {'codebook': array(theirs.frozen_codebook)},
    ),
    'diveq': Case(
        lambda: oracle.VectorQuantize(
            dim=L,
            directional_reparam=True,
            directional_reparam_variance=0.0,
            **VQ
            | {'rotation_trick': False, 'threshold_ema_dead_code': 1e-9},
        ),
        lambda: quantizers.diveq(C, L, noise_variance=0.0),
        params=lambda theirs: {'codebook': array(theirs._codebook.embed[0])},
    ),
    'lfq': Case(
        lambda: oracle.LFQ(
            codebook_size=2**L, entropy_loss_weight=0.1,
            commitment_loss_weight=0.25,
        ),
        # Soft, as theirs takes no logarithm of less than 1e-5.
        lambda: quantizers.lfq(2**L, entropy_temperature=5.0),
        options={'inv_temperature': 0.2},
    ),
    'bsq': Case(
        lambda: oracle.LFQ(
            codebook_size=2**L, entropy_loss_weight=0.0,
            commitment_loss_weight=0.25, spherical=True,
        ),
        lambda: quantizers.bsq(2**L, entropy_weight=0.0, commitment=0.25),
    ),
}  # fmt: skip


def train_theirs(quantizer, batches, encoder, decoder, options):
  """Returns codes of every step, and the trained weights."""
  quantizer.train()
  weights = [
      torch.tensor(x, requires_grad=True) for x in (encoder, decoder)
  ]
  optimizer = torch.optim.SGD([*weights, *quantizer.parameters()], lr=RATE)
  steps = []
  for x in torch.tensor(batches):
    z, codes, losses = quantizer(x @ weights[0], **options)
    loss = torch.mean((z @ weights[1] - x) ** 2)
    # Groups share out the channels.
    losses = losses.mean(0) if losses.ndim == 2 else losses
    loss = loss + losses.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    codes = codes.movedim(0, -2) if codes.ndim == 4 else codes
    steps.append(codes.numpy())
  return np.stack(steps), [x.detach().numpy() for x in weights]


def train_ours(quantizer, params, state, batches, encoder, decoder, slope):
  """The same of ours."""
  weights = {'quantizer': params, 'encoder': encoder, 'decoder': decoder}

  @jax.jit
  def step(weights, state, x):
    def loss(weights):
      quantized, moved = quantizer.apply(
          weights['quantizer'],
          state,
          x @ weights['encoder'],
          key=jax.random.key(0),
          train=True,
      )
      still = jax.lax.stop_gradient(quantized.z)
      z = still + slope * (quantized.z - still)
      loss = jnp.mean(jnp.square(z @ weights['decoder'] - x))
      return loss + quantized.loss, (moved, quantized.codes)

    gradients, (moved, codes) = jax.grad(loss, has_aux=True)(weights)
    stepped = jax.tree.map(lambda w, g: w - RATE * g, weights, gradients)
    return stepped, moved, codes

  steps = []
  for x in batches:
    weights, state, codes = step(weights, state, x)
    steps.append(np.asarray(codes))
  return np.stack(steps), [weights['encoder'], weights['decoder']]


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_a_hundred_steps(case, rng):
  torch.manual_seed(0)
  mix = rng.normal(size=(4, 12))
  batches = (rng.normal(size=(STEPS, 2, 32, 4)) @ mix).astype(np.float32)
  encoder = (0.3 * rng.normal(size=(12, L))).astype(np.float32)
  decoder = (0.3 * rng.normal(size=(L, 12))).astype(np.float32)
  other = case.theirs()
  params, state = case.params(other), case.state(other)
  quantizer = case.ours()
  expected, their_weights = train_theirs(
      other, batches, encoder, decoder, case.options
  )
  codes, our_weights = train_ours(
      quantizer, params, state, batches, encoder, decoder, case.slope
  )
  if 'lfq' in str(type(other)).lower():  # Theirs has the last bit fastest.
    bits = codes[..., None] >> np.arange(L) & 1
    codes = np.sum(bits << np.arange(L)[::-1], axis=-1)
  assert len(np.unique(codes)) > 3
  np.testing.assert_array_equal(codes, expected)
  assert np.abs(our_weights[0] - encoder).max() > 0.01
  for one, other in zip(our_weights, their_weights, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-4)
