"""The learning rate and the temperature as functions of the step."""

import optax

TEMPERATURE_SHAPES = ('exponential', 'linear', 'cosine', 'constant')


def learning_rate(
    peak: float,
    num_steps: int,
    *,
    warmup_fraction: float = 0.1,
    warmup_factor: float = 0.2,
) -> optax.Schedule:
  """Returns a linear warm-up to `peak`, then a cosine to 0.

  Args:
    peak: the maximum.
    num_steps: of the whole run; the schedule ends there.
    warmup_fraction: share of `num_steps` that is warm-up.
    warmup_factor: of `peak`, where the warm-up starts.
  """
  return optax.warmup_cosine_decay_schedule(
      init_value=warmup_factor * peak,
      peak_value=peak,
      warmup_steps=int(warmup_fraction * num_steps),
      decay_steps=num_steps,
  )


def temperature(
    start: float, end: float, num_steps: int, *, shape: str = 'exponential'
) -> optax.Schedule:
  """Returns the Gumbel-softmax temperature, from `start` to `end`.

  Args:
    start: at step 0.
    end: at step `num_steps`.
    num_steps: of the whole run.
    shape: one of `TEMPERATURE_SHAPES`; `constant` stays at `start`.

  Raises:
    ValueError: for any other shape.
  """
  if shape == 'constant':
    return optax.constant_schedule(start)
  if shape == 'exponential':
    return optax.exponential_decay(start, num_steps, end / start)
  if shape == 'linear':
    return optax.linear_schedule(start, end, num_steps)
  if shape == 'cosine':
    return optax.cosine_decay_schedule(start, num_steps, alpha=end / start)
  raise ValueError(
      f'temperature.shape={shape!r} is unknown; it must be one of'
      f' {", ".join(TEMPERATURE_SHAPES)}'
  )
