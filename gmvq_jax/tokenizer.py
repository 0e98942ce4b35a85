"""A trained model as a tokenizer: images to grids of codes, and back.

The codes of an image depend on that image alone. Devices see images in units of
one fixed number for each size of image, padded where there are fewer, so the
same compiled program computes them whatever stands beside an image, and on
however many devices; matrix products and convolutions of a float32 network are
in float32 everywhere (no TF32, no bfloat16), and of codes that are equally
probable the lowest wins.

Shapes: images `[B, H, W, channels]`, codes `[B, h, w]`; `h = H / f` and `w = W
/ f` with `f = 2 ** num_downsamplings`.
"""

from collections import deque
from collections.abc import Sequence
import functools
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from gmvq_jax import autoencoder
from gmvq_jax import checkpoint
from gmvq_jax import config as config_lib
from gmvq_jax import distributed
from gmvq_jax import errors
from gmvq_jax import programs
from gmvq_jax import weights
from gmvq_jax import workdir
from gmvq_jax.data import pixels

# Pixels in a unit: what fills the caches of a CPU core, or an accelerator.
_UNIT_PIXELS = {'cpu': 2**14}
_ACCELERATOR_UNIT_PIXELS = 2**18
_IN_FLIGHT = 2
_UNIT = 'unit'

# Files of an exported tokenizer that say what it is; see `export.py`.
CONFIG_FILE = 'config.json'
WEIGHTS_FILE = 'weights.safetensors'

ImageLike = np.ndarray | jax.Array | Image.Image | str | os.PathLike


