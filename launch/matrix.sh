#!/usr/bin/env bash
# Builds the wheel and tests it on every Python that is installed, with the
# newest versions of what it needs, and on the oldest with the lowest.
#
#   launch/matrix.sh                all of them
#   launch/matrix.sh 3.13 lowest    these
#
# 3.11, 3.12, 3.13    this Python and the newest versions; left out if it is
#                     neither on the PATH nor installed by pyenv
# lowest              Python 3.11 and exactly the lower bounds of setup.cfg
# --keep              keep the environments, in .venvs/, also where all is well
# --help              print this
#
# Nothing of the checkout is tested but its wheel. The tests are those of the
# library, of files that are written and of the packaging.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TESTS=(ops/test_albo.py ops/test_clustering.py ops/test_posterior.py
  quantizers/test_binary.py quantizers/test_composition.py
  quantizers/test_diveq.py quantizers/test_quantizers.py
  quantizers/test_rotation.py quantizers/test_simvq.py
  nn/test_autoencoder.py nn/test_vector_quantizer.py
  tokenizer/test_code_files.py tokenizer/test_export.py
  data/test_photographs.py test_packaging.py)
# Long, and the same on every Python.
SKIPPED='not shard_map and not pmap and not any_number_of_devices'

main() {
  local names=() keep='' argument name
  for argument in "$@"; do
    case "$argument" in
      3.11 | 3.12 | 3.13 | lowest) names+=("$argument") ;;
      --keep) keep=yes ;;
      --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' launch/matrix.sh
        exit 0
        ;;
      *)
        echo "error: $argument: must be 3.11, 3.12, 3.13 or lowest" >&2
        exit 2
        ;;
    esac
  done
  # What is imported must be installed: no Python looks where it is started.
  export PYTHONSAFEPATH=1
  unset PYTHONPATH
  # Not `try ... ||`, under which bash goes on after what fails inside.
  for name in "${names[@]}"; do
    try "$name"
  done
  [ ${#names[@]} -eq 0 ] || return 0
  for name in 3.11 3.12 3.13 lowest; do
    if find_python "$name" > /dev/null; then
      try "$name"
    else
      echo "$name: left out; there is no such Python."
    fi
  done
}

# Makes an environment, installs the wheel there and tests it.
try() {
  local name=$1 environment=.venvs/$1 python install
  python=$(find_python "$name") || {
    echo "error: $name: there is no such Python" >&2
    exit 2
  }
  echo "$name: $("$python" --version), in $environment."
  "$python" -m venv --clear "$environment"
  python=$environment/bin/python
  install=("$python" -m pip --disable-pip-version-check --quiet)
  # setuptools would put into the wheel what it built before and is gone.
  rm -rf build/lib build/wheel
  "${install[@]}" wheel --no-deps --wheel-dir build/wheel .
  install+=(install "$(echo build/wheel/*.whl)[quickstart,test]")
  if [ "$name" = lowest ]; then
    # Lines such as `  jax>=0.10`.
    sed -n 's/^  \([[:alnum:]_-]*\)>=/\1==/p' setup.cfg > build/lowest.txt
    install+=(--constraint build/lowest.txt)
  fi
  "${install[@]}"
  "$python" -m pytest -q -n 2 -k "$SKIPPED" "${TESTS[@]/#/tests/}"
  [ -n "$keep" ] || rm -rf "$environment"
}

# Prints the command that is Python 3.x, if there is one.
find_python() {
  local version=${1/lowest/3.11} python
  for python in "python$version" \
    "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
    # pyenv's shim is there for a Python that is not.
    if "$python" -c '' 2> /dev/null; then
      echo "$python"
      return
    fi
  done
  return 1
}

main "$@"
