"""The learning rate and the temperature."""

import jax
import numpy as np
import pytest

from gmvq_jax.training import schedules


def test_learning_rate_warms_up_from_a_factor_then_falls_to_0():
  rate = schedules.learning_rate(
      1e-2, 1000, warmup_fraction=0.1, warmup_factor=0.2
  )
  np.testing.assert_allclose(rate(0), 2e-3, rtol=1e-6)
  np.testing.assert_allclose(rate(50), 6e-3, rtol=1e-6)
  np.testing.assert_allclose(rate(100), 1e-2, rtol=1e-6)
  np.testing.assert_allclose(rate(550), 5e-3, rtol=1e-6)
  np.testing.assert_allclose(rate(1000), 0, atol=1e-9)


@pytest.mark.parametrize('shape', schedules.TEMPERATURE_SHAPES)
def test_temperature_goes_from_start_to_end(shape):
  tau = schedules.temperature(2.0, 0.1, 400, shape=shape)
  values = np.asarray(jax.jit(jax.vmap(tau))(np.arange(401)))
  assert values[0] == pytest.approx(2.0)
  assert values[-1] == pytest.approx(2.0 if shape == 'constant' else 0.1)
  assert np.all(np.diff(values) <= 1e-7)
  middle = {'exponential': 0.2**0.5, 'linear': 1.05, 'cosine': 1.05}
  assert values[200] == pytest.approx(middle.get(shape, 2.0), rel=1e-5)


def test_an_unknown_shape_is_refused():
  with pytest.raises(ValueError, match="temperature.shape='step' is unknown"):
    schedules.temperature(2.0, 0.1, 10, shape='step')
