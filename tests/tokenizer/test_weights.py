"""The arrays of a model under flat names."""

import jax
import numpy as np
import pytest
import tiny

from gmvq_jax.runtime import errors
from gmvq_jax.tokenizer import weights


@pytest.fixture(scope='module', params=['gmvq', 'vqvae+ema', 'fsq'])
def model_and_variables(request):
  return tiny.random_model(tiny.method_config(request.param))


def test_names_say_where_an_array_is(model_and_variables):
  model, variables = model_and_variables
  tensors = weights.of_model(model, variables)
  assert tensors['encoder.ConvNorm_0.Conv_0.kernel'].shape == (4, 4, 3, 4)
  assert tensors['decoder.ConvNorm_0.BatchNorm_0.mean'].shape == (8,)
  np.testing.assert_array_equal(
      tensors['encoder.ConvNorm_0.BatchNorm_0.var'],
      variables.batch_stats['encoder']['ConvNorm_0']['BatchNorm_0']['var'],
  )
  assert len(tensors['codebook']) == model.quantizer.num_codes
  # No two arrays under one name.
  assert len(tensors) == len(jax.tree.leaves(variables)) + 1


def test_round_trip_through_a_file(model_and_variables, tmp_path):
  model, variables = model_and_variables
  path = tmp_path / 'weights.safetensors'
  path.write_bytes(weights.to_bytes(weights.of_model(model, variables)))
  again = weights.to_variables(weights.read(path), variables, path)
  assert jax.tree.structure(again) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_digest_sees_every_array_and_the_structure(model_and_variables):
  model, variables = model_and_variables
  tensors = weights.of_model(model, variables)
  known = weights.digest(tensors, {'width': 8})
  again = dict(reversed([(k, v.copy()) for k, v in tensors.items()]))
  assert weights.digest(again, {'width': 8}) == known
  digests = {known, weights.digest(tensors, {'width': 9})}
  for name, array in tensors.items():
    changed = array.copy()
    changed.flat[-1] = np.nextafter(changed.flat[-1], np.inf)
    digests.add(weights.digest(tensors | {name: changed}, {'width': 8}))
  assert len(digests) == len(tensors) + 2


def test_an_array_that_does_not_fit_is_named(model_and_variables):
  model, variables = model_and_variables
  tensors = weights.of_model(model, variables)
  name = 'encoder.ConvNorm_0.Conv_0.kernel'

  def message(changed):
    with pytest.raises(errors.UserError) as caught:
      weights.to_variables(changed, variables, 'FILE')
    return str(caught.value)

  without = {k: v for k, v in tensors.items() if k != name}
  assert message(without) == f'FILE: {name} is missing'
  assert '(4, 4, 3, 2)' in message(tensors | {name: tensors[name][..., :2]})
  assert 'float16' in message(tensors | {name: tensors[name].astype('f2')})
  assert 'has no encoder.more' in message(
      tensors | {'encoder.more': np.zeros(3, np.float32)}
  )


def test_a_damaged_file_is_one_line(tmp_path):
  path = tmp_path / 'weights.safetensors'
  for content in (b'', b'\xff' * 100, b'{"a": 1}'):
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match='cannot be read'):
      weights.read(path)
