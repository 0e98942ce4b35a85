"""Executes the notebooks, and keeps what they show.

    python docs/notebooks/execute.py [collapse tokenizer]

Each runs in a temporary folder; the notebook comes back with its outputs, and
with it the picture and the numbers that it writes.
"""

import os
import pathlib
import shutil
import sys
import tempfile

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
NAMES = ('collapse', 'tokenizer')
# What a notebook leaves besides itself, from the root of the repository.
WRITTEN = {
    'collapse': ('docs/collapse.gif', 'results/collapse.json'),
    'tokenizer': (),
}


def execute(
    name: str, root: pathlib.Path, **environment: str
) -> nbformat.NotebookNode:
  """Returns a notebook with its outputs.

  Args:
    name: one of `NAMES`.
    root: where the notebook takes the root of the repository to be; what it
      writes is left there.
    **environment: variables for the kernel.

  Raises:
    nbclient.exceptions.CellExecutionError: when a cell fails.
  """
  notebook = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
  folder = root / 'docs' / 'notebooks'
  folder.mkdir(parents=True, exist_ok=True)
  (root / 'results').mkdir(exist_ok=True)
  path = os.pathsep.join(
      filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])
  )
  # One device: the numbers are those of a laptop, whoever asks.
  given = {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': path} | environment
  nbclient.NotebookClient(
      notebook,
      kernel_name='python3',
      timeout=1200,
      record_timing=False,
      coalesce_streams=True,
      resources={'metadata': {'path': str(folder)}},
  ).execute(env=os.environ | given)
  notebook.metadata = {
      'kernelspec': notebook.metadata['kernelspec'],
      'language_info': {'name': 'python'},
  }
  return notebook


def main(names: list[str]) -> None:
  """Executes notebooks of these names, and saves them."""
  for name in names:
    with tempfile.TemporaryDirectory() as temporary:
      root = pathlib.Path(temporary)
      notebook = execute(name, root, JAX_PLATFORMS='cpu')
      nbformat.write(notebook, FOLDER / f'{name}.ipynb')
      for written in WRITTEN[name]:
        shutil.copy(root / written, ROOT / written)


if __name__ == '__main__':
  main(sys.argv[1:] or list(NAMES))
