#!/usr/bin/env bash
# Installs gmvq_jax if need be, and runs it on this machine.
#
#   launch/local.sh --config=configs/cifar10.py --workdir=runs/cifar10
#
# Arguments are those of `python -m gmvq_jax.main`; see its --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
. launch/env.sh
use_environment ""
exec python -m gmvq_jax.main "$@"
