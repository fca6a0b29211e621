#!/usr/bin/env bash
# Checks and times bandjax on a machine with an NVIDIA GPU, within LIMIT seconds.
#
#   experiments/checks/gpu_check.sh                        # every step, nine minutes at most
#   STEPS="library layers" experiments/checks/gpu_check.sh # some of them
#   CARRIED=.dev experiments/checks/gpu_check.sh           # with what prepare_gpu.sh has built
#
# Steps, in this order: machine, kernels (the handlers alone), library (values and gradients),
# layers, parts, users, memory (timings), memcheck, racecheck. Each has a time limit and a log of its
# own; a step that fails does not stop the others. Summary.txt, logs.tgz and JSON go to OUT.
#
# Needs, for PYTHON, JAX with CUDA, flax and pytest. CARRIED is a folder with
#   wheels/*.whl    packages that the machine lacks
#   bandjax-*.whl   this library, built elsewhere; else the kernels are built here, with nvcc
#   handlers.so     the handlers alone; else they are built here, with nvcc
# Nothing is downloaded.
set -u
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-experiments/results/gpu}
CARRIED=${CARRIED:-}
STEPS=${STEPS:-machine kernels library layers parts users memory memcheck racecheck}
LIMIT=${LIMIT:-540}
PLATFORM=${PLATFORM:-gpu}   # "cpu" tries the script itself, on small arrays
SMALL=()
[ "$PLATFORM" = gpu ] || SMALL=(--batch 2 --size 8 --calls 2 --programs 1 --repeats 1)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
: >"$OUT/summary.txt"
failed=0

# JAX takes most of the GPU's memory unless told not to, and one process follows another here.
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=$WORK/compiled

wanted() { [[ " $STEPS " == *" $1 "* ]]; }

# step NAME SECONDS LINES COMMAND...: runs it, keeps its output, notes how it went.
step() {
  local name=$1 limit=$2 lines=$3 start=$SECONDS status=0 left=$((LIMIT - SECONDS))
  shift 3
  [ "$limit" -lt "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    echo "== $name: no time left" | tee -a "$OUT/summary.txt"
    failed=1
    return 1
  fi
  timeout --kill-after=5 "$limit" "$@" >"$WORK/$name.log" 2>&1 || status=$?
  local outcome="ok"
  if [ "$status" = 124 ] || [ "$status" = 137 ]; then
    outcome="stopped after $limit s"
  elif [ "$status" != 0 ]; then
    outcome="failed ($status)"
  fi
  [ "$status" = 0 ] || failed=1
  echo "== $name: $outcome, $((SECONDS - start)) s" | tee -a "$OUT/summary.txt"
  tail -n "$lines" "$WORK/$name.log" | cut -c 1-300 | tee -a "$OUT/summary.txt"
  (cd "$WORK" && tar -czf "$OUT/logs.tgz" ./*.log)
  return "$status"
}

# No plugin but xdist: those of a machine may refuse to run beside it.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
test_files() { "$PYTHON" -m pytest -q -p no:cacheprovider -p xdist.plugin "$@"; }
export -f test_files
export PYTHON

if [ -n "$CARRIED" ] && compgen -G "$CARRIED/wheels/*.whl" >/dev/null; then
  step packages 30 1 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
    --target "$WORK/site" "$CARRIED"/wheels/*.whl
  export PYTHONPATH=$WORK/site
fi
"$PYTHON" -c "import jax, sys; sys.exit(jax.default_backend() != '$PLATFORM')" || {
  echo "JAX finds no $PLATFORM: nothing can be checked" | tee -a "$OUT/summary.txt"
  exit 1
}

# The module: carried, or there already, or built here for this GPU alone.
arch=
if [ "$PLATFORM" = gpu ]; then
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$arch" != 90 ] || arch=90a
  carried=$(compgen -G "$CARRIED/bandjax-*.whl" | head -n 1)
  if [ -n "$carried" ]; then
    "$PYTHON" -m zipfile -e "$carried" "$WORK/wheel"
    cp "$WORK"/wheel/bandjax/_built.py "$WORK"/wheel/bandjax/_ffi*.so bandjax/
  fi
  if ! "$PYTHON" -c 'import bandjax, sys; sys.exit("cuda" not in bandjax.native_status())'; then
    step module 240 1 "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index \
      --editable . -C cmake.define.BANDJAX_CUDA=ON \
      -C "cmake.define.BANDJAX_CUDA_ARCHITECTURES=$arch"
  fi
fi

if wanted machine; then
  step machine 40 20 bash -c "
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm --format=csv,noheader
    nvcc --version | tail -n 1
    '$PYTHON' -c 'import bandjax, jax, jaxlib, flax
print(jax.__version__, jaxlib.__version__, flax.__version__, jax.devices())
print(bandjax.native_status())'"
fi

# The handlers without Python's half of the library: carried, or each file by its own nvcc.
if wanted kernels || wanted memcheck || wanted racecheck; then
  if [ -f "$CARRIED/handlers.so" ]; then
    BANDJAX_CUDA_LIBRARY=$(cd "$CARRIED" && pwd)/handlers.so
    export BANDJAX_CUDA_LIBRARY
  elif [ -n "$arch" ]; then
    include=$("$PYTHON" -c 'import jax.ffi; print(jax.ffi.include_dir())')
    step handlers 120 1 bash -c "
      for name in transform multiply filter_product paper handlers; do
        nvcc -std=c++17 -O3 -Xcompiler -fPIC -lineinfo -gencode arch=compute_$arch,code=sm_$arch \
          -isystem '$include' -c ffi/cuda/\$name.cu -o '$WORK'/\$name.o & workers+=\" \$!\"
      done
      for worker in \$workers; do wait \$worker || exit; done
      nvcc -shared '$WORK'/*.o -o '$WORK/handlers.so'" &&
      export BANDJAX_CUDA_LIBRARY=$WORK/handlers.so
  fi
fi
wanted kernels &&
  step kernels "${KERNELS_SECONDS:-75}" 3 bash -c 'test_files -n 4 tests/native/test_cuda_emulation.py -k "not any_order_of_threads"'
wanted library && step library "${LIBRARY_SECONDS:-120}" 6 bash -c 'test_files -n 12 tests/native/test_gpu.py'

bench() {  # NAME SECONDS PARTS...
  local name=$1 limit=$2
  shift 2
  # One library of products, cuBLAS: compiling takes a third of the time, and no time is by luck.
  XLA_FLAGS="--xla_gpu_enable_triton_gemm=false" step "$name" "$limit" 100 "$PYTHON" \
    -m experiments.benchmarks.gpu --out "$OUT/$name.json" --seconds "$((limit - 10))" \
    "${SMALL[@]}" --parts "$@"
}
wanted layers && bench layers "${LAYERS_SECONDS:-150}" torch layers
wanted parts && bench parts 50 steps
wanted users && bench users "${USERS_SECONDS:-100}" users
wanted memory && bench memory "${MEMORY_SECONDS:-200}" memory

# A tool of compute-sanitizer over small cases of every kernel, and over no kernel but ours.
# Blocks of memory come straight from CUDA, so that their ends are seen.
for tool in memcheck racecheck; do
  if wanted "$tool"; then
    XLA_PYTHON_CLIENT_ALLOCATOR=platform XLA_FLAGS=--xla_gpu_enable_command_buffer= \
      step "$tool" 60 4 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      --kernel-regex kns=bandjax "$PYTHON" -m pytest -q -p no:cacheprovider \
      tests/native/test_cuda_emulation.py -k "test_product_handlers or test_transform_handlers"
  fi
done

exit "$failed"
