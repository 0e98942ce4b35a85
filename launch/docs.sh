#!/usr/bin/env bash
# Installs gmvq_jax with what its pages need, and builds them.
#
#   launch/docs.sh          build/docs/index.html; a warning is an error
#
# --help                    print this
#
# Other arguments are those of sphinx-build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for argument in "$@"; do
  case "$argument" in
    --help)
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' launch/docs.sh
      exit 0
      ;;
  esac
done
# shellcheck source=launch/env.sh
. launch/env.sh
use_environment "[docs]"
# All pages anew: those that are kept warn of nothing.
exec sphinx-build -q -E -a -W --keep-going "$@" docs build/docs
