"""``python -m bandjax``: what a report of a fault needs, and a self-test of some seconds."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bandjax
from bandjax._conv.classes import CLASSES

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "flax", "equinox", "keras")
# Settings from outside that change what is computed, where, or in whose memory.
VARIABLES = ("BANDJAX_", "GLIBC_TUNABLES", "JAX_", "KERAS_BACKEND", "LD_PRELOAD", "XLA_")
BAND = bandjax.Modes(3, 2)
TOLERANCE = 1e-4  # of the largest number; TF32 on a GPU is asked not to be used
TIMED = (8, 32, 32, 64)  # of an input; 3x3 taps, as many channels out
REPEATS = 10


def environment() -> Iterator[tuple[str, str]]:
    """Yields name and value of everything that tells this installation from another."""
    yield "bandjax", f"{bandjax.__version__} in {os.path.dirname(bandjax.__file__)}"
    yield "Python", f"{platform.python_version()} ({platform.platform()})"
    yield "packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield "devices", ", ".join(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices())
    yield "CPU cores", f"{_usable_cores()} usable of {os.cpu_count()}"
    yield "kernels", bandjax.native_status()
    yield "allocator", allocator()
    for name in sorted(os.environ):
        if name.startswith(VARIABLES):
            yield name, os.environ[name]


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def allocator() -> str:
    """The C library's allocator, and whether freed memory stays in the process."""
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        return "not glibc: bandjax.tune_allocator() does nothing"
    library.gnu_get_libc_version.restype = ctypes.c_char_p
    name = f"glibc {library.gnu_get_libc_version().decode()}"
    if "glibc.malloc.mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return f"{name}, set by GLIBC_TUNABLES"
    return f"{name}, as the system has it; bandjax.tune_allocator() keeps freed memory"


def _usable_cores() -> int | None:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count()


# --------------------------------------------------------------------------------------- self-test


def expected(x: Any, kernel: Any, modes: tuple[int, ...] | None) -> Any:
    """The convolution of ``(h, w, C)`` with ``(3, 3, C, O)``, SAME, in NumPy and float64.

    On circles of one point more than the map, so that what wraps around reads a zero; frequencies
    above ``modes`` are dropped.
    """
    h, w, _ = x.shape
    spectrum = np.fft.fft2(np.pad(x, [(0, 1), (0, 1), (0, 0)]), axes=(0, 1))
    for axis, limit in enumerate(modes or ()):
        frequency = np.abs(np.fft.fftfreq(spectrum.shape[axis], 1 / spectrum.shape[axis]))
        low = frequency.round() <= limit
        spectrum *= low[:, None, None] if axis == 0 else low[:, None]
    circle = np.fft.ifft2(spectrum, axes=(0, 1)).real
    y = np.zeros((h, w, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            y += np.roll(circle, (1 - i, 1 - j), (0, 1))[:h, :w] @ kernel[i, j]
    return y


def checks() -> Iterator[tuple[str, Callable[[], float]]]:
    """Yields name and error, of the largest number, of each way to compute a convolution."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(11, 8, 3)), rng.normal(size=(3, 3, 3, 5))
    ways = [("auto", None), *sorted({(c.name, "xla") for c in CLASSES if not c.native})]
    there = bandjax.native_status().startswith("native: available")
    if there and jax.default_backend() == "cpu":
        ways += sorted({(c.name, "native") for c in CLASSES if c.native})
    for method, implementation in ways:
        label = method if implementation != "native" else f"{method}, native kernels"
        for band in (None,) if method == "tiles" else (None, BAND):
            named = f"{label}, {'every frequency' if band is None else repr(band)}"

            def convolve(
                x: Any, kernel: Any, band: Any = band, how: Any = (method, implementation)
            ) -> Any:
                return bandjax.band_conv(
                    x, kernel, band, method=how[0], implementation=how[1], precision="highest"
                )

            yield named, functools.partial(_error, convolve, x, kernel, band)


def _error(convolve: Callable[..., jax.Array], x: Any, kernel: Any, band: Any) -> float:
    """The largest error of output and gradients, over the largest number or the product.

    The map is linear in each argument: the product of any direction with the gradient is that of
    the direction's image with the cotangent. Both are near the arrays, so that no product is small.
    """
    modes = None if band is None else band.limits
    wanted = expected(x, kernel, modes)
    rng = np.random.default_rng(1)
    y = wanted * rng.uniform(0.5, 1.5, wanted.shape)
    along_x, along_kernel = (a + 0.3 * rng.normal(size=a.shape) for a in (x, kernel))

    @jax.jit
    def run(x: Any, kernel: Any, y: Any) -> Any:
        out, pull_back = jax.vjp(convolve, x, kernel)
        return out, *pull_back(y)

    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, y)]
    out, of_x, of_kernel = (np.asarray(a, np.float64) for a in run(*arrays))
    errors = [np.abs(out - wanted).max() / np.abs(wanted).max()]
    for direction, gradient, image in (
        (along_x, of_x, expected(along_x, kernel, modes)),
        (along_kernel, of_kernel, expected(x, along_kernel, modes)),
    ):
        product = np.sum(image * y)
        errors.append(abs(np.sum(direction * gradient) - product) / abs(product))
    return float(max(errors))


def speed() -> str:
    """One line: a layer's training step, dense, exact and band-limited."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=TIMED), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, TIMED[-1], TIMED[-1])), jnp.float32)

    def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    half = bandjax.Compression(0.5)
    sides: list[tuple[str, Callable[..., jax.Array]]] = [
        ("jax.lax", dense),
        ("exact", bandjax.band_conv),
        ("at 50 %", lambda x, kernel: bandjax.band_conv(x, kernel, half)),
    ]
    times = [(name, 1e3 * _seconds(f, x, kernel)) for name, f in sides]
    told = ", ".join(f"{name} {ms:.1f} ms" for name, ms in times)
    return f"3x3 layer {'x'.join(map(str, TIMED))}, output and gradients: {told}"


def _seconds(f: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> float:
    """The median time of a call that returns the output and both gradients."""

    @jax.jit
    def step(x: jax.Array, kernel: jax.Array) -> Any:
        y, pull_back = jax.vjp(f, x, kernel)
        return y, pull_back(y)

    jax.block_until_ready(step(x, kernel))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(step(x, kernel))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> int:
    """Prints the environment and the self-test; returns 1 if something failed, else 0."""
    try:
        return _report()
    except BrokenPipeError:  # Whoever read has read enough; Python's last flush is to find nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _report() -> int:
    """Prints it all; returns 1 if something failed, else 0."""
    for name, value in environment():
        print(f"{name + ':':<12}{value}")
    failed = 0
    for name, error_of in checks():
        try:
            error = error_of()
            verdict = "ok" if error <= TOLERANCE else "WRONG"
            told = f"{verdict} (error {error:.0e})"
        except Exception as problem:  # Whatever it is, it belongs into the report.
            verdict, told = "FAILED", f"FAILED: {type(problem).__name__}: {problem}"
        failed += verdict != "ok"
        print(f"{'self-test:':<12}{name}: {told}", flush=True)
    print(f"{'speed:':<12}{speed()}")
    print(f"{'result:':<12}{f'{failed} checks failed' if failed else 'all is well'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
