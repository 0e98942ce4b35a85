#!/usr/bin/env bash
# Runs gmvq_jax on a Cloud TPU VM, or on all workers of a pod slice.
#
#   launch/tpu_pod.sh setup --name=NAME --zone=ZONE
#   launch/tpu_pod.sh run --name=NAME --zone=ZONE --config=... --workdir=...
#
# setup     copy the commit that is checked out here to all workers, install it
# run       start on all workers, where it goes on without this terminal, and
#           starts again if it fails
# logs      follow the log of worker 0, or of --worker=N
# status    the state of the TPU, and of the run on every worker
# stop      save and stop; the same `run` continues
# restart   wait until the TPU is READY, then setup and run
#
# --name=NAME --zone=ZONE --project=PROJECT
#                 the TPU; or TPU_NAME, TPU_ZONE and TPU_PROJECT
# --dry-run       print the commands
# --help          print this
#
# Other arguments are those of `python -m gmvq_jax.main`. The directory above
# --workdir must be there on every worker, and be the same one: on NFS, such as
# Filestore. Not gs://, and no bucket mounted with Cloud Storage FUSE, which
# neither locks files nor renames directories atomically.
#
# To reach several workers, gcloud wants its key in the agent:
# `ssh-add ~/.ssh/google_compute_engine`.
#
# A preempted spot TPU does not come back. Delete it, create it again under its
# name, with a startup script that mounts the work directory, and `restart`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

main() {
  local name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-}
  local command='' worker=0 dry='' workdir='' arguments=() argument
  for argument in "$@"; do
    case "$argument" in
      --name=*) name=${argument#*=} ;;
      --zone=*) zone=${argument#*=} ;;
      --project=*) project=${argument#*=} ;;
      --worker=*) worker=${argument#*=} ;;
      --dry-run) dry=yes ;;
      --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' launch/tpu_pod.sh
        exit 0
        ;;
      -*)
        case "$argument" in --workdir=*) workdir=${argument#*=} ;; esac
        arguments+=("$argument")
        ;;
      *)
        [ -z "$command" ] || fail "$argument: unexpected; flags begin with --"
        command=$argument
        ;;
    esac
  done
  case "$command" in
    setup | logs | status | stop) ;;
    run | restart)
      case "$workdir" in
        /*) ;;
        '') fail '--workdir is missing; give a path that all workers share' ;;
        *) fail "--workdir=$workdir: must be a path that begins with /" ;;
      esac
      ;;
    *)
      fail "${command:-no command}: give setup, run, logs, status, stop or" \
        "restart"
      ;;
  esac
  [ -n "$name" ] || fail '--name is missing; give the name of the TPU'
  [ -n "$zone" ] || fail '--zone is missing; give the zone of the TPU'
  [[ $worker =~ ^[0-9]+$ ]] || fail "--worker=$worker: must be a number"
  "$command"
}

setup() {
  local archive=gmvq_jax.tar.gz
  show mkdir -p build
  show git archive --format=tar.gz "--output=build/$archive" HEAD
  tpu scp "build/$archive" "$name:$archive" --worker=all
  on_all "mkdir -p gmvq_jax && tar -xzf $archive -C gmvq_jax &&" \
    "bash gmvq_jax/launch/tpu_pod.sh on-worker install"
}

run() {
  local words
  printf -v words ' %q' "${arguments[@]}"
  on_all "bash gmvq_jax/launch/tpu_pod.sh on-worker start$words"
}

logs() {
  tpu ssh "$name" "--worker=$worker" \
    '--command=tail -n 100 -F gmvq_jax/run.log'
}

status() {
  describe
  on_all 'bash gmvq_jax/launch/tpu_pod.sh on-worker status'
}

stop() {
  on_all 'bash gmvq_jax/launch/tpu_pod.sh on-worker stop'
}

restart() {
  local state
  if [ -n "$dry" ]; then
    describe
  else
    # While it is created again there is none.
    until state=$(describe) && [ "$state" = READY ]; do
      echo "$name is ${state:-not there}; waiting."
      sleep "${POLL_SECONDS:-30}"
    done
  fi
  setup
  run
}

describe() {
  tpu describe "$name" '--format=value(state)'
}

# Runs a command, or prints it.
show() {
  local word words=()
  if [ -z "$dry" ]; then
    "$@"
    return
  fi
  for word in "$@"; do
    [[ $word =~ ^[[:alnum:]_./:=-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[@]}"
}

tpu() {
  show gcloud compute tpus tpu-vm "$@" "--zone=$zone" \
    ${project:+"--project=$project"}
}

on_all() {
  tpu ssh "$name" --worker=all "--command=$*"
}

# From here on: what `ssh` runs on a worker.

on_worker() {
  local command=$1 pid='' stopping=''
  shift
  "worker_$command" "$@"
}

worker_install() {
  # uv brings a Python: that of Ubuntu 22.04, which TPUs have, is 3.10.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  [ -x .venv/bin/python ] || python3 -m uv venv --quiet --python=3.12 .venv
  python3 -m uv pip install --quiet --python=.venv/bin/python -e . 'jax[tpu]'
}

worker_start() {
  local argument directory
  ! is_running || fail "$HOSTNAME: already running; stop it first"
  for argument in "$@"; do
    case "$argument" in
      --workdir=*)
        directory=$(dirname "${argument#*=}")
        [ -d "$directory" ] ||
          fail "$HOSTNAME: there is no $directory; is it mounted?"
        ;;
    esac
  done
  nohup bash launch/tpu_pod.sh on-worker loop "$@" \
    < /dev/null >> run.log 2>&1 &
  echo $! > run.pid
  echo "$HOSTNAME: started."
}

worker_loop() {
  local attempt=1 status
  trap 'stopping=yes; kill -TERM "$pid" 2> /dev/null || true' TERM
  while true; do
    SECONDS=0 status=0
    .venv/bin/python -m gmvq_jax.main --distributed "$@" &
    pid=$!
    await || status=$?
    # What failed after ten minutes had been running.
    [ "$SECONDS" -lt 600 ] || attempt=1
    # 2 is a mistake, which would be made again; but just after a failure it may
    # be that the other workers have not failed yet.
    if [ "$status" -eq 0 ] || [ -n "$stopping" ] ||
      [ "$status $attempt" = '2 1' ] || [ "$attempt" -eq 10 ]; then
      exit "$status"
    fi
    attempt=$((attempt + 1))
    echo "Failed with $status; starting again."
    sleep "${PAUSE_SECONDS:-30}" &
    pid=$!
    await || true
    [ -z "$stopping" ] || exit "$status"
  done
}

# Waits for the process: a signal ends `wait`, but not the process.
await() {
  local status
  until wait "$pid"; do
    status=$?
    kill -0 "$pid" 2> /dev/null || return "$status"
  done
}

worker_stop() {
  local second
  if is_running; then
    kill -TERM "$(cat run.pid)"
    for ((second = 0; second < 300; second++)); do
      is_running || break
      sleep 1
    done
  fi
  ! is_running || fail "$HOSTNAME: still running after five minutes"
  echo "$HOSTNAME: stopped."
}

worker_status() {
  local state='not running'
  ! is_running || state=running
  echo "$HOSTNAME: $state: $(tail -n 1 run.log 2> /dev/null || true)"
}

is_running() {
  local number
  number=$(cat run.pid 2> /dev/null) &&
    grep -qs 'on-worker' "/proc/$number/cmdline"
}

if [ "${1:-}" = on-worker ]; then
  shift
  on_worker "$@"
else
  main "$@"
fi
