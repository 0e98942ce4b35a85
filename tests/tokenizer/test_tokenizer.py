"""A trained model as a tokenizer."""

import copy
import json
import pathlib
import shutil
import sys

import chex
import jax
from jax.sharding import PartitionSpec
import numpy as np
from PIL import Image
import pytest
import tiny

import gmvq_jax
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files as files_lib
from gmvq_jax.tokenizer import saved_model
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib
from gmvq_jax.tokenizer import weights
from gmvq_jax.training import checkpoint
from gmvq_jax.training import summary

METHODS = (
    'gmvq', 'vqvae', 'vqvae+ema+replace', 'vqvae+affine+opt+replace+l2',
    'sqvae', 'gumbel', 'fsq', 'bsq', 'simvq+rotation',
)  # fmt: skip


@pytest.fixture(scope='module')
def tokenizer(trained):
  return gmvq_jax.Tokenizer.load(trained[0])


@pytest.fixture
def one_device(monkeypatch):
  """New tokenizers use one device, so that there is less to compute."""
  use_devices(monkeypatch, 1)


def use_devices(monkeypatch, count):
  monkeypatch.setattr(
      distributed, 'local_mesh', lambda: distributed.data_mesh(count)
  )


def untrained(name, channels=3, **fields):
  """Returns a tokenizer, its model and its variables."""
  config = tiny.method_config(name)
  config.update_from_flattened_dict(fields)
  model, variables = tiny.random_model(config, channels)
  tensors = weights.of_model(model, variables)
  image_shape = (16, 16, channels)
  made = gmvq_jax.Tokenizer(saved_model.Stored(config, tensors, image_shape))
  return made, model, variables


def test_attributes(tokenizer):
  assert tokenizer.num_codes == 24
  assert tokenizer.image_shape == (16, 16, 3)
  assert tokenizer.codebook.shape == (24, 4)
  assert tokenizer.grid(16, 16) == (4, 4)
  assert tokenizer.grid(64, 12) == (16, 3)
  assert tokenizer.bits_per_pixel == pytest.approx(np.log2(24) / 16)
  assert len(tokenizer.hash) == 64


def test_round_trip_has_the_error_of_the_evaluation(trained, tokenizer):
  workdir, images = trained
  known = summary.evaluate_workdir(str(workdir))
  codes = tokenizer.encode(images)
  chex.assert_shape(codes, (60, 4, 4))
  chex.assert_type(codes, np.int32)
  decoded = tokenizer.decode(codes)
  chex.assert_shape(decoded, (60, 16, 16, 3))
  chex.assert_type(decoded, np.float32)
  mse = np.mean(np.square(decoded.astype(np.float64) - images / 255))
  assert mse == pytest.approx(known['mse'], rel=1e-6)
  np.testing.assert_array_equal(tokenizer.reconstruct(images), decoded)
  assert len(np.unique(codes)) > 2


def test_it_needs_no_data(trained, tmp_path, tokenizer):
  moved = shutil.copytree(trained[0], tmp_path / 'run')
  config = json.loads((moved / 'config.json').read_text())
  config['data']['dir'] = '/nowhere'  # It may change.
  (moved / 'config.json').write_text(json.dumps(config))
  assert gmvq_jax.Tokenizer.load(str(moved)).hash == tokenizer.hash


def test_codes_do_not_depend_on_the_batch(trained, tokenizer):
  """Nor on the images beside an image."""
  _, images = trained
  codes = tokenizer.encode(images)
  for size, count in ((1, 9), (7, 60)):
    parts = [
        tokenizer.encode(images[i : i + size]) for i in range(0, count, size)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), codes[:count])
  order = np.random.default_rng(0).permutation(60)
  np.testing.assert_array_equal(tokenizer.encode(images[order]), codes[order])
  np.testing.assert_array_equal(
      tokenizer.decode(codes[:1]), tokenizer.decode(codes)[:1]
  )


