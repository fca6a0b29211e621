"""The native kernels load where they were built, and every reason for their absence is told."""

from __future__ import annotations

import importlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from processes import in_a_new_process

import bandjax
from bandjax._native import extension

RUNNING = extension._running_version()


@pytest.fixture
def registered(monkeypatch):
    """Forgets what was loaded, and notes what is registered in place of registering it."""
    calls = []
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *a, **k: calls.append((*a, k)))
    extension._load_once.cache_clear()
    yield calls
    extension._load_once.cache_clear()


def install(monkeypatch, missing="", **attributes):
    """Puts a module in the place of the build's marker, and one in that of the extension."""
    built, module = types.ModuleType("bandjax._built"), types.ModuleType("bandjax._ffi")
    built.MISSING = missing
    defaults = {
        "FFI_API_VERSION": RUNNING,
        "CPU_ISA": "avx2",
        "BUILT_WITH_CUDA": False,
        "CUDA_ARCHITECTURES": "",
        "cpu_handlers": lambda: {"bandjax_one": "one", "bandjax_two": "two"},
        "cuda_handlers": dict,
    }
    for name, value in {**defaults, **attributes}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "bandjax._built", built)
    monkeypatch.setitem(sys.modules, "bandjax._ffi", module)


def test_cpu_handlers_are_registered_once(monkeypatch, registered):
    install(monkeypatch)
    assert bandjax.native_status() == "native: available (cpu: avx2)"
    assert bandjax.native_status() == "native: available (cpu: avx2)"
    assert registered == [
        ("bandjax_one", "one", {"platform": "cpu"}),
        ("bandjax_two", "two", {"platform": "cpu"}),
    ]
    assert extension.available("cpu")
    extension.require("cpu")


def test_without_cuda_handlers(monkeypatch, registered):
    install(monkeypatch)
    assert not extension.available("cuda")
    with pytest.raises(RuntimeError, match=r"'cuda': built without CUDA; .*BANDJAX_CUDA=ON"):
        extension.require("cuda")


def test_cuda_handlers(monkeypatch, registered):
    install(
        monkeypatch,
        BUILT_WITH_CUDA=True,
        CUDA_ARCHITECTURES="sm_80, sm_90a",
        cpu_handlers=dict,
        cuda_handlers=lambda: {"bandjax_one": "one"},
    )
    assert bandjax.native_status() == "native: available (cpu: avx2, cuda: sm_80, sm_90a)"
    assert registered == [("bandjax_one", "one", {"platform": "CUDA"})]
    assert extension.available("cuda")
    extension.require("cuda")


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("sm_80, sm_90a", "9.0", True),
        ("sm_80, sm_90a", "8.0", True),
        ("sm_80, sm_90a", "8.9", True),
        ("sm_80, sm_90a", "7.5", False),
        ("sm_80, sm_90a", "10.0", False),
        ("sm_90a", "8.0", False),
        ("sm_90a", "9.1", False),
        ("sm_86", "8.0", False),
        ("sm_80, sm_90a, sm_100, sm_120", "12.1", True),
        ("sm_80, sm_90a, sm_100, sm_120", "13.0", True),  # as PTX
        ("sm_80, sm_90a, sm_100", "12.0", True),
        ("sm_100", "9.0", False),
    ],
)
def test_on_which_gpus_kernels_run(built, capability, runs):
    assert extension.runs_on(built, capability) == runs


def test_kernels_for_another_gpu_are_not_there(monkeypatch, registered):
    install(
        monkeypatch,
        BUILT_WITH_CUDA=True,
        CUDA_ARCHITECTURES="sm_80",
        cuda_handlers=lambda: {"bandjax_one": "cuda"},
    )
    here = types.SimpleNamespace(compute_capability="7.5")
    monkeypatch.setattr(jax, "devices", lambda platform=None: [here])
    extension._of_another_gpu.cache_clear()
    assert not extension.available("cuda")
    with pytest.raises(RuntimeError, match=r"capability 7\.5.*BANDJAX_CUDA_ARCHITECTURES=75"):
        extension.require("cuda")
    assert bandjax.native_status() == (
        "native: available (cpu: avx2, cuda: sm_80, none of which runs on the GPU here)"
    )
    here.compute_capability = "8.6"
    extension._of_another_gpu.cache_clear()
    assert extension.available("cuda")
    extension._of_another_gpu.cache_clear()


def test_another_platform(monkeypatch, registered):
    install(monkeypatch)
    assert not extension.available("rocm")
    with pytest.raises(RuntimeError, match="'rocm': there are some for 'cpu' and 'cuda' alone"):
        extension.require("rocm")


