r"""A transformer that learns how codes follow one another, and draws new ones.

    python -m gmvq_jax.main --mode=encode --workdir=runs/cifar10 \
        --input='cifar10:train[:90%]' --output=codes/train
    python -m gmvq_jax.main --mode=encode --workdir=runs/cifar10 \
        --input='cifar10:train[90%:]' --output=codes/validation
    python examples/prior.py --tokenizer=runs/cifar10 --train=codes/train \
        --validation=codes/validation --output=runs/prior

Writes `samples.png`, images decoded from codes it has drawn, and `summary.json`
with the bits an image takes under three models of the validation codes: all
equally probable (log2 C each), as frequent as in training (order 0), and the
transformer. Minutes on two CPU cores, without checkpoints.
"""

import json
import pathlib

from absl import flags
from flax import linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

import gmvq_jax
from gmvq_jax.reporting import pictures
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import progress
from gmvq_jax.training import command_line

_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'A run, or an export of one.')
_TRAIN = flags.DEFINE_string('train', '', 'Codes to learn from.')
_VALIDATION = flags.DEFINE_string('validation', '', 'Codes to be judged on.')
_OUTPUT = flags.DEFINE_string('output', 'runs/prior', 'Where the results go.')
_STEPS = flags.DEFINE_integer('steps', 2000, 'Of training.', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch', 64, 'Images in a step.', lower_bound=1)
_WIDTH = flags.DEFINE_integer('width', 128, 'Of the model.', lower_bound=4)
_LAYERS = flags.DEFINE_integer('layers', 4, 'Of the model.', lower_bound=1)
_SAMPLES = flags.DEFINE_integer('samples', 64, 'Images to draw.', lower_bound=1)

_HEADS = 4


class Transformer(nn.Module):
  """Codes to logits of each, given those before it.

  Attributes:
    num_codes: C.
    width: of the features.
    layers: of attention.
  """

  num_codes: int
  width: int
  layers: int

  @nn.compact
  def __call__(self, codes: jax.Array) -> jax.Array:
    """Returns logits `[B, P, C]` for codes `[B, P]`."""
    # What stands before the first code is a code of its own.
    before = jnp.pad(codes[:, :-1] + 1, ((0, 0), (1, 0)))
    x = nn.Embed(self.num_codes + 1, self.width)(before)
    x += self.param(
        'position', nn.initializers.normal(0.02), (codes.shape[1], self.width)
    )
    mask = nn.make_causal_mask(codes)
    for _ in range(self.layers):
      h = nn.LayerNorm()(x)
      x += nn.MultiHeadDotProductAttention(_HEADS)(h, h, mask=mask)
      h = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
      x += nn.Dense(self.width)(nn.gelu(h))
    return nn.Dense(self.num_codes)(nn.LayerNorm()(x))


def bits_of(logits: jax.Array, codes: jax.Array) -> jax.Array:
  """Returns the bits of each image's codes, `[B]`."""
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
  return nats.sum(axis=-1) / jnp.log(2)


def main(argv: list[str]) -> None:
  """Trains, judges and draws."""
  del argv
  for flag in (_TOKENIZER, _TRAIN, _VALIDATION):
    if not flag.value:
      meaning = flags.FLAGS[flag.name].help
      raise errors.UserError(f'--{flag.name} is missing; {meaning}')
  tokenizer = gmvq_jax.Tokenizer.load(_TOKENIZER.value)
  train = gmvq_jax.codes.open(_TRAIN.value)
  validation = gmvq_jax.codes.open(_VALIDATION.value)
  for flag, codes in ((_TRAIN, train), (_VALIDATION, validation)):
    if codes.description.tokenizer != tokenizer.hash:
      raise errors.UserError(
          f'--{flag.name}={flag.value}: are the codes of another tokenizer'
      )
  if train.grid != validation.grid:
    raise errors.UserError(
        f'--validation={_VALIDATION.value}: has {validation.grid} codes for an'
        f' image, and --train {train.grid}; they must be alike'
    )
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)

  def positions(example):
    return example[1].ravel()

  dataset = grain.MapDataset.source(train).seed(0).shuffle().repeat()
  batches = iter(dataset.map(positions).batch(_BATCH.value).to_iter_dataset())

  model = Transformer(tokenizer.num_codes, _WIDTH.value, _LAYERS.value)
  params = model.init(jax.random.key(0), positions(train[0])[None])
  schedule = optax.warmup_cosine_decay_schedule(
      0, 2e-3, min(100, _STEPS.value // 2), _STEPS.value
  )
  optimizer = optax.adamw(schedule, b2=0.99, weight_decay=0.01)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, codes):
    def loss_fn(params):
      return bits_of(model.apply(params, codes), codes).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  losses = []
  for _ in progress.track(range(_STEPS.value), 'Training'):
    params, state, loss = step(params, state, next(batches))
    losses.append(loss)

  held_out = validation[:][1].reshape(len(validation), -1)
  judge = jax.jit(lambda codes: bits_of(model.apply(params, codes), codes))
  bits = [judge(part) for part in np.array_split(held_out, 32)]
  frequencies = train.counts() + 0.5
  order_0 = -np.log2(frequencies / frequencies.sum())[held_out].sum(axis=-1)
  summary = {
      'steps': _STEPS.value,
      'parameters': sum(x.size for x in jax.tree.leaves(params)),
      'bits_per_image': {
          'uniform': held_out.shape[1] * np.log2(train.num_codes),
          'order 0': float(order_0.mean()),
          'transformer': float(np.concatenate(bits).mean()),
          'transformer, on the last 50 batches of training': float(
              np.mean(losses[-50:])
          ),
      },
  }
  print(json.dumps(summary, indent=2))
  (output / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')

  @jax.jit
  def draw(key, codes):
    def put(position, codes):
      logits = model.apply(params, codes)[:, position]
      drawn = jax.random.categorical(jax.random.fold_in(key, position), logits)
      return codes.at[:, position].set(drawn.astype(jnp.int32))

    return jax.lax.fori_loop(0, codes.shape[1], put, codes)

  empty = jnp.zeros((_SAMPLES.value, held_out.shape[1]), jnp.int32)
  codes = draw(jax.random.key(1), empty).reshape(-1, *train.grid)
  images = pictures.to_uint8(tokenizer.decode(codes))
  pictures.save(output / 'samples.png', pictures.sheet(images))
  print(f'Samples: {output / "samples.png"}')


if __name__ == '__main__':
  command_line.run(main)
