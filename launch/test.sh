#!/usr/bin/env bash
# Installs gmvq_jax with what the tests need, and runs ruff and the tests.
#
#   launch/test.sh          the tests; minutes on two cores
#   launch/test.sh --all    the slow ones too, then launch/docs.sh and
#                           launch/matrix.sh
#
# Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
. launch/env.sh
use_environment "[quickstart,test]"
ruff check .
python -m pytest -q -n 2 "$@"
if [[ " $* " == *' --all '* ]]; then
  launch/docs.sh
  launch/matrix.sh
fi
