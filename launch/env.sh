# shellcheck shell=bash
# Sourced by the launchers: `use_environment EXTRAS` makes a virtual environment
# if none is active, installs the package with its extras, and activates it.

use_environment() {
  local extras="$1" python="${PYTHON:-python3}"
  if [ -z "${VIRTUAL_ENV:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $python is older than 3.11; set PYTHON to a newer one" >&2
        return 2
      }
      echo "Making .venv with $("$python" --version)."
      "$python" -m venv .venv
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
  fi
  local stamp="$VIRTUAL_ENV/.gmvq_jax${extras}"
  if [ ! "$stamp" -nt setup.cfg ]; then
    echo "Installing gmvq_jax${extras} into $VIRTUAL_ENV."
    python -m pip install --quiet --disable-pip-version-check -e ".${extras}"
    touch "$stamp"
  fi
}
