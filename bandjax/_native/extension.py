"""Loads ``bandjax._ffi``, the native kernels, and says why when it cannot."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
import re
import threading
import types

import jax

# The names of the platforms for jax.lax.platform_dependent, and for the registry of handlers.
_REGISTRY = {"cpu": "cpu", "cuda": "CUDA"}
_REINSTALL = "pip install --force-reinstall --no-deps ."
_CPU_CURE = f"{_REINSTALL} builds them, given a compiler (BUILD.md)"
_CUDA_CURE = f"{_REINSTALL} -C cmake.define.BANDJAX_CUDA=ON builds them, given nvcc (BUILD.md)"


def native_status() -> str:
    """Tells in one line which native kernels there are, or why there are none.

    The first call loads and registers them; where there are CUDA kernels, it starts JAX's backends,
    to see whether they run on the GPU: call it behind ``jax.distributed.initialize``.

    Returns:
        Such as ``"native: available (cpu: avx512)"``,
        ``"native: available (cpu: avx512, cuda: sm_80, sm_90a)"`` or
        ``"native: unavailable (no compiler at install)"``. The instruction set of the CPU is the
        best that the processor has, unless the environment variable ``BANDJAX_CPU_ISA`` names
        another: ``avx512``, ``avx2`` or ``portable``.
    """
    extension = _load()
    if extension.module is None:
        return f"native: unavailable ({extension.problem})"
    kernels = f"cpu: {extension.module.CPU_ISA}"
    if extension.module.BUILT_WITH_CUDA:
        kernels += f", cuda: {extension.module.CUDA_ARCHITECTURES}"
        kernels += "" if available("cuda") else ", none of which runs on the GPU here"
    return f"native: available ({kernels})"


def available(platform: str) -> bool:
    """Whether there are native kernels for a platform, ``"cpu"`` or ``"cuda"``."""
    return _lacking(platform) is None


def require(platform: str) -> None:
    """Raises RuntimeError, with the reason and the cure, where ``available(platform)`` is false."""
    lacking = _lacking(platform)
    if lacking is not None:
        raise RuntimeError(f"no native kernels for platform {platform!r}: {lacking}")


def _lacking(platform: str) -> str | None:
    """Why there are no native kernels for a platform, or None if there are."""
    if platform not in _REGISTRY:
        return "there are some for 'cpu' and 'cuda' alone"
    extension = _load()
    if extension.module is None:
        return f"{extension.problem}; {_CPU_CURE if platform == 'cpu' else _CUDA_CURE}"
    if platform == "cuda" and not extension.module.BUILT_WITH_CUDA:
        return f"built without CUDA; {_CUDA_CURE}"
    if platform == "cuda":
        return _of_another_gpu(extension.module.CUDA_ARCHITECTURES)
    return None


@functools.cache
def _of_another_gpu(architectures: str) -> str | None:
    """Why kernels that were built for some architectures do not run on the GPU here, if so."""
    try:
        devices = jax.devices("cuda")
    except RuntimeError:  # There is none: the program is for another machine.
        return None
    capability = str(getattr(devices[0], "compute_capability", ""))
    if not re.fullmatch(r"\d+\.\d+", capability) or runs_on(architectures, capability):
        return None
    cure = f"-C cmake.define.BANDJAX_CUDA_ARCHITECTURES={capability.replace('.', '')}"
    return (
        f"built for {architectures}, and the GPU here has compute capability {capability}; "
        f"{_REINSTALL} -C cmake.define.BANDJAX_CUDA=ON {cure} builds them for it"
    )


def runs_on(architectures: str, capability: str) -> bool:
    """Whether kernels built for ``"sm_80, sm_90a"`` run on a GPU of a capability such as "9.0".

    Machine code runs on its own generation from its minor version on; that of an architecture with
    a letter on nothing else. The last one, if it has no letter, is there as PTX too, for all that
    is newer.
    """
    major, minor = map(int, capability.split("."))
    names = [name.strip().removeprefix("sm_") for name in architectures.split(",")]
    if any(name == f"{major}{minor}a" for name in names):
        return True
    plain = [divmod(int(name), 10) for name in names if name.isdigit()]
    native = any(built[0] == major and built[1] <= minor for built in plain)
    as_ptx = names[-1].isdigit() and plain[-1] <= (major, minor)
    return native or as_ptx


@dataclasses.dataclass(frozen=True)
class _Extension:
    """The loaded module, or the problem that kept it from being loaded."""

    module: types.ModuleType | None
    problem: str = ""


_lock = threading.Lock()


def _load() -> _Extension:
    with _lock:  # A handler is registered once, whichever thread comes first.
        return _load_once()


@functools.cache
def _load_once() -> _Extension:
    """Imports the extension, compares versions, and registers its handlers."""
    try:
        missing = importlib.import_module("bandjax._built").MISSING
    except ModuleNotFoundError:
        return _Extension(None, "the install left their build out")
    if missing:
        return _Extension(None, missing)
    try:
        module = importlib.import_module("bandjax._ffi")
    except ImportError as error:
        return _Extension(None, f"bandjax._ffi does not load: {error}")

    # XLA registers a handler of a newer version in silence, and then every operation of JAX fails.
    built, running = module.FFI_API_VERSION, _running_version()
    if running is None:
        headers = jax.ffi.include_dir()
        return _Extension(None, f"no header tells the XLA FFI version of this jaxlib: {headers}")
    if built[0] != running[0] or built[1] > running[1]:
        versions = f"built for XLA FFI {_dotted(built)}, this jaxlib has {_dotted(running)}"
        return _Extension(None, f"{versions}; reinstall bandjax, without --no-build-isolation")

    for target, capsule in module.cpu_handlers().items():
        jax.ffi.register_ffi_target(target, capsule, platform=_REGISTRY["cpu"])
    for target, capsule in module.cuda_handlers().items():
        jax.ffi.register_ffi_target(target, capsule, platform=_REGISTRY["cuda"])
    return _Extension(module)


def _running_version() -> tuple[int, int] | None:
    """The XLA FFI version of the running jaxlib, which its headers alone tell."""
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        text = header.read_text(encoding="utf-8")
    except OSError:
        return None
    numbers = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    if numbers[0] is None or numbers[1] is None:
        return None
    return int(numbers[0][1]), int(numbers[1][1])


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
