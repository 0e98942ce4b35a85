r"""The command line.

    python -m gmvq_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
    python -m gmvq_jax.main --mode=encode --workdir=runs/cifar10 \
        --input='cifar10:train[:90%]' --output=codes/train
"""


from absl import flags
from ml_collections import config_flags

from gmvq_jax import commands
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.training import command_line

_DISTRIBUTED = flags.DEFINE_boolean(
    'distributed', False, 'This is one of several processes; launchers set it.'
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    list(commands.MODES),
    '; '.join(f'{name}: {mode.help}' for name, mode in commands.MODES.items()),
)
_OPTIONS = (
    config_flags.DEFINE_config_file(
        'config',
        help_string='A file, or the name of one of configs/, with :METHOD if it'
        ' has several. Its fields are set with --config.FIELD=VALUE, after it.',
    ),
    flags.DEFINE_string(
        'workdir',
        '',
        'The directory of the run; made if there is none. For all that only'
        ' uses a model it may be an exported tokenizer.',
    ),
    flags.DEFINE_string(
        'input',
        '',
        'encode, reconstruct, bound and sample: folder:PATH, array:PATH.npy,'
        ' array:PATH.npz:ARRAY or DATASET:SPLIT. decode: what encode wrote.',
    ),
    flags.DEFINE_string(
        'output',
        '',
        'encode: a folder, or a .npz for a small set. decode: a folder, or a'
        ' .png for a contact sheet. reconstruct: a .html. export and bound: a'
        ' folder. sample: a .png.',
    ),
    flags.DEFINE_boolean(
        'packed', False, 'encode: log2(C) bits a code instead of whole bytes.'
    ),
    flags.DEFINE_integer(
        'limit',
        0,
        'decode, reconstruct and sample: only so many images, the first; 0: all'
        ' in a folder, 256 on a sheet (64 of samples), 18 on a page.',
        lower_bound=0,
    ),
    *(
        flags.DEFINE_integer(
            name,
            None,
            f'Of --input: as data.{name}; by default as in training.',
            lower_bound=0,
        )
        for name in ('crop', 'size')
    ),
    flags.DEFINE_integer(
        'samples', 0, 'bound: of each posterior; 0: 1,000.', lower_bound=0
    ),
    flags.DEFINE_string(
        'observation_variance',
        '',
        'bound: of pixels on [0, 1], one or several; by default as the loss.',
    ),
    flags.DEFINE_float(
        'latent_variance',
        None,
        'bound and sample: around a codeword; by default as the loss.',
    ),
    flags.DEFINE_integer('seed', 0, 'bound and sample: of what is drawn.'),
    flags.DEFINE_string(
        'topology',
        '',
        'plan: chips of a TPU slice, such as v5e:4x4, or nodes and cards, such'
        ' as h100:1x8.',
    ),
)


def main(argv: list[str]) -> None:
  """Dispatches to the mode."""
  if len(argv) > 1:
    raise errors.UserError(f'{argv[1]!r}: unexpected; flags begin with --')
  options = commands.Options(**{flag.name: flag.value for flag in _OPTIONS})
  commands.check(_MODE.value, options)
  if _DISTRIBUTED.value:
    distributed.initialize()
  commands.MODES[_MODE.value].run(options)


if __name__ == '__main__':
  command_line.run(main)