@pytest.mark.parametrize(
    'count', [1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_codes_do_not_depend_on_the_devices(
    trained, tokenizer, monkeypatch, count
):
  _, images = trained
  codes = tokenizer.encode(images)
  assert tokenizer.batch_size(16, 16) == 8 * 64
  use_devices(monkeypatch, count)
  few = gmvq_jax.Tokenizer(tokenizer.stored)
  assert few.batch_size(16, 16) == count * 64
  np.testing.assert_array_equal(few.encode(images), codes)


def test_more_images_than_a_unit_holds(tokenizer, rng):
  images = rng.integers(0, 256, (70, 64, 64, 3), dtype=np.uint8)
  assert tokenizer.batch_size(64, 64) == 8 * 4
  codes = tokenizer.encode(images)
  np.testing.assert_array_equal(tokenizer.encode(images[33:34]), codes[33:34])
  assert tokenizer.decode(codes[:3]).shape == (3, 64, 64, 3)


def test_one_program_for_each_size(trained, tokenizer):
  _, images = trained
  tokenizer.encode(images)
  known = tokenizer._encode._cache_size()
  for count in (1, 7, 33):
    tokenizer.encode(images[:count])
  assert tokenizer._encode._cache_size() == known


@pytest.mark.parametrize('name', METHODS)
def test_it_is_the_model_at_evaluation(name, photographs, one_device):
  made, model, variables = untrained(name)
  images = photographs[:9]
  decoded, quantized = jax.device_get(
      jax.jit(model.reconstruct)(variables, images / np.float32(255))
  )
  codes = made.encode(images)
  assert len(np.unique(codes)) > 2
  np.testing.assert_array_equal(codes, quantized.codes)
  np.testing.assert_allclose(made.decode(codes), decoded, atol=1e-6)
  assert made.codebook.dtype == np.float32
  np.testing.assert_allclose(
      made.codebook[codes], quantized.z, rtol=1e-6, atol=1e-6
  )


def test_bfloat16_networks(photographs, one_device):
  made, *_ = untrained('gmvq', **{'network.dtype': 'bfloat16'})
  codes = made.encode(photographs[:9])
  np.testing.assert_array_equal(made.encode(photographs[4:5]), codes[4:5])
  assert made.decode(codes).dtype == np.float32
  config = tiny.method_config('gmvq')
  assert made.hash != made.stored._replace(config=config).hash


def test_of_equal_codes_the_lowest_wins(tokenizer, photographs):
  tensors = dict(tokenizer.stored.tensors)
  for name in ('codebook', 'quantizer.codebook'):
    tensors[name] = np.tile(tensors[name][3], (24, 1))
  same = gmvq_jax.Tokenizer(tokenizer.stored._replace(tensors=tensors))
  assert (same.encode(photographs[:3]) == 0).all()


def test_arrays_pil_images_and_paths_give_the_same_codes(
    trained, tokenizer, tmp_path
):
  _, images = trained
  codes = tokenizer.encode(images[:2])
  files = [tmp_path / 'a.png', tmp_path / 'b.png']
  for file, image in zip(files, images, strict=False):
    Image.fromarray(image).save(file)
  opened = [Image.open(file) for file in files]
  for given in (
      jax.numpy.asarray(images[:2]),
      images[:2].astype(np.float32) / 255,
      images[:2] / 255,
      list(images[:2]),
      files,
      tuple(map(str, files)),
      opened,
      [opened[0], images[1]],
  ):
    np.testing.assert_array_equal(tokenizer.encode(given), codes)
  for single in (files[0], str(files[0]), opened[0]):
    np.testing.assert_array_equal(tokenizer.encode(single), codes[:1])
  grey = Image.fromarray(images[0]).convert('L')
  assert tokenizer.encode(grey).shape == (1, 4, 4)


def test_grey_images(rng, one_device):
  made, *_ = untrained('gmvq', channels=1, **{'data.channels': 1})
  images = rng.integers(0, 256, (3, 16, 16), dtype=np.uint8)
  codes = made.encode(images)
  np.testing.assert_array_equal(made.encode(images[..., None]), codes)
  np.testing.assert_array_equal(
      made.encode(Image.fromarray(images[1])), codes[1:2]
  )
  assert made.decode(codes).shape == (3, 16, 16, 1)


def message_of(function, *args):
  with pytest.raises(ValueError) as caught:
    function(*args)
  text = str(caught.value)
  assert isinstance(caught.value, errors.UserError), caught.value
  assert '\n' not in text
  return text


@pytest.mark.parametrize(
    'images, said',
    [
        (np.zeros((2, 15, 16, 3), np.uint8), '15 x 16'),
        (np.zeros((2, 0, 16, 3), np.uint8), '(2, 0, 16, 3)'),
        (np.zeros((2, 16, 16, 1), np.uint8), '[B, H, W, 3]'),
        (np.zeros((16, 16, 3), np.uint8), '[B, H, W, 3]'),
        (np.zeros((0, 16, 16, 3), np.uint8), 'there must be one'),
        ([], 'must be [B, H, W, 3]'),
        (np.zeros((2, 16, 16, 3), np.int32), 'int32'),
        (np.zeros((2, 16, 16, 3), bool), 'bool'),
        (np.zeros((2, 16, 16, 3), object), 'object'),
        (np.full((2, 16, 16, 3), 255.0), 'from 255 to 255'),
        (np.full((2, 16, 16, 3), -0.1), 'from -0.1'),
        (np.full((2, 16, 16, 3), np.nan), 'nan'),
        ([np.zeros((16, 16, 3)), np.zeros((8, 8, 3))], 'of one'),
        ('/nowhere.png', '/nowhere.png'),
        (pathlib.Path(__file__), 'test_tokenizer.py'),
        ([None], 'shape'),
    ],
)
def test_invalid_images(tokenizer, images, said):
  assert said in message_of(tokenizer.encode, images)


@pytest.mark.parametrize(
    'codes, said',
    [
        (np.full((1, 4, 4), 24), 'from 24 to 24: must be from 0 to 23'),
        (np.full((1, 4, 4), -1), 'from -1'),
        (np.full((1, 4, 4), 2**40), str(2**40)),
        (np.zeros((1, 4, 4)), 'float64'),
        (np.zeros((3, 16), int), '[B, 4, 4]'),
        (np.zeros((0, 4, 4), int), 'not empty'),
        (np.zeros((1, 0, 4), int), 'not empty'),
        (np.zeros((1, 4, 4, 1), int), '(1, 4, 4, 1)'),
    ],
)
def test_invalid_codes(tokenizer, codes, said):
  assert said in message_of(tokenizer.decode, codes)


def test_codes_of_any_integer_type(tokenizer):
  codes = np.arange(16).reshape(1, 4, 4)
  expected = tokenizer.decode(codes)
  for dtype in (np.uint8, np.int16, np.uint64):
    decoded = tokenizer.decode(codes.astype(dtype))
    np.testing.assert_array_equal(decoded, expected)


def test_paths_without_a_tokenizer(trained, tmp_path):
  load = gmvq_jax.Tokenizer.load
  assert 'no such directory' in message_of(load, tmp_path / 'none')
  (tmp_path / 'empty').mkdir()
  assert 'no config.json' in message_of(load, tmp_path / 'empty')
  started = tmp_path / 'started'
  started.mkdir()
  shutil.copy(trained[0] / 'config.json', started)
  assert 'no checkpoint yet' in message_of(load, started)
  broken = shutil.copytree(trained[0], tmp_path / 'broken')
  for file in broken.glob('checkpoints/*/record/metadata'):
    file.write_text('{}')
  assert 'none of its checkpoints can be read' in message_of(load, broken)


def test_an_edited_configuration_is_refused(trained, tmp_path):
  edited = shutil.copytree(trained[0], tmp_path / 'edited')
  config = files_lib.read_json(edited / 'config.json')
  config['quantizer']['weight_scale'] = 2.0
  (edited / 'config.json').write_text(json.dumps(config))
  assert 'put that back' in message_of(gmvq_jax.Tokenizer.load, edited)


def test_no_collectives_and_full_precision(tokenizer):
  images = jax.ShapeDtypeStruct((512, 16, 16, 3), np.uint8)
  lowered = tokenizer._encode.lower(tokenizer.variables, images)
  assert 'all-reduce' not in lowered.compile().as_text()
  text = lowered.as_text()
  convolutions = [x for x in text.splitlines() if 'stablehlo.convolution' in x]
  products = [x for x in text.splitlines() if 'stablehlo.dot_general' in x]
  assert convolutions and products
  for line in convolutions + products:
    assert 'HIGHEST' in line, line


def test_images_of_32_bits_are_refused(tokenizer):
  image = Image.new('F', (16, 16))
  assert '32 bits' in message_of(tokenizer.encode, image)


def test_codes_and_pixels_do_not_depend_on_x64(trained, tokenizer, x64):
  _, images = trained
  codes = tokenizer.encode(images)
  loaded = gmvq_jax.Tokenizer.load(trained[0])
  assert loaded.hash == tokenizer.hash
  np.testing.assert_array_equal(loaded.encode(images), codes)
  decoded = loaded.decode(codes)
  assert decoded.dtype == np.float32
  np.testing.assert_array_equal(decoded, tokenizer.decode(codes))


def test_no_function_of_the_users_is_imported(
    tokenizer, tmp_path, monkeypatch
):
  """A loss that is `MODULE:FUNCTION` is for training."""
  (tmp_path / 'boom.py').write_text('raise SystemExit("executed")')
  monkeypatch.syspath_prepend(tmp_path)
  config = copy.deepcopy(tokenizer.stored.config)
  config.reconstruction_loss = 'boom:loss'
  made = gmvq_jax.Tokenizer(tokenizer.stored._replace(config=config))
  made.encode(np.zeros((1, 16, 16, 3), np.uint8))
  assert 'boom' not in sys.modules


def test_averaged_parameters_of_the_best_checkpoint(tmp_path, photographs):
  """With the batch statistics of evaluation."""
  exp = tiny.make(tiny.save_images(tmp_path, photographs), ema_decay=0.9)
  run = tmp_path / 'run'
  states = tiny.save_checkpoints(exp, run, {1: 0.3, 2: 0.1, 3: 0.2})
  loaded = gmvq_jax.Tokenizer.load(run)
  best = states[2]
  np.testing.assert_array_equal(
      loaded.codebook, best.ema_params['quantizer']['codebook']
  )
  for known, found in (
      (best.ema_params, loaded.variables.params),
      (best.eval_batch_stats, loaded.variables.batch_stats),
  ):
    chex.assert_trees_all_equal(jax.device_get(found), known)


def test_tiles_do_not_depend_on_the_devices():
  """The program of a unit is the same on any machine, tiled ones too."""
  made, *_ = untrained('gmvq', **{'quantizer.num_codes': 2048})
  programs_of = set()
  batched = PartitionSpec('data')
  for count in (1, 2, 8):
    encode = jax.shard_map(
        lambda *args: made.encode_unit(*args),
        mesh=distributed.data_mesh(count),
        in_specs=(PartitionSpec(), batched),
        out_specs=batched,
    )
    images = jax.ShapeDtypeStruct((64 * count, 16, 16, 3), np.uint8)
    program = jax.make_jaxpr(encode)(jax.device_get(made.variables), images)
    (unit,) = (x.params['jaxpr'] for x in program.eqns if 'mesh' in x.params)
    programs_of.add(str(unit))
  assert len(programs_of) == 1, 'depends on the number of devices'
  (program,) = programs_of
  assert '[1,64,2048]' in program, 'not tiled'


def test_within_a_mesh_of_the_user(trained, tokenizer):
  _, images = trained
  codes = tokenizer.encode(images)
  with jax.set_mesh(jax.make_mesh((4, 2), ('x', 'y'))):
    np.testing.assert_array_equal(tokenizer.encode(images), codes)
    loaded = gmvq_jax.Tokenizer(tokenizer.stored)
    np.testing.assert_array_equal(loaded.encode(images), codes)


def test_a_run_of_an_earlier_version_is_one_line(trained, monkeypatch):
  monkeypatch.setattr(
      checkpoint.Checkpoints, 'some_place', lambda _: {'origin': {}}
  )
  assert 'earlier version' in message_of(gmvq_jax.Tokenizer.load, trained[0])


def test_a_home_that_does_not_exist_is_one_line(tokenizer):
  assert 'no such home' in message_of(gmvq_jax.Tokenizer.load, '~nobody-of/x')


def test_units_do_not_depend_on_the_devices():
  assert tokenizer_lib.unit_size(32, 32, 'cpu') == 16
  assert tokenizer_lib.unit_size(1024, 1024, 'cpu') == 1
  assert tokenizer_lib.unit_size(32, 32, 'tpu') == 256
