"""Settings for the tests of the experiments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from matplotlib.figure import Figure

from experiments.settings.compiler import quick_jit, quick_options


@pytest.fixture(scope="module", autouse=True)
def _standard_promotion() -> Iterator[None]:
    """Optax's Adam multiplies a float by an integer count: strict promotion would refuse it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs compiled once, whether by this process or by one that a test starts.

    A job and what resumes it have many in common. Each worker has a folder of its own: JAX warns,
    and here that is an error, where a program is read that another process is still writing.
    """
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # It looks at its settings once.
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def quick_compile() -> Iterator[None]:
    """Programs of a module's tests that take less time to compile, and more to run.

    Those of processes that the tests start, too: to the same bits.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in ("training.network", "benchmarks.steps", "benchmarks.loop"):
            patch.setattr(f"experiments.{module}._jit", quick_jit)
        patch.setattr("experiments.benchmarks.candidates._compiler_options", quick_options())
        flags = [f"--{name}={str(value).lower()}" for name, value in quick_options().items()]
        patch.setenv("XLA_FLAGS", " ".join([os.environ["XLA_FLAGS"], *flags]))
        yield


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that nobody looks at take longer to draw than a small network to train."""

    def save(figure: Figure, file: str | Path, **_: object) -> None:
        Path(file).write_bytes(b"no picture")

    monkeypatch.setattr(Figure, "savefig", save)
