"""What XLA makes of a layer for a GPU, compiled on a machine without one.

    python -m experiments.benchmarks.gpu_program
    python -m experiments.benchmarks.gpu_program --channels 256 --size 8 --dtype bfloat16 --text

Counts the operations of one training call (output and both gradients), as XLA compiles it for an
H100: library calls, fusions, copies and transpositions. It says nothing of time. Needs, in an
environment of its own, `jax-cuda13-plugin` and `jax-cuda13-pjrt` of jax's version and NVIDIA's
libraries (`pip install 'jax[cuda13]'`); no driver and no GPU. Cuda's `ptxas` must be found.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

# Kernels are not tried out, for there is nothing to try them on.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu,cuda")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.topologies import get_topology_desc

from bandjax._conv.methods import Dft
from bandjax._conv.packed_dft import PackedDft
from experiments.benchmarks.gpu import banded, dense, training

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
runtime_version { major: 13 }
dnn_version_info { major: 9 minor: 13 }
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def compiled(f: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any = jnp.float32) -> str:
    """Returns the optimised program of a function of arrays, as text."""
    devices = get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1").devices
    mesh = jax.sharding.Mesh(np.array(devices), ("gpu",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=here) for shape in shapes]
    return str(jax.jit(f).lower(*arguments).compile().as_text())


def operations(text: str) -> collections.Counter[str]:
    """Returns how often the program calls each library, and has each kind of kernel of its own."""
    body = text[text.index("ENTRY") :]
    found: collections.Counter[str] = collections.Counter()
    for line in body.splitlines():
        target = re.search(r'custom_call_target="([^"]*)"', line)
        fusion = re.search(r"= .* fusion\(.*calls=%(\w+?)[._\d]*[,\s]", line + " ")
        if target:
            found[target[1].strip("_").replace("$", " ")] += 1
        elif fusion:
            found["transposition" if "transpose" in fusion[1] else "fusion"] += 1
        elif re.search(r"= \S+ (copy|transpose)\(", line):
            found["copy"] += 1
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu_program",
        description="Counts what XLA makes of a 3x3 layer for an H100; needs no GPU.",
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.5, help="compression (%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--text", action="store_true", help="print the programs too")
    options = parser.parse_args(arguments)
    x = (options.batch, options.size, options.size, options.channels)
    kernel = (3, 3, options.channels, options.channels)
    ways: dict[str, Callable[..., jax.Array]] = {
        "dense": dense,
        "dft": banded(PackedDft, options.rate),
        "dft as on the CPU": banded(Dft, options.rate),
    }
    for name, convolve in ways.items():
        text = compiled(training(convolve), x, kernel, x, dtype=jnp.dtype(options.dtype))
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(operations(text).items()))
        print(f"{name:18} {counts}", flush=True)
        if options.text:
            print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
