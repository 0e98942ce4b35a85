#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one command.
#
#   benchmarks/gpu.sh pack DIR   CIFAR10 of $TFDS_DATA_DIR in pieces of 50 MB
#   benchmarks/gpu.sh run OUT    all benchmarks and 100 epochs, to OUT; CIFAR10
#                                from such pieces in cifar10-pieces/ of this
#                                repository, if there, else $TFDS_DATA_DIR
#
# `run` needs `pip install -e '.[oracle]'`, with jax[cuda] and PyTorch for CUDA,
# and takes the peak of the device in teraflop/s from $PEAK, if that is set. A
# part that fails leaves its message in OUT and does not stop the others.
set -euo pipefail
[ $# -lt 2 ] || set -- "$1" "$(realpath -m "$2")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1-}" in
  pack)
    mkdir -p "${2:?where to}"
    tar -C "${TFDS_DATA_DIR:?names no directory}" -cf - cifar10 \
      | split -b 50M - "$2/cifar10.tar."
    ;;
  run)
    out=${2:?where to}
    mkdir -p "$out"
    if compgen -G 'cifar10-pieces/cifar10.tar.*' > /dev/null; then
      TFDS_DATA_DIR=$(mktemp -d)
      trap 'rm -rf "$TFDS_DATA_DIR"' EXIT
      export TFDS_DATA_DIR
      cat cifar10-pieces/cifar10.tar.* | tar -C "$TFDS_DATA_DIR" -xf -
    fi
    export PYTHONPATH=.
    nvidia-smi > "$out/nvidia-smi.txt" || true
    code=0
    part() {
      local name=$1
      shift
      "$@" > "$out/$name.log" 2>&1 && return
      echo "$name failed: see $out/$name.log" >&2
      code=1
    }
    cifar10=(--config=configs/cifar10.py:gmvq+entropy)
    part train_step python benchmarks/train_step.py "${cifar10[@]}" \
      --steps=20 --peak="${PEAK:-0}" --output="$out/train_step.json"
    part quantizer python benchmarks/quantizer.py \
      --output="$out/quantizer.json" --curves="$out/quantizer.svg"
    part nearest python benchmarks/nearest.py --output="$out/nearest.json"
    part epochs python -m gmvq_jax.main "${cifar10[@]}" --workdir="$out/run"
    exit "$code"
    ;;
  *)
    sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
