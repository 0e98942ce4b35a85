"""The state of training, its one jitted step, and its k-means start."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from gmvq_jax import autoencoder
from gmvq_jax import codebook
from gmvq_jax import data
from gmvq_jax import distributed
from gmvq_jax.albo import perplexity


class TrainState(NamedTuple):
  """All that a run is at a step; what a checkpoint holds.

  Attributes:
    step: `[]` int32, the steps taken.
    key: the run's random key, as raw data. It never changes: what a step draws
      is a function of this and the step.
    variables: of the autoencoder.
    opt_state: of the optimiser.
    eval_batch_stats: like `variables.batch_stats`, as `evaluate.calibrate` last
      gathered them: without noise, as evaluation has none.
  """

  step: jax.Array
  key: jax.Array
  variables: autoencoder.Variables
  opt_state: Any
  eval_batch_stats: Any

  @property
  def eval_variables(self) -> autoencoder.Variables:
    """Those to evaluate and to use the model with."""
    return self.variables._replace(batch_stats=self.eval_batch_stats)


def make_train_step(
    model: autoencoder.Autoencoder,
    optimizer: optax.GradientTransformation,
    temperature: optax.Schedule,
    mesh: Mesh,
    batch_size: int,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted train step.

  It is `(state, images, order, offset) -> (state, metrics)`. `images` is the
  whole training set, uint8 on every device; `order [2 N]` int32 is of
  `data.two_epochs`, and the step takes `batch_size` of it from `offset`. The
  batch is divided over the mesh, so a mean over it is the mean over all
  devices: q(c) and the batch norms are those of the global batch. The given
  state is donated.

  `metrics` are those of the quantizer, and `loss`, `mse`, `perplexity` and
  `soft_perplexity` of the batch, `temperature`, `grad_norm`, and `param_norm`
  after the step.
  """
  batched = distributed.batched(mesh)

  def loss_fn(params, variables, images, key, tau):
    variables = variables._replace(params=params)
    h, variables = model.encode(variables, images, train=True)
    quantized, variables = model.quantize(
        variables, h, key=key, temperature=tau, train=True
    )
    decoded, variables = model.decode(variables, quantized.z, train=True)
    squared_error = jnp.sum(jnp.square(decoded - images), axis=(1, 2, 3))
    data_dim = images[0].size
    loss = model.quantizer.objective(
        squared_error,
        quantized,
        data_dim=data_dim,
        positions=quantized.codes[0].size,
    )
    mse = jnp.mean(squared_error) / data_dim
    return loss, (variables, quantized, mse)

  def train_step(state, images, order, offset):
    indices = jax.lax.dynamic_slice(order, (offset,), (batch_size,))
    indices = jax.lax.with_sharding_constraint(indices, batched)
    batch = data.to_unit(images[indices])
    _, noise_key = split_key(state.key)
    key = jax.random.fold_in(noise_key, state.step)
    tau = temperature(state.step)

    params = state.variables.params
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (variables, quantized, mse)), grads = grad_fn(
        params, state.variables, batch, key, tau
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    params, quantizer_state, opt_state = _finish(
        model.quantizer,
        optimizer,
        params,
        variables.quantizer_state,
        opt_state,
    )
    counts = codebook.code_counts(quantized.codes, model.quantizer.num_codes)
    metrics = quantized.metrics | {
        'loss': loss,
        'mse': mse,
        'perplexity': perplexity(counts / counts.sum()),
        'soft_perplexity': perplexity(quantized.q_c),
        'grad_norm': optax.tree.norm(grads),
        'param_norm': optax.tree.norm(params),
        'temperature': tau,
    }
    variables = variables._replace(
        params=params, quantizer_state=quantizer_state
    )
    state = state._replace(
        step=state.step + 1, variables=variables, opt_state=opt_state
    )
    return state, metrics

  return jax.jit(train_step, donate_argnums=0)


def split_key(key: jax.Array) -> tuple[chex.PRNGKey, chex.PRNGKey]:
  """Returns the keys of the order of images and of the noise, from a run's."""
  order_key, noise_key = jax.random.split(jax.random.wrap_key_data(key))
  return order_key, noise_key


def init_state(
    key: chex.PRNGKey,
    model: autoencoder.Autoencoder,
    optimizer: optax.GradientTransformation,
    images: jax.Array,
    *,
    kmeans_images: int,
    kmeans_iterations: int,
) -> TrainState:
  """Returns the state at step 0, its codebook at the centres of real latents.

  Args:
    key: of the whole run.
    model: what is to be trained.
    optimizer: what trains it.
    images: the training set, uint8 `[N, H, W, channels]`.
    kmeans_images: how many images' latents are clustered; 0 leaves the codebook
      at its random start.
    kmeans_iterations: of Lloyd's algorithm.
  """
  init_key, choice_key, kmeans_key, run_key = jax.random.split(key, 4)
  variables = model.init(init_key, images.shape[1:])
  if kmeans_images and model.quantizer.write is not None:
    chosen = jax.random.choice(
        choice_key, len(images), (kmeans_images,), replace=False
    )
    variables = kmeans_start(
        kmeans_key,
        model,
        variables,
        data.to_unit(images[chosen]),
        num_iterations=kmeans_iterations,
    )
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key_data(run_key),
      variables=variables,
      opt_state=optimizer.init(variables.params),
      eval_batch_stats=jax.tree.map(jnp.copy, variables.batch_stats),
  )


def kmeans_start(
    key: chex.PRNGKey,
    model: autoencoder.Autoencoder,
    variables: autoencoder.Variables,
    images: jax.Array,
    *,
    num_iterations: int = 10,
) -> autoencoder.Variables:
  """Writes the centres of the encoder's latents of `images` as the codebook.

  The batch norms use the statistics of these images, as they will in training:
  their running statistics say nothing yet.
  """
  h, _ = model.encode(variables, images, train=True)
  latents = h[..., : model.quantizer.heads[0]]
  rows, _ = codebook.kmeans(
      key,
      latents.reshape(-1, latents.shape[-1]),
      model.quantizer.num_codes,
      num_iterations=num_iterations,
  )
  params, state = model.quantizer.write(
      variables.params['quantizer'],
      variables.quantizer_state,
      rows,
      jnp.ones(len(rows), bool),
  )
  return variables._replace(
      params={**variables.params, 'quantizer': params}, quantizer_state=state
  )


def _finish(quantizer, optimizer, params, quantizer_state, opt_state):
  """Lets the quantizer rewrite what it must, and forgets moments of that."""
  written, state, fresh = quantizer.finish(params['quantizer'], quantizer_state)
  fresh = jax.tree.map(lambda _: jnp.zeros((), bool), params) | {
      'quantizer': fresh
  }
  opt_state = optax.tree.map_params(
      optimizer,
      lambda moment, fresh: jnp.where(fresh, 0, moment).astype(moment.dtype),
      opt_state,
      fresh,
  )
  return {**params, 'quantizer': written}, state, opt_state
