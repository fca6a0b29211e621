#!/usr/bin/env bash
# Checks bandjax on a machine with an NVIDIA GPU, in less than eight minutes.
#
#   experiments/checks/gpu_check.sh                 # every step
#   TESTS="tests" experiments/checks/gpu_check.sh   # more tests
#
# NOT YET RUN ON A GPU: written on a machine without one. Steps may need a nudge the first time.
#
# Needs nvcc, a C++ compiler, cmake and, for PYTHON: JAX with CUDA, pytest, pybind11 and
# scikit-build-core. Nothing is downloaded. Each step has its own time limit and log; a step that
# fails does not stop the others. Logs, tables and summary.txt go to OUT.
set -u
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-experiments/results/gpu}
TESTS=${TESTS:-tests/test_native.py}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
: >"$OUT/summary.txt"
failed=0

# JAX takes most of the GPU's memory unless told not to, and one process follows another here.
export XLA_PYTHON_CLIENT_PREALLOCATE=false

# step NAME SECONDS COMMAND...: runs it, keeps its output, notes how it went.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1 || status=$?
  local outcome="ok"
  if [ "$status" = 124 ] || [ "$status" = 137 ]; then
    outcome="stopped after $limit s"
  elif [ "$status" != 0 ]; then
    outcome="failed ($status)"
  fi
  [ "$status" = 0 ] || failed=1
  echo "$name: $outcome, $((SECONDS - start)) s: $(tail -n 1 "$OUT/$name.log")" |
    tee -a "$OUT/summary.txt"
  return "$status"
}

machine() {
  nvidia-smi
  nvcc --version
  "$PYTHON" -c 'import jax, jaxlib; print(jax.__version__, jaxlib.__version__, jax.devices())'
}

# The handlers alone, without Python's half of the library: each file by its own nvcc.
handlers() {
  local include objects=() workers=() name worker
  include=$("$PYTHON" -c 'import jax.ffi; print(jax.ffi.include_dir())') || return
  mkdir -p "$OUT/build"
  for name in transform multiply filter_product paper handlers; do
    nvcc -std=c++17 -O3 -Xcompiler -fPIC -Xptxas -v -lineinfo \
      -gencode "arch=compute_$arch,code=sm_$arch" -isystem "$include" \
      -c "ffi/cuda/$name.cu" -o "$OUT/build/$name.o" &
    workers+=($!)
    objects+=("$OUT/build/$name.o")
  done
  for worker in "${workers[@]}"; do wait "$worker" || return; done
  nvcc -shared "${objects[@]}" -o "$OUT/build/handlers.so"
}

extension() {
  "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index --editable . \
    -C cmake.define.BANDJAX_CUDA=ON -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$arch-real"
}

# A tool of compute-sanitizer over small cases of every kernel, and over no kernel but ours.
# Blocks of memory come straight from CUDA, so that their ends are seen.
sanitizer() {
  XLA_PYTHON_CLIENT_ALLOCATOR=platform XLA_FLAGS=--xla_gpu_enable_command_buffer= \
    compute-sanitizer --tool "$1" --error-exitcode 1 --kernel-regex kns=bandjax \
    "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda_emulation.py \
    -k "handler and not refuse"
}

# Functions run in a shell that `timeout` can stop.
export PYTHON OUT
step_function() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" bash -c "$(declare -f "$1"); arch=$arch; $*"
}

arch=
step_function machine 30 machine
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
if [ -z "$arch" ]; then
  echo "no GPU: nothing can be checked" | tee -a "$OUT/summary.txt"
  exit 1
fi

if step_function handlers 100 handlers; then
  export BANDJAX_CUDA_LIBRARY=$OUT/build/handlers.so
  step kernels 40 "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda_emulation.py \
    -k "not any_order_of_threads"
  step_function memcheck 60 sanitizer memcheck
  step_function racecheck 60 sanitizer racecheck
fi
if step_function extension 90 extension; then
  # shellcheck disable=SC2086  # TESTS may name several paths.
  step tests 60 "$PYTHON" -m pytest -q -p no:cacheprovider -m "not slow" $TESTS
  step benchmarks 40 "$PYTHON" -m experiments.benchmarks --device gpu --out "$OUT/benchmark.json"
fi

rm -rf "$OUT/build"
exit "$failed"
