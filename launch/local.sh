#!/usr/bin/env bash
# Installs gmvq_jax if need be, and runs it on this machine.
#
#   launch/local.sh                 a first run: minutes on two cores, no data set
#   launch/local.sh --config=configs/cifar10.py --workdir=runs/cifar10
#   launch/local.sh --processes=2 --devices=2 --config=... --workdir=...
#
# --processes=P   P processes that make one run, as on P machines
# --devices=D     D devices of the CPU in each
# --dry-run       print what would be run
# --help          print this
#
# Other arguments are those of `python -m gmvq_jax.main`; see its --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

processes=1 devices='' run=() arguments=()
for argument in "$@"; do
  case "$argument" in
    --processes=*) processes=${argument#*=} ;;
    --devices=*) devices=${argument#*=} ;;
    --dry-run) run=(echo) ;;
    --help)
      sed -n '2,14s/^# \{0,1\}//p' launch/local.sh
      exit 0
      ;;
    *) arguments+=("$argument") ;;
  esac
done
for number in "$processes" "${devices:-1}"; do
  if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
    echo "error: --processes=$processes --devices=${devices:-1}: must be at least 1" >&2
    exit 2
  fi
done
if [ ${#arguments[@]} -eq 0 ]; then
  arguments=(--config=configs/quickstart.py --workdir=runs/quickstart)
fi
program=(env)
if [ -n "$devices" ]; then
  program+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices")
fi
if [ ${#run[@]} -eq 0 ]; then
  # shellcheck source=launch/env.sh
  . launch/env.sh
  use_environment "[quickstart]"
fi
if [ "$processes" -eq 1 ]; then
  program+=(python -m gmvq_jax.main)
  exec ${run[@]+"${run[@]}"} "${program[@]}" "${arguments[@]}"
fi

# A port that is likely to be free: another run of this script takes another.
port=${PORT:-$((20000 + $$ % 20000))}
program+=("JAX_COORDINATOR_ADDRESS=localhost:$port" "JAX_NUM_PROCESSES=$processes")
pids=()
for ((index = 0; index < processes; index++)); do
  one=("${program[@]}" "JAX_PROCESS_ID=$index" python -m gmvq_jax.main --distributed)
  if [ ${#run[@]} -gt 0 ]; then
    "${run[@]}" "${one[@]}" "${arguments[@]}"
    continue
  fi
  "${one[@]}" "${arguments[@]}" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM
code=0
for pid in ${pids[@]+"${pids[@]}"}; do
  # A signal ends the wait, but not the process.
  until wait "$pid"; do
    status=$?
    kill -0 "$pid" 2> /dev/null || { code=$status && break; }
  done
done
exit "$code"
