"""What the command line can do: a function for each `--mode`."""

from collections.abc import Callable
import contextlib
import json
import pathlib
from typing import Any
from typing import NamedTuple

from gmvq_jax.experiments import log_likelihood
from gmvq_jax.experiments import sampling
from gmvq_jax.planning import plan as plan_lib
from gmvq_jax.runtime import distributed
from gmvq_jax.runtime import errors
from gmvq_jax.tokenizer import code_files
from gmvq_jax.tokenizer import decode
from gmvq_jax.tokenizer import encode
from gmvq_jax.tokenizer import export as export_lib
from gmvq_jax.tokenizer import tokenizer as tokenizer_lib
from gmvq_jax.training import summary as summary_lib
from gmvq_jax.training import trainer


class Options(NamedTuple):
  """The flags of the command line; see `main.py`."""

  config: Any
  workdir: str
  input: str
  output: str
  packed: bool
  limit: int
  crop: int | None
  size: int | None
  samples: int = 0
  observation_variance: str = ''
  latent_variance: float | None = None
  seed: int = 0
  topology: str = ''


class Mode(NamedTuple):
  """Something to do.

  Attributes:
    run: does it.
    help: what it is, for the user.
    needs: options that must be given.
    takes: others that may be.
  """

  run: Callable[[Options], None]
  help: str
  needs: tuple[str, ...]
  takes: tuple[str, ...] = ()


def check(name: str, options: Options) -> None:
  """Checks that a mode is given what it needs, and nothing else.

  Raises:
    errors.UserError: if it is not.
  """
  mode = MODES[name]
  for option in mode.needs:
    if not getattr(options, option):
      raise errors.UserError(f'--{option} is missing; {_MISSING[option]}')
  for option, value in options._asdict().items():
    known = (*mode.needs, *mode.takes)
    if option not in known and value not in (None, '', False, 0):
      given = '' if option == 'config' else f'={value}'
      raise errors.UserError(
          f'--{option}{given}: is not for --mode={name}, which takes'
          f' {", ".join(f"--{x}" for x in known)}'
      )


def _train(options):
  summary = trainer.run(options.config, options.workdir)
  if summary is not None:
    _print(summary)
    _print_report(pathlib.Path(options.workdir).expanduser().resolve())


def _evaluate(options):
  _print(summary_lib.evaluate_workdir(options.workdir))


def _report(options):
  _print_report(summary_lib.report_workdir(options.workdir).parent)


def _encode(options):
  with _of_flags():
    tokenizer, images = _tokenizer_and_images(options)
    summary = encode.encode(
        tokenizer, images, options.output, packed=options.packed
    )
  _print(summary)


def _decode(options):
  tokenizer = tokenizer_lib.Tokenizer.load(options.workdir)
  codes = code_files.open(options.input)
  if distributed.is_first():
    _print(
        decode.decode(tokenizer, codes, options.output, limit=options.limit)
    )
  distributed.wait_for_all('decoded')


def _reconstruct(options):
  decode.check_page(options.output)
  with _of_flags():
    tokenizer, images = _tokenizer_and_images(options)
  if distributed.is_first():
    _print(
        decode.reconstruct(
            tokenizer, images, options.output, limit=options.limit
        )
    )
  distributed.wait_for_all('reconstructed')


def _export(options):
  _print(export_lib.export(options.workdir, options.output))


def _bound(options):
  with _of_flags():
    tokenizer, images = _tokenizer_and_images(options)
  variances = log_likelihood.variances_of(
      tokenizer, options.observation_variance, options.latent_variance
  )
  _print(
      distributed.from_first(
          lambda: log_likelihood.bound(
              tokenizer,
              images,
              variances,
              options.output,
              num_samples=options.samples or 1000,
              seed=options.seed,
          )
      )
  )


def _sample(options):
  tokenizer, images = tokenizer_lib.Tokenizer.load(options.workdir), None
  variance = sampling.latent_variance_of(tokenizer, options.latent_variance)
  if options.input:
    with _of_flags():
      _, images = _tokenizer_and_images(options)
  _print(
      distributed.from_first(
          lambda: sampling.sample(
              tokenizer,
              variance,
              options.output,
              images=images,
              count=options.limit,
              seed=options.seed,
          )
      )
  )


def _tokenizer_and_images(options):
  tokenizer = tokenizer_lib.Tokenizer.load(options.workdir)
  images = encode.load_images(
      tokenizer, options.input, crop=options.crop, size=options.size
  )
  return tokenizer, images


@contextlib.contextmanager
def _of_flags():
  """Has what loads images speak of this mode's flags, not of a run's fields."""
  try:
    yield
  except errors.UserError as error:
    line = str(error)
    for field, flag in _FIELDS.items():
      line = line.replace(field, flag)
    raise errors.UserError(line) from error


def _plan(options):
  plan_lib.plan(options.config, options.topology, options.workdir)


def _print(summary):
  if distributed.is_first():
    print(json.dumps(summary, indent=2, sort_keys=True))


def _print_report(path):
  report = path / 'report.html'
  if distributed.is_first() and report.exists():
    print(f'Report: {report}')


_FIELDS = {
    'data.name=': '--input=',
    '--config.data.dir or TFDS_DATA_DIR': 'TFDS_DATA_DIR',
    '--config.data.': '--',
    'config.data.': '--',
}
_MISSING = {
    'config': 'give a file or a name, such as --config=cifar10',
    'workdir': 'give a directory for the run',
    'input': 'say what is to be read; see --help',
    'output': 'say what is to be written; see --help',
    'topology': 'give devices, such as v5e:4x4 or h100:1x8',
}
_IMAGES = ('workdir', 'input', 'output')

MODES = {
    'train': Mode(
        _train,
        'start a run, or continue the one in --workdir',
        ('config', 'workdir'),
    ),
    'evaluate': Mode(
        _evaluate,
        'print the test metrics of the best checkpoint in --workdir',
        ('workdir',),
        ('config',),
    ),
    'report': Mode(
        _report, 'write its report.html anew', ('workdir',), ('config',)
    ),
    'encode': Mode(
        _encode,
        'write the codes of the images in --input',
        _IMAGES,
        ('packed', 'crop', 'size'),
    ),
    'decode': Mode(
        _decode, 'write the images of the codes in --input', _IMAGES, ('limit',)
    ),
    'reconstruct': Mode(
        _reconstruct,
        'write a page of images beside what is left of them',
        _IMAGES,
        ('limit', 'crop', 'size'),
    ),
    'export': Mode(
        _export,
        'write the tokenizer in a form that needs only jax',
        ('workdir', 'output'),
    ),
    'bound': Mode(
        _bound,
        'write bounds on the log-density of the images in --input',
        _IMAGES,
        (
            'crop', 'size', 'samples', 'observation_variance',
            'latent_variance', 'seed',
        ),
    ),
    'sample': Mode(
        _sample,
        'write images of the generative model, with codes drawn uniformly, or'
        ' as often as in --input',
        ('workdir', 'output'),
        ('input', 'crop', 'size', 'limit', 'latent_variance', 'seed'),
    ),
    'plan': Mode(
        _plan,
        'compile the programs of --config for the devices of --topology, which'
        ' need not be here, and say what they take',
        ('config', 'topology', 'workdir'),
    ),
}  # fmt: skip
