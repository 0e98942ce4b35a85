"""Codes to files of images, and pages of what is left of images."""

import json
import pathlib
from typing import Any

import numpy as np

from gmvq_jax.data import named_images
from gmvq_jax.nn import losses
from gmvq_jax.reporting import pages
from gmvq_jax.reporting import pictures
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.runtime import progress
from gmvq_jax.tokenizer import code_files
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib

_SHEET = 256
_ON_PAGE = 18
_SMALL = 96  # Pixels; wider images get the whole page.
_DECODED = 'decoded.json'


def decode(
    tokenizer: tokenizer_lib.Tokenizer,
    codes: code_files.Codes,
    output: str,
    *,
    limit: int = 0,
) -> dict[str, Any]:
  """Writes the images of codes: a PNG each, or one of all.

  Args:
    tokenizer: the one that made the codes.
    codes: of `code_files.open`.
    output: a folder, or `FILE.png` for a contact sheet.
    limit: how many images at most; 0: all of them, or 256 on a sheet.

  Returns:
    A summary: `output`, and how many `images` it holds of how many `codes`.

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
    count = min(count, limit or _SHEET)
    _decode_sheet(tokenizer, codes, output, count)
  else:
    _decode_folder(tokenizer, codes, output, count)
  return {'output': output, 'images': count, 'codes': len(codes)}


def reconstruct(
    tokenizer: tokenizer_lib.Tokenizer,
    loaded: named_images.NamedImages,
    output: str,
    *,
    limit: int = 0,
) -> dict[str, Any]:
  """Writes a page of images beside what is left of them.

  Args:
    tokenizer: it.
    loaded: of `encode.load_images`.
    output: the page, `FILE.html`.
    limit: how many of the first images; 0: 18.

  Returns:
    A summary: `output`, `images`, and of those `mse`, `psnr` and
    `bits_per_pixel`.

  Raises:
    errors.UserError: when the output cannot be written.
  """
  check_page(output)
  path = files.output_file(output)
  images = loaded.images[: limit or _ON_PAGE]
  codes = tokenizer.encode(images)
  decoded = tokenizer.decode(codes)
  errors_of = np.mean(np.square(decoded - images / 255), axis=(1, 2, 3))
  colours = pictures.code_colours(tokenizer.codebook)
  shown = [
      {
          'name': loaded.name(i),
          'psnr': losses.psnr(errors_of[i]),
          'picture': pictures.dissection(
              images[i], decoded[i], codes[i], colours
          ),
      }
      for i in range(len(images))
  ]
  mse = float(np.mean(errors_of))
  page = pages.template('reconstruct.html').render(
      name=loaded.source,
      tokenizer=tokenizer,
      quantizer=tokenizer.stored.config.quantizer.name,
      images=shown,
      count=len(loaded.images),
      grid=codes.shape[1:],
      different=len(np.unique(codes)),
      large=images.shape[2] > _SMALL,
      mse=mse,
      psnr=float(losses.psnr(mse)),
  )
  files.write_bytes(path, page.encode(errors='replace'))
  return {
      'output': output,
      'images': len(images),
      'mse': mse,
      'psnr': float(losses.psnr(mse)),
      'bits_per_pixel': tokenizer.bits_per_pixel,
  }


def check_page(output: str) -> None:
  """Raises a UserError unless an output can be a page."""
  if not output.endswith('.html'):
    raise errors.UserError(f'--output={output}: must be the name of a .html')


def _decode_sheet(tokenizer, codes, output, count):
  path = files.output_file(output)
  images = [
      pictures.to_uint8(image)
      for _, part in _decoded(tokenizer, codes, count)
      for image in part
  ]
  files.write_bytes(path, pictures.to_png(pictures.sheet(np.stack(images))))


def _decode_folder(tokenizer, codes, output, count):
  files.check_folder(output, 'FILE.png')
  path = files.create(output, 'output')
  described = json.loads(json.dumps(codes.description._asdict()))
  with files.lock(path):
    if files.read_json(path / _DECODED) != described:
      if any(not file.name.startswith('.') for file in path.iterdir()):
        raise errors.UserError(
            f'--output={output}: holds files that are not of these codes; give'
            ' a folder of its own'
        )
      files.write_json(path / _DECODED, described)
    for names, images in _decoded(tokenizer, codes, count):
      for name, image in zip(names, images, strict=True):
        file = path / _file_name(name)
        if not file.exists():
          file.parent.mkdir(parents=True, exist_ok=True)
          png = pictures.to_png(pictures.to_uint8(image))
          files.write_bytes(file, png)


def _decoded(tokenizer, codes, count):
  """Yields names and images, as many at a time as the devices take."""
  size = tokenizer.batch_size(*codes.description.image_shape[:2])
  for start in progress.track(
      range(0, count, size), f'Decoding {count} images', images_per_item=size
  ):
    names, grids = codes[start : min(start + size, count)]
    yield names, tokenizer.decode(grids)


def _file_name(name):
  """Returns a path for an image within a folder, whatever its name is."""
  name = ''.join(c if c.isprintable() else '_' for c in name)
  parts = [p for p in pathlib.PurePosixPath(name).parts if p not in ('/', '..')]
  path = pathlib.Path(*parts or ['_'])
  return path.with_name(path.name + '.png')  # Also x.png, for there may be x.
