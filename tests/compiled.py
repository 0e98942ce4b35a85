"""Calls of jitted functions: one program each, with NumPy results."""

import jax


def call(function, *arguments, **options):
  """Returns the result of `jax.jit(function)`; `train` is static."""
  static = 'train' if 'train' in options else None
  jitted = jax.jit(function, static_argnames=static)
  return jax.device_get(jitted(*arguments, **options))


def init(quantizer):
  """Returns params and state, of the seed 0."""
  return call(quantizer.init, jax.random.key(0))
