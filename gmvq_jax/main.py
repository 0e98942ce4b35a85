r"""The command line.

    python -m gmvq_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
    python -m gmvq_jax.main --mode=evaluate --workdir=runs/cifar10
    python -m gmvq_jax.main --mode=encode --workdir=runs/cifar10 \
        --input='cifar10:train[:90%]' --output=codes/train
"""

from absl import flags
from ml_collections import config_flags

from gmvq_jax import command_line
from gmvq_jax import distributed
from gmvq_jax import errors
from gmvq_jax import modes

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    help_string='A file, or the name of one of configs/, with :METHOD if it has'
    ' several. Its fields are set with --config.FIELD=VALUE, after it.',
)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    '',
    'The directory of the run; made if there is none. For encode, decode and'
    ' reconstruct it may be an exported tokenizer.',
)
_DISTRIBUTED = flags.DEFINE_boolean(
    'distributed',
    False,
    'This is one process of several that make one run; launchers set it.',
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    list(modes.MODES),
    '; '.join(f'{name}: {mode.help}' for name, mode in modes.MODES.items()),
)
_INPUT = flags.DEFINE_string(
    'input',
    '',
    'encode and reconstruct: folder:PATH, array:PATH.npy, array:PATH.npz:ARRAY'
    ' or DATASET:SPLIT. decode: what encode wrote.',
)
_OUTPUT = flags.DEFINE_string(
    'output',
    '',
    'encode: a folder, or a .npz for a small set. decode: a folder, or a .png'
    ' for a contact sheet. reconstruct: a .html. export: a folder.',
)
_PACKED = flags.DEFINE_boolean(
    'packed', False, 'encode: store log2(C) bits a code instead of whole bytes.'
)
_LIMIT = flags.DEFINE_integer(
    'limit',
    0,
    'decode and reconstruct: only so many images, the first; 0: all in a'
    ' folder, 256 on a sheet, 18 on a page.',
    lower_bound=0,
)
_CROP = flags.DEFINE_integer(
    'crop',
    None,
    'encode and reconstruct: as data.crop; by default as in training.',
    lower_bound=0,
)
_SIZE = flags.DEFINE_integer(
    'size',
    None,
    'encode and reconstruct: as data.size; by default as in training.',
    lower_bound=0,
)


def main(argv: list[str]) -> None:
  """Dispatches to the mode."""
  if len(argv) > 1:
    raise errors.UserError(f'{argv[1]!r}: unexpected; flags begin with --')
  given = (_CONFIG, _WORKDIR, _INPUT, _OUTPUT, _PACKED, _LIMIT, _CROP, _SIZE)
  options = modes.Options(*(flag.value for flag in given))
  modes.check(_MODE.value, options)
  if _DISTRIBUTED.value:
    distributed.initialize()
  modes.MODES[_MODE.value].run(options)


if __name__ == '__main__':
  command_line.run(main)