class Tokenizer:
  """Images to codes, and codes to images.

  Arrays come and go in the memory of the host; all devices of this process
  share the work.

  Attributes:
    config: of the run: network, quantizer, and how its images were made.
    model: the networks and the quantizer.
    tensors: all arrays, by the names of `weights.py`.
    image_shape: `(H, W, channels)` of the images it was trained on. Others may
      be of any size that the network can halve.
    num_codes: C.
    codebook: `[C, L]` float32, what the decoder gets for each code.
    hash: SHA-256 of the weights, the network and the quantizer, in hexadecimal.
      Codes belong to one tokenizer.
  """

  def __init__(
      self,
      config: ConfigDict,
      tensors: weights.Tensors,
      image_shape: tuple[int, int, int],
      *,
      where: object = 'weights',
  ):
    """Builds a tokenizer; see `load`.

    Args:
      config: one that `config.validate` passes.
      tensors: of `weights.of_model`.
      image_shape: see the attribute.
      where: the arrays are from, for the user.

    Raises:
      errors.UserError: when the arrays do not fit the configuration.
    """
    self.config = config
    self.image_shape = tuple(image_shape)
    self.model = _model(config, image_shape)
    with jax.enable_x64(False):
      like = programs.abstract_state(config, image_shape[-1]).variables
    variables = weights.to_variables(tensors, like, where)
    self.tensors = tensors
    self.num_codes = self.model.quantizer.num_codes
    self.codebook = tensors[weights.CODEBOOK]
    self.hash = weights.digest(tensors, _structure(config))
    self._mesh = distributed.local_mesh()
    self._variables = distributed.replicate(variables, self._mesh)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Tokenizer':
    """Loads a tokenizer.

    Args:
      path: the work directory of a run, whose best checkpoint is taken, or a
        folder that `export` wrote.

    Raises:
      errors.UserError: (a ValueError) when there is none, or it is damaged.
    """
    path = pathlib.Path(path).expanduser()
    exported = (path / WEIGHTS_FILE).exists()
    with jax.enable_x64(False):  # Whatever else the program does.
      return _load_exported(path) if exported else _load_workdir(path)

  @property
  def channels(self) -> int:
    """Of the images: 3, or 1 for grey."""
    return self.image_shape[-1]

  @property
  def factor(self) -> int:
    """Pixels along the side of a position."""
    return 2**self.config.network.num_downsamplings

  @property
  def bits_per_pixel(self) -> float:
    """Bits of codes of the fixed length log2(C), per pixel of an image."""
    return math.log2(self.num_codes) / self.factor**2

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Returns the shape `(h, w)` of the codes of images of a size.

    Raises:
      errors.UserError: when the network cannot halve that size.
    """
    factor = self.factor
    if height < 1 or width < 1 or height % factor or width % factor:
      raise errors.UserError(
          f'images of {height} x {width}: cannot be halved'
          f' {self.config.network.num_downsamplings} times; both must be'
          f' multiples of {factor}'
      )
    return height // factor, width // factor

  def batch_size(self, height: int, width: int) -> int:
    """Returns how many images of a size the devices take at a time."""
    return unit_size(height, width, jax.default_backend()) * self._mesh.size

  def encode(self, images: ImageLike | Sequence[ImageLike]) -> np.ndarray:
    """Returns the codes of images, `[B, h, w]` int32.

    Args:
      images: `[B, H, W, channels]` (or `[B, H, W]`, if grey), uint8 or floats
        in [0, 1]; or an image of PIL or the path of one, which make a batch of
        one; or a list of such, or of arrays `[H, W, channels]`, all of one
        size. Those of PIL are turned upright, and become grey or RGB as the
        tokenizer needs.

    Raises:
      errors.UserError: (a ValueError) for images that are none of these, and
        for a batch without any.
    """
    images = self._batch_of(images)
    self.grid(*images.shape[1:3])
    return self._in_units(
        self._encode, images, self.batch_size(*images.shape[1:3])
    )

  def decode(self, codes: np.ndarray | jax.Array) -> np.ndarray:
    """Returns the images of codes, float32 `[B, H, W, channels]` in [0, 1].

    Args:
      codes: `[B, h, w]` integers in [0, C), of a grid of any size.

    Raises:
      errors.UserError: (a ValueError) for anything else.
    """
    codes = np.asarray(codes)
    check_codes(codes, self.num_codes, self.grid(*self.image_shape[:2]))
    height, width = (self.factor * side for side in codes.shape[1:])
    return self._in_units(
        self._decode, codes.astype(np.int32), self.batch_size(height, width)
    )

  def reconstruct(
      self, images: ImageLike | Sequence[ImageLike]
  ) -> np.ndarray:
    """Returns what is left of images: `decode(encode(images))`."""
    return self.decode(self.encode(images))

  def encode_unit(
      self, variables: autoencoder.Variables, images: jax.Array
  ) -> jax.Array:
    """The pure function of `encode`, of images that are computed at once."""
    return self._precisely(self._codes_of, variables, images)

  def decode_unit(
      self, variables: autoencoder.Variables, codes: jax.Array
  ) -> jax.Array:
    """The pure function of `decode`, of codes that are computed at once."""
    return self._precisely(self._images_of, variables, codes)

  @property
  def variables(self) -> autoencoder.Variables:
    """The arrays of the model, on all devices of this process."""
    return self._variables

  def _codes_of(self, variables, images):
    if images.dtype == jnp.uint8:
      images = autoencoder.to_unit(images)
    h, _ = self.model.encode(variables, images)

    def codes_of(h):
      quantized, _ = self.model.quantize(
          variables, h, axis_name=_UNIT
      )
      return quantized.codes

    # Without an axis the tiles would depend on how many devices there are.
    return jax.vmap(codes_of, axis_name=_UNIT)(h[None])[0]

  def _images_of(self, variables, codes):
    quantizer = self.model.quantizer
    z = quantizer.embed(
        variables.params['quantizer'], variables.quantizer_state, codes
    )
    images, _ = self.model.decode(variables, z)
    return images

  def _precisely(self, function, *args):
    # The default of accelerators is less, also for float32.
    with jax.default_matmul_precision('highest'):
      return function(*args)

  @functools.cached_property
  def _encode(self):
    return self._program(self.encode_unit)

  @functools.cached_property
  def _decode(self):
    return self._program(self.decode_unit)

  def _program(self, function):
    """Compiles a function of a unit for all devices, each with its own."""
    batched = PartitionSpec(distributed.AXIS)
    return jax.jit(
        jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=(PartitionSpec(), batched),
            out_specs=batched,
            check_vma=False,  # It takes the axis of a unit for one of devices.
        )
    )

  def _in_units(self, program, batch, size):
    """Computes a program of as many images as there are."""
    running, done = deque(), []
    for start in range(0, len(batch), size):
      part = batch[start : start + size]
      missing = [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1)
      part = distributed.divide(np.pad(part, missing), self._mesh)
      with jax.enable_x64(False):
        running.append(program(self._variables, part))
      if len(running) > _IN_FLIGHT:
        done.append(np.asarray(running.popleft()))
    done += map(np.asarray, running)
    return np.concatenate(done)[: len(batch)]

  def _batch_of(self, images):
    """Returns images as `[B, H, W, channels]`, uint8 or float32."""
    if isinstance(images, (Image.Image, str, os.PathLike)):
      images = [images]
    if isinstance(images, (list, tuple)):
      images = _stack([self._array_of(image) for image in images])
    images = np.asarray(images)
    if images.ndim == 3 and self.channels == 1:
      images = images[..., None]
    shape = images.shape
    if len(shape) != 4 or shape[3] != self.channels:
      raise errors.UserError(
          f'images of shape {shape}: must be [B, H, W, {self.channels}]'
      )
    if not len(images):
      raise errors.UserError(f'images of shape {shape}: there must be one')
    if images.dtype == np.uint8:
      return images
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise errors.UserError(
          f'images of type {images.dtype}: must be uint8, or floats in [0, 1]'
      )
    images = images.astype(np.float32)
    # NaNs compare as false.
    if not (images.min() >= 0 and images.max() <= 1):
      raise errors.UserError(
          f'images from {images.min():g} to {images.max():g}: floats must be in'
          ' [0, 1]; uint8 may be up to 255'
      )
    return images

  def _array_of(self, image):
    if isinstance(image, Image.Image):
      return _pixels(image, self.channels, 'an image')
    if isinstance(image, (str, os.PathLike)):
      try:
        with Image.open(image) as opened:
          return _pixels(opened, self.channels, image)
      except OSError as error:
        raise errors.UserError(
            f'{image}: cannot be read as an image ({error})'
        ) from error
    return np.asarray(image)


def unit_size(height: int, width: int, platform: str) -> int:
  """Returns how many images of a size a device takes at a time."""
  pixels_of_unit = _UNIT_PIXELS.get(platform, _ACCELERATOR_UNIT_PIXELS)
  return max(pixels_of_unit // (height * width), 1)


def check_codes(
    codes: np.ndarray, num_codes: int, example: tuple[int, int]
) -> None:
  """Checks that codes are some, `[B, h, w]` integers in `[0, num_codes)`.

  Args:
    codes: an array.
    num_codes: C.
    example: a grid `(h, w)` to show the user.

  Raises:
    errors.UserError: if they are not.
  """
  if codes.ndim != 3 or not codes.size:
    h, w = example
    raise errors.UserError(
        f'codes of shape {codes.shape}: must be [B, h, w], such as'
        f' [B, {h}, {w}], and not empty'
    )
  if not np.issubdtype(codes.dtype, np.integer):
    raise errors.UserError(f'codes of type {codes.dtype}: must be integers')
  if codes.min() < 0 or codes.max() >= num_codes:
    raise errors.UserError(
        f'codes from {codes.min()} to {codes.max()}: must be from 0 to'
        f' {num_codes - 1}'
    )


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns what `config.json` of an exported tokenizer holds, less metrics."""
  config = tokenizer.config
  return {
      'tokenizer': tokenizer.hash,
      'num_codes': tokenizer.num_codes,
      'image_shape': list(tokenizer.image_shape),
      'grid': list(tokenizer.grid(*tokenizer.image_shape[:2])),
      'data': {'crop': config.data.crop, 'size': config.data.size},
      **_structure(config),
  }


