"""Injects the deliberate faults, one at a time, and runs the tests of each.

    python tests/faults/run.py                 all that are not known yet
    python tests/faults/run.py --only NAME     one of them, again

Each is injected in a copy of the checkout. It is caught if a default test of
its area fails. What was found is kept in build/faults.json and used again until
the package, the fault or its tests change, so an interrupted run continues.
Prints caught / total, and exits with 1 unless that is all of them.
"""

import argparse
import concurrent.futures
import difflib
import functools
import hashlib
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import faults

ROOT = pathlib.Path(__file__).resolve().parents[2]
_KNOWN = ROOT / 'build' / 'faults.json'
_TIMEOUT = 900  # Seconds; of the tests of one fault.


def main():
  """Runs the program."""
  parser = argparse.ArgumentParser(
      description=__doc__.partition('\n')[0],
  )
  parser.add_argument('--only', metavar='NAME', nargs='+', default=[])
  parser.add_argument('--jobs', type=int, default=2, help='at a time')
  arguments = parser.parse_args()
  by_name = {fault.name: fault for fault in faults.FAULTS}
  for name in arguments.only:
    if name not in by_name:
      close = difflib.get_close_matches(name, by_name) or sorted(by_name)
      parser.error(f'--only {name}: no such fault; such as {close[0]}')
  chosen = [by_name[name] for name in arguments.only] or faults.FAULTS
  known = json.loads(_KNOWN.read_text()) if _KNOWN.exists() else {}
  results = {}
  for fault in chosen:
    result = known.get(_key(fault))
    if result is not None and not arguments.only:
      results[fault.name] = result
  todo = [fault for fault in chosen if fault.name not in results]
  with tempfile.TemporaryDirectory() as folder:
    for fault, result in _run_all(todo, pathlib.Path(folder), arguments.jobs):
      results[fault.name] = known[_key(fault)] = result
      _KNOWN.parent.mkdir(exist_ok=True)
      _KNOWN.write_text(json.dumps(known, indent=1))
      print(
          f'[{len(results)}/{len(chosen)}] {result["outcome"]:7}'
          f' {result["seconds"]:4.0f} s  {fault.name}: {result["evidence"]}',
          flush=True,
      )
  missed = [n for n, r in results.items() if r['outcome'] != 'caught']
  for name in missed:
    print(f'{results[name]["outcome"]}: {name}: {by_name[name].promise}')
  print(f'{len(results) - len(missed)} / {len(results)} caught')
  return 1 if missed else 0


def locate(fault):
  """Returns the one file of the package that holds the text of a fault."""
  found = [
      path
      for path, text in _sources().items()
      for _ in range(text.count(fault.find))
  ]
  if len(found) != 1:
    raise ValueError(
        f'{fault.name}: its text must stand in the package once, not'
        f' {len(found)} times: {fault.find!r}'
    )
  return found[0].relative_to(ROOT)


def locate_test(name):
  """Returns the path of a test file, which may be in any folder of tests."""
  (found,) = (ROOT / 'tests').rglob(name)
  return found.relative_to(ROOT)


@functools.cache
def _sources():
  return {path: path.read_text() for path in sorted(_files('gmvq_jax'))}


def _key(fault):
  """Returns a digest of all that the outcome of a fault depends on."""
  helpers = [p for p in _files('tests') if not p.name.startswith('test_')]
  tests = [ROOT / locate_test(name) for name in fault.tests]
  digest = hashlib.sha256(repr(fault).encode())
  package = [*_files('gmvq_jax'), *_files('configs')]
  for path in sorted({*package, *helpers, *tests}):
    if path.parent != ROOT / 'tests' / 'faults':
      digest.update(path.read_bytes())
  return digest.hexdigest()


def _files(folder):
  return list((ROOT / folder).rglob('*.py'))


def _run_all(todo, folder, jobs):
  """Yields each fault with what came of it, as they end."""
  copies = queue.SimpleQueue()
  lock = threading.Lock()

  def run(fault):
    with lock:
      copy = folder / str(time.monotonic_ns()) if copies.empty() else None
      copy = copy or copies.get()
    if not copy.exists():
      _copy_checkout(copy)
    result = _run(fault, copy)
    copies.put(copy)
    return result

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    futures = {pool.submit(run, fault): fault for fault in todo}
    for future in concurrent.futures.as_completed(futures):
      yield futures[future], future.result()


def _copy_checkout(copy):
  """Copies all files that git does not ignore."""
  listed = subprocess.run(
      ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
      cwd=ROOT,
      capture_output=True,
      check=True,
      text=True,
  ).stdout
  for name in filter(None, listed.split('\0')):
    target = copy / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if (ROOT / name).exists():
      shutil.copy2(ROOT / name, target, follow_symlinks=False)


def _run(fault, copy):
  """Returns the outcome of the tests of a fault: caught, missed or broken."""
  path = copy / locate(fault)
  whole = path.read_text()
  tests = map(str, map(locate_test, fault.tests))
  command = [sys.executable, '-m', 'pytest', '-q', '-x', '-n', '0', *tests]
  start = time.monotonic()
  path.write_text(whole.replace(fault.find, fault.put))
  try:
    ran = subprocess.run(
        command,
        cwd=copy,
        env=os.environ | {'PYTHONPATH': str(copy)},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    code, lines = ran.returncode, ran.stdout.splitlines()
  except subprocess.TimeoutExpired:
    code, lines = -1, [f'no end after {_TIMEOUT} s']
  finally:
    path.write_text(whole)
  # 1: a test failed. Others: nothing could be run, as after a syntax error.
  outcome = {0: 'missed', 1: 'caught'}.get(code, 'broken')
  failed = [line for line in lines if line.startswith(('FAILED', 'ERROR'))]
  return {
      'outcome': outcome,
      'evidence': (failed or lines[-1:] or [''])[0][:200],
      'seconds': round(time.monotonic() - start, 1),
  }


if __name__ == '__main__':
  sys.exit(main())
