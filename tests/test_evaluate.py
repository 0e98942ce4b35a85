"""Evaluation, against NumPy over every image at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
import tiny

from gmvq_jax import autoencoder
from gmvq_jax import evaluate


@pytest.fixture
def trained(tmp_path, photographs):
  experiment = tiny.make(tiny.save_images(tmp_path, photographs))
  return experiment, experiment.init_state()


def bits(counts):
  share = counts[counts > 0] / counts.sum()
  return -(share * np.log2(share)).sum()


def test_metrics_are_those_of_numpy(trained):
  """60 images in batches of 32: the second is padded, and counts as 28."""
  experiment, state = trained
  metrics = experiment.evaluate(state, 'test').metrics
  images = experiment.splits.test
  decoded, quantized = experiment.model.reconstruct(
      state.eval_variables, autoencoder.to_unit(jnp.asarray(images))
  )
  error = np.square(np.asarray(decoded, np.float64) - images / 255)
  per_image = error.mean(axis=(1, 2, 3))
  codes = np.asarray(quantized.codes)
  counts = np.bincount(codes.ravel(), minlength=16)
  first = np.bincount(codes[:32].ravel(), minlength=16)
  expected = {
      'mse': error.mean(),
      'psnr': -10 * np.log10(error.mean()),
      'psnr_mean': np.mean(-10 * np.log10(per_image)),
      'perplexity': 2 ** bits(first),
      'split_perplexity': 2 ** bits(counts),
      'codes_used': np.mean(counts > 0),
      'bits_per_image': 16 * bits(counts),
      'split_soft_perplexity': 2 ** bits(np.asarray(quantized.q_c)),
      'quantization_error': float(quantized.metrics['quantization_error']),
      'posterior_entropy': float(quantized.metrics['posterior_entropy']),
      'ssim': np.mean([
          ssim(x / 255, y)
          for x, y in zip(images, np.asarray(decoded), strict=True)
      ]),
  }
  for name, value in expected.items():
    assert metrics[name] == pytest.approx(value, rel=1e-4), name


def ssim(x, y):
  """Wang 2004, with SciPy: Gaussian window of 11 pixels, sigma 1.5."""

  def blur(image):
    blurred = ndimage.gaussian_filter(
        image, (1.5, 1.5, 0), truncate=5 / 1.5, mode='constant'
    )
    return blurred[5:-5, 5:-5]

  mx, my = blur(x), blur(y)
  vx, vy = blur(x * x) - mx**2, blur(y * y) - my**2
  cov = blur(x * y) - mx * my
  c1, c2 = 0.01**2, 0.03**2
  return np.mean(
      (2 * mx * my + c1) * (2 * cov + c2)
      / ((mx**2 + my**2 + c1) * (vx + vy + c2))
  )


def test_batches_do_not_change_what_is_averaged_over_images(trained):
  experiment, state = trained
  by_32 = experiment.evaluate(state, 'test').metrics
  step = evaluate.make_eval_step(experiment.model, experiment.mesh)
  by_8 = evaluate.evaluate(
      step, state.eval_variables, experiment.splits.test, batch_size=8
  ).metrics
  for name in ('mse', 'psnr', 'ssim', 'split_perplexity', 'bits_per_image'):
    assert by_8[name] == pytest.approx(by_32[name], rel=1e-5)


def test_a_split_smaller_than_a_batch_is_evaluated(trained):
  experiment, state = trained
  step = evaluate.make_eval_step(experiment.model, experiment.mesh)
  metrics = evaluate.evaluate(
      step, state.eval_variables, experiment.splits.test[:3], batch_size=8
  ).metrics
  assert metrics['perplexity'] == pytest.approx(metrics['split_perplexity'])


def test_calibration_makes_evaluation_of_a_batch_that_of_training(trained):
  """On one batch alone, calibrated statistics are that batch's own."""
  experiment, state = trained
  images = experiment.splits.train[:32]
  calibrate = evaluate.make_calibrate(experiment.model, experiment.mesh)
  stats = evaluate.calibrated_batch_stats(
      calibrate, state.variables, images, batch_size=32
  )
  variables = state.variables._replace(batch_stats=stats)
  unit = autoencoder.to_unit(jnp.asarray(images))
  expected, _ = experiment.model.encode(state.variables, unit, train=True)
  h, _ = experiment.model.encode(variables, unit)
  np.testing.assert_allclose(h, expected, atol=1e-4)
  quantized, _ = experiment.model.quantize(variables, h)
  expected, _ = experiment.model.decode(variables, quantized.z, train=True)
  decoded, _ = experiment.model.decode(variables, quantized.z)
  np.testing.assert_allclose(decoded, expected, atol=1e-4)


def test_no_calibration_keeps_the_running_statistics(tmp_path, photographs):
  name = tiny.save_images(tmp_path, photographs)
  experiment = tiny.make(name, calibration_images=0)
  state = experiment.init_state()
  calibrated = experiment.calibrate(state)
  for x, y in zip(
      jax.tree.leaves(calibrated.eval_batch_stats),
      jax.tree.leaves(state.variables.batch_stats),
      strict=True,
  ):
    np.testing.assert_array_equal(x, y)
