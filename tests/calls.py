"""How the tests call the library."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import effort
import jax
import jax.numpy as jnp
import pytest
from configs import Config

import bandjax
from bandjax._conv.classes import CLASSES

STATUS = bandjax.native_status()
# Skipped, and said to be, where the kernels were not built.
native = pytest.mark.skipif(not STATUS.startswith("native: available"), reason=STATUS)

PLAIN = (*sorted({c.name for c in CLASSES if not c.native}), "auto")
# "native" is the method "dft" by the native kernels; "dft" is the same by XLA.
METHODS = (*PLAIN, pytest.param("native", marks=native))
# Those that run here, for a test that goes through them itself; test_native.py tells of a gap.
HERE = PLAIN if native.args[0] else (*PLAIN, "native")


def chosen(method: str) -> dict[str, Any]:
    """The arguments of ``band_conv``, or of a layer, for one of ``METHODS``."""
    if method == "native":
        return {"method": "dft", "implementation": "native"}
    return {"method": method, "implementation": "xla"} if method == "dft" else {"method": method}


def export_checks() -> list[jax.export.DisabledSafetyCheck]:
    """What ``jax.export`` must be told where a program may call the native kernels."""
    if native.args[0]:
        return []
    targets = importlib.import_module("bandjax._ffi").cpu_handlers()
    return [jax.export.DisabledSafetyCheck.custom_call(target) for target in targets]


def optimised(f: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    """``jax.jit`` with the compiler's usual effort, for tests of what it makes of a program."""
    return jax.jit(f, compiler_options=effort.USUAL, **more)


def value_and_gradients(
    f: Callable[..., jax.Array], x: Any, w: Any, cotangent: Any = None
) -> tuple[jax.Array, ...]:
    """``f(x, w)`` and the products of a cotangent (``f(x, w)`` itself if None) with its Jacobians.

    Compiled as one program: operation by operation each would be a compilation.
    """

    @jax.jit
    def run(x, w, cotangent):
        y, back = jax.vjp(f, x, w)
        return (y, *back(y if cotangent is None else cotangent))

    return run(x, w, cotangent)


def band_of(config: Config) -> Any:
    """The band that a configuration asks for."""
    if config.rate is not None:
        return bandjax.Compression(config.rate)
    if config.modes is not None:
        return bandjax.Modes(*config.modes)
    return None


def convolution(config: Config, band: Any, method: str, **more: Any) -> Callable[..., jax.Array]:
    """``band_conv`` of one configuration as a function of input and kernel."""

    def call(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return bandjax.band_conv(x, kernel, band, **chosen(method), **config.arguments(), **more)

    return call


def by_every_method(
    config: Config, band: Any, methods: Iterable[str] = HERE
) -> dict[str, jax.Array]:
    """The output by every method, in one compilation."""
    calls = {method: convolution(config, band, method) for method in methods}

    def run(x: jax.Array, kernel: jax.Array) -> dict[str, jax.Array]:
        return {method: call(x, kernel) for method, call in calls.items()}

    return jax.jit(run)(*map(jnp.asarray, config.arrays()))
