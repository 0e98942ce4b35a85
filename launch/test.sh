#!/usr/bin/env bash
# Installs gmvq_jax with what the tests need, and runs the linter, the type
# checker and the tests.
#
#   launch/test.sh            the default tests; five minutes on two cores
#   launch/test.sh --all      the slow ones too, all programs optimised as users'
#                             are, then launch/docs.sh and launch/matrix.sh;
#                             45 minutes
#   launch/test.sh --profile  and the seconds and programs of each file
#   launch/test.sh --shuffle=SEED
#                             the tests in a random order
#   launch/test.sh --faults   instead: injects deliberate faults, each of which
#                             the default tests must catch; 15 minutes on an
#                             idle machine, resumable
#
# Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
. launch/env.sh
use_environment "[quickstart,test]"
if [ "${1:-}" = --faults ]; then
  shift
  exec python tests/faults/run.py "$@"
fi
ruff check .
mypy
mypy --strict --follow-imports=silent gmvq_jax/ops gmvq_jax/quantizers
# The tests of a file share what they compile, so they stay in one process. If
# one crashes, pytest would wait for it for ever, were it started again.
python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0 \
  --durations 10 "$@"
if [[ " $* " == *' --all '* ]]; then
  launch/docs.sh
  launch/matrix.sh
fi
