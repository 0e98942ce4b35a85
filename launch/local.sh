#!/usr/bin/env bash
# Installs gmvq_jax if need be, and runs it on this machine.
#
#   launch/local.sh                 a first run: minutes on two cores, no data set
#   launch/local.sh --config=configs/cifar10.py --workdir=runs/cifar10
#
# Arguments are those of `python -m gmvq_jax.main`; see its --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
. launch/env.sh
use_environment "[quickstart]"
if [ $# -eq 0 ]; then
  set -- --config=configs/quickstart.py --workdir=runs/quickstart
fi
exec python -m gmvq_jax.main "$@"
