#!/usr/bin/env bash
# Builds, on a machine without a GPU, what gpu_check.sh and gpu_train.sh carry to one that has no
# network: the library with its CUDA kernels, the handlers alone, and packages that may be missing.
#
#   PYTHON=/path/to/python3.12 experiments/checks/prepare_gpu.sh [FOLDER]    # .dev
#
# PYTHON must have the Python and the JAX of the machine with the GPU, with scikit-build-core, pybind11,
# cmake and ninja; nvcc must be there. ARCH is the GPU's architecture (90a).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
ARCH=${ARCH:-90a}
folder=${1:-.dev}
mkdir -p "$folder/wheels"
rm -f "$folder"/bandjax-*.whl
include=$("$PYTHON" -c 'import jax.ffi; print(jax.ffi.include_dir())')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in transform multiply filter_product paper handlers; do
  nvcc -std=c++17 -O3 -lineinfo -Xcompiler -fPIC \
    -gencode "arch=compute_$ARCH,code=sm_$ARCH" -isystem "$include" \
    -c "ffi/cuda/$name.cu" -o "$work/$name.o"
done
nvcc -shared "$work"/*.o -o "$folder/handlers.so"
PATH="$(dirname "$(command -v "$PYTHON")"):$PATH" "$PYTHON" -m pip wheel -q --no-build-isolation \
  --no-deps --wheel-dir "$folder" . -C cmake.define.BANDJAX_CUDA=ON \
  -C "cmake.define.BANDJAX_CUDA_ARCHITECTURES=$ARCH"
"$PYTHON" -m pip download -q --no-deps --only-binary=:all: -d "$folder/wheels" \
  tyro docstring-parser typeguard beartype
ls -l "$folder" "$folder/wheels"
