#!/usr/bin/env bash
# Trains ResNet-18 on CIFAR-10 on an NVIDIA GPU, dense and at 50 %, in bfloat16 and float32.
#
#   experiments/checks/gpu_train.sh DATA_DIR           # within ten minutes; DATA_DIR/cifar-10-batches-py
#   LIMIT=1500 experiments/checks/gpu_train.sh DATA_DIR  # within 1,500 seconds
#
# NOT YET RUN ON A GPU: written on a machine without one.
#
# Forty epochs of a one-cycle schedule with flips and crops, which take a dense ResNet-18 beyond
# 93.5 %. Before its time is over it stops behind a checkpoint; start it again, with the same RUNS,
# to go on, until it says that everything is trained. Exits 0 then, 3 when there is more to do.
#
# Needs nvcc, a C++ compiler, cmake and, for PYTHON: JAX with CUDA, the packages of the extra
# `experiments`, pybind11 and scikit-build-core. Nothing is downloaded.
#   RUNS  checkpoints and logs, a folder that git ignores (runs/gpu)
#   OUT   records, tables and curves (experiments/results/gpu/resnet18)
#   OPTIONS  further words for experiments.train, such as "--seeds 0 1 2"
#   PRECISIONS  of bf16, float32, fp16 (bf16 float32)
set -euo pipefail
cd "$(dirname "$0")/../.."

data=${1:?usage: $0 DATA_DIR}
PYTHON=${PYTHON:-python3}
RUNS=${RUNS:-runs/gpu}
OUT=${OUT:-experiments/results/gpu/resnet18}
LIMIT=${LIMIT:-600}
PRECISIONS=${PRECISIONS:-bf16 float32}
PLATFORM=${PLATFORM:-gpu}
ENDING=30  # seconds for the last step, a checkpoint and the report
mkdir -p "$RUNS" "$OUT"

# What was compiled for an earlier start is not compiled again.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$RUNS/compiled}

left() { echo $((LIMIT - SECONDS - ENDING)); }

"$PYTHON" -c "import jax, sys; sys.exit(jax.default_backend() != '$PLATFORM')" || {
  echo "JAX finds no $PLATFORM" >&2
  exit 1
}

# The module of the kernels is built once; a folder that has it already is used as it is.
if [ "$PLATFORM" = gpu ] &&
  ! "$PYTHON" -c 'import bandjax, sys; sys.exit("cuda" not in bandjax.native_status())'; then
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$arch" != 90 ] || arch=90a
  "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index --editable . \
    -C cmake.define.BANDJAX_CUDA=ON -C "cmake.define.BANDJAX_CUDA_ARCHITECTURES=$arch" \
    >"$RUNS/build.log" 2>&1 ||
    echo "the kernels could not be built, see $RUNS/build.log; plain JAX is used" >&2
fi

finished=1
for precision in $PRECISIONS; do
  seconds=$(left)
  if [ "$seconds" -le 0 ]; then
    finished=0
    break
  fi
  rm -f "$RUNS/$precision/summary.json"  # It tells when all runs have ended.
  # SIGTERM makes the program write a checkpoint and exit 0.
  status=0
  # shellcheck disable=SC2086  # OPTIONS are several words.
  timeout --signal=TERM --kill-after="$ENDING" --preserve-status "$seconds" \
    "$PYTHON" -m experiments.train --model resnet18 --data cifar10 --data-dir "$data" \
    --band none compression=0.5 --precision "$precision" --seeds 0 \
    --epochs 40 --batch-size 128 --optimizer sgd --momentum 0.9 --nesterov \
    --learning-rate 0.1 --weight-decay 5e-4 --schedule onecycle --augment flip-crop \
    --checkpoint-every 30s --out "$RUNS/$precision" ${OPTIONS:-} || status=$?
  if [ "$status" != 0 ]; then
    echo "training in $precision ended with status $status" >&2
    exit "$status"
  fi
  mkdir -p "$OUT/$precision"
  for file in "$RUNS/$precision"/*_seed-*.json "$RUNS/$precision"/{summary.json,curves.png}; do
    if [ -f "$file" ]; then cp "$file" "$OUT/$precision/"; fi
  done
  [ -f "$RUNS/$precision/summary.json" ] || finished=0
done

if [ "$finished" = 1 ]; then
  echo "everything is trained: $OUT"
else
  echo "the time is over; start again with RUNS=$RUNS to go on"
  exit 3
fi
