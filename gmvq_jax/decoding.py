"""Codes to files of images, and pages of what is left of images."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

from gmvq_jax import codes as codes_lib
from gmvq_jax import errors
from gmvq_jax import pictures
from gmvq_jax import progress
from gmvq_jax import report
from gmvq_jax import tokenizer as tokenizer_lib
from gmvq_jax import workdir
from gmvq_jax.data import whole

_SHEET = 256
_ON_PAGE = 18
_DECODED = 'decoded.json'


def decode(
    tokenizer: tokenizer_lib.Tokenizer,
    codes: codes_lib.Codes,
    output: str,
    *,
    limit: int = 0,
) -> None:
  """Writes the images of codes: a PNG each, or one of all.

  Args:
    tokenizer: the one that made the codes.
    codes: of `codes.open`.
    output: a folder, or `FILE.png` for a contact sheet.
    limit: how many images at most; 0: all of them, or 256 on a sheet.

  Raises:
    errors.UserError: for the codes of another tokenizer, and when the output
      cannot be written.
  """
  made_by = codes.description.tokenizer
  if made_by != tokenizer.hash:
    raise errors.UserError(
        f'the codes are of tokenizer {made_by[:12]}, and this one is'
        f' {tokenizer.hash[:12]}; decode them with the one that made them'
    )
  described = codes.description
  grid = tokenizer.grid(*described.image_shape[:2])
  if described.grid != grid:
    raise errors.UserError(
        f'the codes are {described.grid[0]} x {described.grid[1]} for an image;'
        f' of this tokenizer they are {grid[0]} x {grid[1]}'
    )
  count = min(limit or len(codes), len(codes))
  if output.endswith('.png'):
    _decode_sheet(tokenizer, codes, output, min(count, limit or _SHEET))
  else:
    _decode_folder(tokenizer, codes, output, count)


def reconstruct(
    tokenizer: tokenizer_lib.Tokenizer,
    loaded: whole.NamedImages,
    output: str,
    *,
    limit: int = 0,
) -> dict[str, float]:
  """Writes a page of images beside what is left of them.

  Args:
    tokenizer: it.
    loaded: of `encoding.load_images`.
    output: the page, `FILE.html`.
    limit: how many of the first images; 0: 18.

  Returns:
    `images`, and of those `mse`, `psnr` and `bits_per_pixel`.

  Raises:
    errors.UserError: when the output cannot be written.
  """
  if not output.endswith('.html'):
    raise errors.UserError(f'--output={output}: must be the name of a .html')
  path = pathlib.Path(output).expanduser().resolve()
  workdir.create(str(path.parent), 'output')
  images = loaded.images[: limit or _ON_PAGE]
  codes = tokenizer.encode(images)
  decoded = tokenizer.decode(codes)
  errors_of = np.mean(np.square(decoded - images / 255), axis=(1, 2, 3))
  colours = pictures.code_colours(tokenizer.codebook)
  shown = [
      {
          'name': loaded.name(i),
          'psnr': _psnr(errors_of[i]),
          'picture': pictures.dissection(
              images[i], decoded[i], codes[i], colours
          ),
      }
      for i in range(len(images))
  ]
  mse = float(np.mean(errors_of))
  page = report.template('reconstruct.html').render(
      name=loaded.source,
      tokenizer=tokenizer,
      quantizer=tokenizer.stored.config.quantizer.name,
      images=shown,
      count=len(loaded.images),
      grid=codes.shape[1:],
      different=len(np.unique(codes)),
      mse=mse,
      psnr=_psnr(mse),
  )
  workdir.write_bytes(path, page.encode())
  return {
      'images': len(images),
      'mse': mse,
      'psnr': _psnr(mse),
      'bits_per_pixel': tokenizer.bits_per_pixel,
  }


def _psnr(mse):
  return float(-10 * np.log10(max(mse, 1e-10)))


def _decode_sheet(tokenizer, codes, output, count):
  images = [
      pictures.to_uint8(image)
      for _, part in _decoded(tokenizer, codes, range(count))
      for image in part
  ]
  path = pathlib.Path(output).expanduser().resolve()
  workdir.create(str(path.parent), 'output')
  workdir.write_bytes(path, pictures.to_png(pictures.sheet(np.stack(images))))


def _decode_folder(tokenizer, codes, output, count):
  path = workdir.create(output, 'output')
  described = json.loads(json.dumps(codes.description._asdict()))
  known = workdir.read_json(path / _DECODED)
  if known != described:
    if any(path.iterdir()):
      raise errors.UserError(
          f'--output={output}: holds files that are not of these codes; give a'
          ' folder of its own'
      )
    workdir.write_json(path / _DECODED, described)
  for names, images in _decoded(tokenizer, codes, range(count)):
    for name, image in zip(names, images, strict=True):
      file = path / _file_name(name)
      if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_bytes(file, _png(pictures.to_uint8(image)))


def _decoded(tokenizer, codes, indices):
  """Yields names and images, as many at a time as the devices take."""
  size = tokenizer.batch_size(*codes.description.image_shape[:2])
  starts = range(0, len(indices), size)
  for start in progress.track(
      starts, f'Decoding {len(indices)} images', images_per_item=size
  ):
    names, grids = zip(
        *codes.__getitems__(indices[start : start + size]), strict=True
    )
    yield names, tokenizer.decode(np.stack(grids))


def _file_name(name):
  """Returns a path for an image within a folder, whatever its name is."""
  name = ''.join(c if c.isprintable() else '_' for c in name)
  parts = [p for p in pathlib.PurePosixPath(name).parts if p not in ('/', '..')]
  path = pathlib.Path(*parts or ['_'])
  return path if path.suffix == '.png' else path.with_name(path.name + '.png')


def _png(image):
  buffer = io.BytesIO()
  grey = image.shape[-1] == 1
  Image.fromarray(image[..., 0] if grey else image).save(buffer, 'png')
  return buffer.getvalue()
