"""Codes to files of images, and pages."""

import pathlib

import numpy as np
from PIL import Image
import pytest

import gmvq_jax
from gmvq_jax.runtime import errors
from gmvq_jax.tokenizer import code_files
from gmvq_jax.tokenizer import decode
from gmvq_jax.tokenizer import encode


@pytest.fixture(scope='module')
def tokenizer(trained):
  return gmvq_jax.Tokenizer.load(trained[0])


@pytest.fixture
def loaded(tokenizer, trained, tmp_path):
  np.save(tmp_path / 'images.npy', trained[1])
  return encode.load_images(tokenizer, f'array:{tmp_path}/images.npy')


@pytest.fixture
def images(trained):
  return trained[1]


def message_of(function, *args, **kwargs):
  with pytest.raises(errors.UserError) as caught:
    function(*args, **kwargs)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.fixture
def codes(tokenizer, loaded, tmp_path):
  encode.encode(tokenizer, loaded, str(tmp_path / 'encoded'))
  return code_files.open(tmp_path / 'encoded')


def test_decoded_files_are_the_images(tokenizer, images, codes, tmp_path):
  output = tmp_path / 'decoded'
  decode.decode(tokenizer, codes, str(output), limit=7)
  files = sorted(output.glob('*.png'))
  assert [p.name for p in files] == [f'{i:06}.png' for i in range(7)]
  expected = np.round(255 * tokenizer.reconstruct(images[:7]))
  np.testing.assert_array_equal(
      [np.asarray(Image.open(file)) for file in files], expected
  )


def test_decoding_continues(tokenizer, codes, tmp_path):
  output = tmp_path / 'decoded'
  decode.decode(tokenizer, codes, str(output), limit=3)
  known = (output / '000001.png').stat().st_mtime_ns
  (output / '000002.png').unlink()
  decode.decode(tokenizer, codes, str(output))
  assert len(list(output.glob('*.png'))) == 60
  assert (output / '000001.png').stat().st_mtime_ns == known


def test_names_that_differ_give_files_that_differ(tokenizer, codes, tmp_path):
  names = ['x.png', 'x', 'x.jpg', 'x.jpg.png', 'x.png.png']
  path = tmp_path / 'codes.npz'
  description = codes.description._replace(count=5)
  code_files.write_npz(path, description, names, codes[:5][1])
  summary = decode.decode(
      tokenizer, code_files.open(path), str(tmp_path / 'decoded')
  )
  assert summary['images'] == 5
  files = {file.name for file in (tmp_path / 'decoded').glob('*.png')}
  assert files == {f'{name}.png' for name in names}


def test_outputs_that_are_no_folder_are_refused(tokenizer, codes, tmp_path):
  for name in ('sheet.jpg', 'other.npy', 'page.html'):
    output = str(tmp_path / name)
    message = message_of(decode.decode, tokenizer, codes, output)
    assert 'give a folder or FILE.png' in message
    assert not (tmp_path / name).exists()


def test_decoding_overwrites_no_other_files(tokenizer, codes, tmp_path):
  output = tmp_path / 'originals'
  output.mkdir()
  (output / '000001.png').write_bytes(b'precious')
  assert 'a folder of its own' in message_of(
      decode.decode, tokenizer, codes, str(output)
  )
  assert (output / '000001.png').read_bytes() == b'precious'


@pytest.mark.parametrize(
    'name',
    ['../../evil', '/tmp/evil', 'a/../../../evil', '..', '', '.', 'x\0y',
     'a\nb', './evil.png'],
)
def test_names_stay_in_the_folder(tokenizer, codes, tmp_path, name):
  path = tmp_path / 'codes.npz'
  description = codes.description._replace(count=1)
  code_files.write_npz(path, description, [name], codes[0][1][None])
  output = tmp_path / 'deep' / 'er' / 'decoded'
  decode.decode(tokenizer, code_files.open(path), str(output))
  assert len(list(output.rglob('*.png'))) == 1
  assert not list(tmp_path.glob('*.png')) + list(tmp_path.glob('deep/*.png'))
  assert not pathlib.Path('/tmp/evil.png').exists()


def test_a_contact_sheet(tokenizer, images, codes, tmp_path):
  output = tmp_path / 'sheet.png'
  decode.decode(tokenizer, codes, str(output), limit=5)
  sheet = np.asarray(Image.open(output))
  assert sheet.shape == (2 * 18 - 2, 3 * 18 - 2, 3)
  expected = np.round(255 * tokenizer.reconstruct(images[:5]))
  np.testing.assert_array_equal(sheet[18:34, 18:34], expected[4])
  assert (sheet[18:, 36:] == 255).all()


def test_default_numbers_of_images(
    tokenizer, loaded, codes, tmp_path, monkeypatch
):
  page, sheet = str(tmp_path / 'page.html'), str(tmp_path / 'sheet.png')
  assert decode.reconstruct(tokenizer, loaded, page)['images'] == 18
  assert decode.decode(tokenizer, codes, sheet)['images'] == 60
  for message in (
      message_of(decode.reconstruct, tokenizer, loaded, page),
      message_of(decode.decode, tokenizer, codes, sheet),
  ):
    assert 'is there already' in message
  (tmp_path / 'sheet.png').unlink()
  monkeypatch.setattr(decode, '_SHEET', 9)
  assert decode.decode(tokenizer, codes, sheet)['images'] == 9
  assert Image.open(sheet).size == (52, 52)


def test_codes_of_another_tokenizer_are_refused(tokenizer, codes, tmp_path):
  other = code_files.Codes(codes.description._replace(tokenizer='f' * 64), None)
  message = message_of(
      decode.decode, tokenizer, other, str(tmp_path / 'x.png')
  )
  assert tokenizer.hash[:12] in message and 'ffffffffffff' in message
  assert not (tmp_path / 'x.png').exists()


def test_a_wrong_grid_is_refused(tokenizer, codes, tmp_path):
  wrong = codes.description._replace(image_shape=(16, 32, 3))
  wrong = code_files.Codes(wrong, None)
  assert 'are 4 x 4 for an image; of this tokenizer they are 4 x 8' in (
      message_of(decode.decode, tokenizer, wrong, str(tmp_path / 'x'))
  )


def test_a_page_of_reconstructions(tokenizer, images, loaded, tmp_path):
  output = tmp_path / 'pages' / 'page.html'
  loaded = loaded._replace(source='<mine>')
  summary = decode.reconstruct(tokenizer, loaded, str(output), limit=5)
  page = output.read_text()
  assert page.count('data:image/png') == 5
  assert '&lt;mine&gt;, reconstructed' in page
  assert '000004' in page and '000005' not in page
  assert tokenizer.hash[:12] in page
  error = tokenizer.reconstruct(images[:5]) - images[:5] / 255
  mse = np.mean(np.square(error))
  assert summary['mse'] == pytest.approx(mse)
  assert summary['psnr'] == pytest.approx(-10 * np.log10(mse))
  first = -10 * np.log10(np.mean(np.square(error[0])))
  assert f'000000, {first:.2f} dB' in page
  assert 'must be the name of a .html' in message_of(
      decode.reconstruct, tokenizer, loaded, 'page'
  )
