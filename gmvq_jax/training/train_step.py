"""The state of training, its one jitted step, and its k-means start."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from gmvq_jax import quantizers
from gmvq_jax.nn import autoencoder
from gmvq_jax.nn import losses
from gmvq_jax.ops.albo import perplexity


class TrainState(NamedTuple):
  """All that a run is at a step; with the place in its data, a checkpoint.

  Attributes:
    step: `[]` int32, the steps taken.
    key: the run's random key, as raw data. It never changes: what a step draws
      is a function of this and the step.
    variables: of the autoencoder.
    opt_state: of the optimiser.
    ema_params: like `variables.params`, their exponential moving average; None
      where none is kept.
    eval_batch_stats: like `variables.batch_stats`, as `evaluate.calibrate` last
      gathered them: without noise, as evaluation has none.
  """

  step: jax.Array
  key: jax.Array
  variables: autoencoder.Variables
  opt_state: Any
  ema_params: Any
  eval_batch_stats: Any

  @property
  def eval_variables(self) -> autoencoder.Variables:
    """Those to evaluate and to use the model with."""
    params = self.variables.params
    if self.ema_params is not None:
      params = self.ema_params
    return self.variables._replace(
        params=params, batch_stats=self.eval_batch_stats
    )


def make_train_step(
    model: autoencoder.Autoencoder,
    optimizer: optax.GradientTransformationExtraArgs,
    temperature: optax.Schedule,
    *,
    reconstruction_loss: losses.Loss = losses.mse,
    ema_decay: float = 0.0,
    flip: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted train step, `(state, images) -> (state, metrics)`.

  `images` are a batch, uint8 `[B, H, W, channels]`, divided over a mesh: a mean
  over it is the mean over all devices, so q(c) and the batch norms are those of
  the global batch. The given state is donated.

  `metrics` are those of the quantizer, and of the batch `loss`, `mse`,
  `reconstruction`, `brightness_variance` (of the means of images),
  `perplexity`, `soft_perplexity`, `aggregated_entropy` (of q(c), nats),
  `temperature`, `grad_norm`, and `param_norm` after the step.

  Args:
    model: what is trained.
    optimizer: of `gmvq_jax.optimizer`. With `optax.apply_if_finite` inside, a
      step of which the gradient is not finite leaves all but its number as it
      was, and there are metrics `skipped_updates` and `skipped_in_a_row`.
    temperature: of the relaxed codes, by step.
    reconstruction_loss: stands where the equations have the mean squared error.
    ema_decay: of the moving average of parameters, if the state has one.
    flip: whether half of the images, at random, are mirrored left to right.
  """

  def loss_fn(params, variables, images, key, tau):
    variables = variables._replace(params=params)
    h, variables = model.encode(variables, images, train=True)
    quantized, variables = model.quantize(
        variables, h, key=key, temperature=tau, train=True
    )
    decoded, variables = model.decode(variables, quantized.z, train=True)
    error = jnp.mean(reconstruction_loss(decoded, images))
    loss = model.quantizer.objective(
        error, quantized, data_shape=images.shape
    )
    terms = {
        'loss': loss,
        'reconstruction': error,
        'mse': jnp.mean(losses.mse(decoded, images)),
        'brightness_variance': jnp.var(jnp.mean(images, axis=(1, 2, 3))),
    }
    return loss, (variables, quantized, terms)

  def train_step(state, images):
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    noise_key, flip_key = jax.random.split(key)
    images = autoencoder.to_unit(images)
    if flip:
      images = _flip_some(flip_key, images)
    tau = temperature(state.step)

    params = state.variables.params
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (_, (variables, quantized, terms)), grads = grad_fn(
        params, state.variables, images, noise_key, tau
    )
    updates, opt_state = optimizer.update(
        grads,
        state.opt_state,
        params,
        quantizer_state=variables.quantizer_state,
    )
    params = optax.apply_updates(params, updates)
    metrics = {
        **quantized.metrics,
        **terms,
        'soft_perplexity': perplexity(quantized.q_c),
        'aggregated_entropy': jnp.log(perplexity(quantized.q_c)),
        'grad_norm': optax.tree.norm(grads),
        'param_norm': optax.tree.norm(params),
        'temperature': tau,
    }
    new = state._replace(
        step=state.step + 1,
        variables=variables._replace(params=params),
        opt_state=opt_state,
        ema_params=_average(
            state.ema_params, params, state.step, decay=ema_decay
        ),
    )
    skipping = opt_state.inner
    if isinstance(skipping, optax.ApplyIfFiniteState):
      metrics['skipped_updates'] = skipping.total_notfinite
      metrics['skipped_in_a_row'] = skipping.notfinite_count
      new = _unless_skipped(new, state)
    return new, metrics

  return jax.jit(train_step, donate_argnums=0)


def init_state(
    key: chex.PRNGKey,
    model: autoencoder.Autoencoder,
    optimizer: optax.GradientTransformationExtraArgs,
    images: jax.Array,
    *,
    kmeans: bool = True,
    kmeans_iterations: int = 10,
    ema: bool = False,
) -> TrainState:
  """Returns the state at step 0, its codebook at the centres of real latents.

  Args:
    key: of the whole run.
    model: what is to be trained.
    optimizer: what trains it.
    images: of the training set, uint8 `[n, H, W, channels]`.
    kmeans: whether the latents of `images` are clustered; otherwise only their
      shape matters, and the codebook is left at its random start.
    kmeans_iterations: of Lloyd's algorithm.
    ema: whether a moving average of the parameters is kept.
  """
  init_key, kmeans_key, run_key = jax.random.split(key, 3)
  variables = model.init(init_key, images.shape[1:])
  if kmeans:
    variables = kmeans_start(
        kmeans_key,
        model,
        variables,
        autoencoder.to_unit(images),
        num_iterations=kmeans_iterations,
    )
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key_data(run_key),
      variables=variables,
      opt_state=optimizer.init(variables.params),
      ema_params=_copy(variables.params) if ema else None,
      eval_batch_stats=_copy(variables.batch_stats),
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
  params, state = quantizers.kmeans_start(
      key,
      model.quantizer,
      variables.params['quantizer'],
      variables.quantizer_state,
      h,
      num_iterations=num_iterations,
  )
  return variables._replace(
      params={**variables.params, 'quantizer': params}, quantizer_state=state
  )


def _unless_skipped(new, old):
  """Returns a state after a step, or where it was left out the one before."""
  finite = new.opt_state.inner.last_finite
  skipping = new.opt_state.inner._replace(
      inner_state=old.opt_state.inner.inner_state
  )
  held = old._replace(
      step=new.step, opt_state=old.opt_state._replace(inner=skipping)
  )
  return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, held)


def _flip_some(key, images):
  """Mirrors each image left to right with probability 1/2."""
  mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


def _average(average, params, step, *, decay):
  """Moves an average towards `params`; faster at first, to forget its start."""
  if average is None:
    return None
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return optax.incremental_update(params, average, 1 - decay)


def _copy(tree):
  return jax.tree.map(jnp.copy, tree)
