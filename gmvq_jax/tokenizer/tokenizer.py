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
from collections.abc import Callable
from collections.abc import Sequence
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec
import numpy as np

from gmvq_jax.nn import autoencoder
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.runtime import files
from gmvq_jax.tokenizer import inputs
from gmvq_jax.tokenizer import saved_model
from gmvq_jax.tokenizer import weights
from gmvq_jax.training import build

# Pixels in a unit: what fills the caches of a CPU core, or an accelerator.
_UNIT_PIXELS = {'cpu': 2**14}
_ACCELERATOR_UNIT_PIXELS = 2**18
_IN_FLIGHT = 2


class Tokenizer:
  """Images to codes, and codes to images.

  Arrays come and go in the memory of the host; all devices of this process
  share the work. Several threads may use it at a time.

  Attributes:
    stored: what it was made from: configuration, arrays and image shape.
    model: the networks and the quantizer.
    variables: the arrays of the model, on all devices of this process.
    num_codes: C.
    codebook: `[C, L]` float32, what the decoder gets for each code.
    hash: SHA-256 of the weights, the network and the quantizer, in hexadecimal.
      Codes belong to one tokenizer.
  """

  def __init__(self, stored: saved_model.Stored):
    """Builds a tokenizer; see `load`.

    Raises:
      errors.UserError: when the arrays do not fit the configuration.
    """
    config = stored.config
    numbers = build.numbers_of(config)
    channels = stored.image_shape[-1]
    self.stored = stored
    self.model = build.build_model(config, numbers, channels)
    self.num_codes = self.model.quantizer.num_codes
    self.codebook = stored.tensors[weights.CODEBOOK]
    self.hash = stored.hash
    self._mesh = distributed.local_mesh()
    with jax.enable_x64(False):
      like = build.abstract_state(config, channels).variables
      variables = weights.to_variables(stored.tensors, like, 'weights')
      self.variables = distributed.replicate(variables, self._mesh)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Tokenizer':
    """Loads a tokenizer.

    Args:
      path: the work directory of a run, whose best checkpoint is taken, or a
        folder that `export` wrote.

    Raises:
      errors.UserError: (a ValueError) when there is none, or it is damaged.
    """
    with jax.enable_x64(False):  # Whatever else the program does.
      return cls(saved_model.read(files.expand(path)))

  def __repr__(self) -> str:
    name = self.stored.config.quantizer.name
    return f'Tokenizer({name}, {self.num_codes} codes, {self.hash[:12]})'

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """`(H, W, channels)` of the images it was trained on.

    Others may be of any size that the network can halve.
    """
    return self.stored.image_shape

  @property
  def channels(self) -> int:
    """Of the images: 3, or 1 for grey."""
    return self.image_shape[-1]

  @property
  def factor(self) -> int:
    """Pixels along the side of a position."""
    return 2**self.stored.config.network.num_downsamplings

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
          f' {self.stored.config.network.num_downsamplings} times; both must be'
          f' multiples of {factor}: crop or resize them (--size=SIDE)'
      )
    return height // factor, width // factor

  def batch_size(self, height: int, width: int) -> int:
    """Returns how many images of a size the devices take at a time."""
    platform = self._mesh.devices.flat[0].platform
    return unit_size(height, width, platform) * self._mesh.size

  def encode(
      self, images: inputs.Image | Sequence[inputs.Image]
  ) -> np.ndarray:
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
    images = inputs.of(images, self.channels)
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
      self, images: inputs.Image | Sequence[inputs.Image]
  ) -> np.ndarray:
    """Returns what is left of images: `decode(encode(images))`."""
    return self.decode(self.encode(images))

  def encode_unit(
      self, variables: autoencoder.Variables, images: jax.Array
  ) -> jax.Array:
    """The pure function of `encode`, of images that are computed at once."""
    return codes_of(self.model, variables, images)

  def decode_unit(
      self, variables: autoencoder.Variables, codes: jax.Array
  ) -> jax.Array:
    """The pure function of `decode`, of codes that are computed at once."""
    return images_of(self.model, variables, codes)

  @functools.cached_property
  def _encode(self):
    return of_each_device(self.encode_unit, self._mesh)

  @functools.cached_property
  def _decode(self):
    return of_each_device(self.decode_unit, self._mesh)

  def _in_units(self, program, batch, size):
    """Computes a program of as many images as there are."""
    running, done = deque(), []
    for start in range(0, len(batch), size):
      part = batch[start : start + size]
      part, _ = distributed.pad(part, size)
      part = distributed.divide(part, self._mesh)
      # Whatever else the program does.
      with jax.enable_x64(False), jax.set_mesh(self._mesh):
        running.append(program(self.variables, part))
      if len(running) > _IN_FLIGHT:
        done.append(np.asarray(running.popleft()))
    done += map(np.asarray, running)
    return np.concatenate(done)[: len(batch)]


def codes_of(
    model: autoencoder.Autoencoder,
    variables: autoencoder.Variables,
    images: jax.Array,
) -> jax.Array:
  """Returns the codes `[B, h, w]` of images `[B, H, W, channels]`.

  Args:
    model: networks and quantizer.
    variables: of the model.
    images: uint8, or floats in [0, 1].
  """
  # The default of accelerators is less, also for float32.
  with jax.default_matmul_precision('highest'):
    if images.dtype == jnp.uint8:
      images = autoencoder.to_unit(images)
    h, _ = model.encode(variables, images)
    quantized, _ = model.quantize(variables, h)
    return quantized.codes


def images_of(
    model: autoencoder.Autoencoder,
    variables: autoencoder.Variables,
    codes: jax.Array,
) -> jax.Array:
  """Returns the images of codes; see `codes_of`."""
  with jax.default_matmul_precision('highest'):
    z = model.quantizer.embed(
        variables.params['quantizer'], variables.quantizer_state, codes
    )
    images, _ = model.decode(variables, z)
    return images


def of_each_device(
    function: Callable[[Any, jax.Array], jax.Array], mesh: Mesh
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns a jitted function of which each device computes its own part.

  Args:
    function: of variables and a batch.
    mesh: of `distributed.mesh_of`.
  """
  batched = PartitionSpec(distributed.AXIS)
  return jax.jit(
      jax.shard_map(
          function,
          mesh=mesh,
          in_specs=(PartitionSpec(), batched),
          out_specs=batched,
      )
  )


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