def _structure(config):
  """Returns what the meaning of weights depends on, as JSON."""
  fields = config.to_dict()
  fields['quantizer'] = {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in fields['quantizer'].items()
  }
  return {name: fields[name] for name in ('network', 'quantizer')}


def _model(config, image_shape):
  numbers = programs.numbers_of(config)
  return programs.build_model(config, numbers, image_shape[-1])


def _load_workdir(path):
  if not path.is_dir():
    raise errors.UserError(
        f'{path}: there is no such directory; give the work directory of a run,'
        ' or an exported tokenizer'
    )
  config = workdir.read_config(path)
  config_lib.validate(config)
  checkpoints = checkpoint.Checkpoints(path)
  image_shape = checkpoints.some_place()['origin']['image_shape']
  sharding = distributed.replicated(distributed.data_mesh())
  like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      programs.abstract_state(config, image_shape[-1]),
  )
  state, place, _ = checkpoints.restore_best(like)
  if place['origin']['config'] != config_lib.digest(config):
    raise errors.UserError(
        f'{path / "config.json"}: is not the configuration that the checkpoints'
        ' beside it come from; put that back'
    )
  tensors = weights.of_model(
      _model(config, image_shape), jax.device_get(state.eval_variables)
  )
  return Tokenizer(config, tensors, image_shape, where=path)


def _load_exported(path):
  file = path / CONFIG_FILE
  described = workdir.read_json(file)
  if described is None:
    raise errors.UserError(f'{file}: is missing; export the tokenizer again')
  try:
    config = config_lib.default_config()
    # Which data there were does not matter to a tokenizer.
    config.data.update(described['data'], name=str(path))
    for name in ('network', 'quantizer'):
      config[name] = ConfigDict(described[name])
    image_shape = tuple(map(int, described['image_shape']))
    _, _, channels = image_shape
    known = described['tokenizer']
  except Exception as error:  # Whatever it holds.
    raise errors.UserError(
        f'{file}: is not that of an exported tokenizer'
        f' ({type(error).__name__}: {error})'
    ) from error
  config.data.channels = channels
  config_lib.validate(config)
  tensors = weights.read(path / WEIGHTS_FILE)
  tokenizer = Tokenizer(
      config, tensors, image_shape, where=path / WEIGHTS_FILE
  )
  if tokenizer.hash != known:
    raise errors.UserError(
        f'{path}: is damaged: {WEIGHTS_FILE} or {CONFIG_FILE} has changed since'
        ' it was exported; export the tokenizer again'
    )
  return tokenizer


def _stack(arrays):
  shapes = {array.shape for array in arrays}
  if len(shapes) > 1:
    one, other, *_ = sorted(shapes)
    raise errors.UserError(
        f'images of shapes {one} and {other}: those of a batch must be of one'
    )
  return np.stack(arrays) if arrays else np.zeros((0, 0, 0, 0), np.uint8)


def _pixels(image, channels, name):
  try:
    return pixels.from_image(image, pixels.Shape(channels=channels))
  except pixels.UnusableError as error:
    raise errors.UserError(f'{name}: {error}') from error
