"""Evaluation, against NumPy over every image at once."""

import jax
import numpy as np
import pytest
from scipy import ndimage
import tiny

from gmvq_jax.nn import autoencoder
from gmvq_jax.training import checkpoint
from gmvq_jax.training import evaluate
from gmvq_jax.training import experiment


@pytest.fixture(scope='module')
def run(trained):
  """The experiment of a trained model, and its state at step 12."""
  exp = experiment.Experiment(tiny.like(trained[0]))
  checkpoints = checkpoint.Checkpoints(trained[0])
  state, *_ = checkpoints.restore_latest(exp.abstract_state())
  return exp, state


@pytest.fixture(scope='module')
def of_test_split(run):
  """The metrics of the test split."""
  exp, state = run
  return exp.evaluate(state, 'test').metrics


def eval_step(exp):
  """The experiment's own, as `evaluate` takes it."""
  return exp._of_batches(exp._programs.eval_step)


def bits(counts):
  share = counts[counts > 0] / counts.sum()
  return -(share * np.log2(share)).sum()


def test_metrics_are_those_of_numpy(run, of_test_split):
  """60 images in batches of 32: the second is padded, and counts as 28."""
  exp, state = run
  images = exp.splits.test

  @jax.jit
  def reconstruct(images):
    images = autoencoder.to_unit(images)
    return exp.model.reconstruct(state.eval_variables, images)

  decoded, quantized = jax.device_get(reconstruct(images))
  error = np.square(np.float64(decoded) - images / 255)
  per_image = error.mean(axis=(1, 2, 3))
  codes = quantized.codes
  counts = np.bincount(codes.ravel(), minlength=24)
  first = np.bincount(codes[:32].ravel(), minlength=24)
  expected = {
      'mse': error.mean(),
      'psnr': -10 * np.log10(error.mean()),
      'psnr_mean': np.mean(-10 * np.log10(per_image)),
      'perplexity': 2 ** bits(first),
      'split_perplexity': 2 ** bits(counts),
      'codes_used': np.mean(counts > 0),
      'bits_per_image': 16 * bits(counts),
      'split_soft_perplexity': 2 ** bits(quantized.q_c),
      'quantization_error': float(quantized.metrics['quantization_error']),
      'posterior_entropy': float(quantized.metrics['posterior_entropy']),
      'ssim': np.mean([
          ssim(x / 255, y)
          for x, y in zip(images, decoded, strict=True)
      ]),
  }
  for name, value in expected.items():
    assert of_test_split[name] == pytest.approx(value, rel=1e-4), name


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


def test_batches_do_not_change_what_is_averaged_over_images(
    run, of_test_split
):
  exp, state = run
  by_8 = evaluate.evaluate(
      eval_step(exp), state.eval_variables, exp.splits.test, batch_size=8
  ).metrics
  for name in ('mse', 'psnr', 'ssim', 'split_perplexity', 'bits_per_image'):
    assert by_8[name] == pytest.approx(of_test_split[name], rel=1e-5), name


def test_a_split_smaller_than_a_batch_is_evaluated(run):
  exp, state = run
  metrics = evaluate.evaluate(
      eval_step(exp), state.eval_variables, exp.splits.test[:3], batch_size=8
  ).metrics
  assert metrics['perplexity'] == pytest.approx(metrics['split_perplexity'])


def test_calibration_makes_evaluation_of_a_batch_that_of_training(run):
  """Statistics calibrated on one batch are those of that batch."""
  exp, state = run
  model, images = exp.model, exp.splits.train[:32]
  stats = evaluate.calibrated_batch_stats(
      exp._of_batches(exp._programs.calibrate),
      state.variables,
      images,
      batch_size=32,
  )

  @jax.jit
  def outputs(calibrated, images):
    images = autoencoder.to_unit(images)
    expected, _ = model.encode(state.variables, images, train=True)
    h, _ = model.encode(calibrated, images)
    quantized, _ = model.quantize(calibrated, h)
    of_training, _ = model.decode(calibrated, quantized.z, train=True)
    decoded, _ = model.decode(calibrated, quantized.z)
    return h, expected, decoded, of_training

  h, expected, decoded, of_training = outputs(
      jax.device_get(state.variables._replace(batch_stats=stats)), images
  )
  np.testing.assert_allclose(h, expected, atol=1e-4)
  np.testing.assert_allclose(decoded, of_training, atol=1e-4)


def test_no_calibration_keeps_the_running_statistics(trained, run):
  exp = experiment.Experiment(tiny.like(trained[0], calibration_images=0))
  _, state = run
  calibrated = exp.calibrate(state)
  for x, y in zip(
      jax.tree.leaves(calibrated.eval_batch_stats),
      jax.tree.leaves(state.variables.batch_stats),
      strict=True,
  ):
    np.testing.assert_array_equal(x, y)