def unavailable(reason):
    """Checks that nothing is available and that every message gives the reason."""
    assert bandjax.native_status() == f"native: unavailable ({reason})"
    for platform, cure in [("cpu", "given a compiler"), ("cuda", "BANDJAX_CUDA=ON")]:
        assert not extension.available(platform)
        with pytest.raises(RuntimeError) as error:
            extension.require(platform)
        assert f"{platform!r}: {reason}; pip install" in str(error.value)
        assert cure in str(error.value)


@pytest.mark.parametrize("reason", ["no compiler at install", "no Python headers at install"])
def test_what_the_build_lacked(monkeypatch, registered, reason):
    install(monkeypatch, missing=reason)
    unavailable(reason)
    assert registered == []


def test_a_source_tree_that_was_not_installed(monkeypatch, registered):
    install(monkeypatch)
    monkeypatch.delitem(sys.modules, "bandjax._built")
    real = importlib.import_module

    def without_marker(name, *args):
        if name == "bandjax._built":
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_marker)
    unavailable("the install left their build out")


def test_an_extension_that_does_not_load(monkeypatch, registered):
    install(monkeypatch)
    monkeypatch.setitem(sys.modules, "bandjax._ffi", None)
    status = bandjax.native_status()
    assert status.startswith("native: unavailable (bandjax._ffi does not load: ")
    assert registered == []


@pytest.mark.parametrize("running", [(0, 3), (0, 4), (1, 0), (1, 9)])
def test_a_version_that_the_runtime_does_not_take(monkeypatch, registered, running, tmp_path):
    install(monkeypatch, FFI_API_VERSION=(0, 5) if running[0] == 0 else (0, 3))
    header(
        tmp_path, f"#define XLA_FFI_API_MAJOR {running[0]}\n#define XLA_FFI_API_MINOR {running[1]}"
    )
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    built = "0.5" if running[0] == 0 else "0.3"
    unavailable(
        f"built for XLA FFI {built}, this jaxlib has {running[0]}.{running[1]}; "
        "reinstall bandjax, without --no-build-isolation"
    )
    assert registered == []


def test_an_older_version_than_the_runtime_s(monkeypatch, registered, tmp_path):
    install(monkeypatch, FFI_API_VERSION=(0, 3))
    header(tmp_path, "#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 5\n")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    assert extension.available("cpu")
    assert len(registered) == 2


@pytest.mark.parametrize("text", [None, "#define XLA_FFI_API_MAJOR 0\n"])
def test_a_runtime_that_does_not_tell_its_version(monkeypatch, registered, tmp_path, text):
    install(monkeypatch)
    if text is not None:
        header(tmp_path, text)
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    unavailable(f"no header tells the XLA FFI version of this jaxlib: {tmp_path}")
    assert registered == []


def header(folder, text):
    path = folder / "xla" / "ffi" / "api" / "c_api.h"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_what_was_built_loads():
    """Nothing is skipped: where the build made no extension, its absence is what is checked."""
    built = importlib.util.find_spec("bandjax._built")
    missing = importlib.import_module("bandjax._built").MISSING if built else "left out"
    status = bandjax.native_status()
    if missing:
        assert status.startswith("native: unavailable (")
        assert not extension.available("cpu")
        return
    assert status.startswith("native: available (cpu: ")
    module = importlib.import_module("bandjax._ffi")
    assert module.FFI_API_VERSION <= RUNNING
    assert module.cpu_handlers()
    cuda = module.cuda_handlers()
    assert bool(cuda) == module.BUILT_WITH_CUDA
    assert not cuda or cuda.keys() >= module.cpu_handlers().keys()
    # A handler of the wrong version would make every operation fail from here on.
    assert float(jnp.arange(3.0).sum()) == 3


def status_of(isa):
    return in_a_new_process("import bandjax; print(bandjax.native_status())", BANDJAX_CPU_ISA=isa)


def test_the_instruction_set_that_the_environment_names():
    unknown = status_of("mmx")
    if extension.available("cpu"):
        refusal = re.fullmatch(
            r"native: unavailable \(bandjax._ffi does not load: BANDJAX_CPU_ISA must be one of "
            r"(.*), which were compiled and run on this processor, got mmx\)",
            unknown,
        )
        other = refusal[1].split(", ")[-1]  # The best comes first.
        assert status_of(other).startswith(f"native: available (cpu: {other}")
    else:
        assert unknown == status_of("portable") == bandjax.native_status()
