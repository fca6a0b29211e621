"""Analysis and synthesis of the windows of a map by the native kernels, without copies of them."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._native import transform
from bandjax._native.call import by_platform, join_batch, repeat, split_batch
from bandjax._native.epilogue import Epilogue, Finish
from bandjax._native.transform import NativeTransformSpec
from bandjax._parallel.partition import Arrays, Operation, partitioned
from bandjax._spectra.types import InputSpectrum


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Equal windows of a map, described for each of its two axes.

    Attributes:
      size: samples of the map.
      counts: windows.
      first: where the first begins; outside of the map there are zeros.
      step: from one window to the next.
    """

    size: tuple[int, int]
    counts: tuple[int, int]
    first: tuple[int, int]
    step: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class TiledSpec:
    """All that is static about one transform of a map's windows.

    Attributes:
      window: the transform of a window.
      tiling: where the windows are.
    """

    window: NativeTransformSpec
    tiling: Tiling

    @property
    def disjoint(self) -> bool:
        """Whether no sample is in two windows, and every sample in one."""
        tiling, sizes = self.tiling, self.window.dft.shape
        return tiling.step == sizes and all(
            first <= 0 and first + count * step >= size
            for first, count, step, size in zip(
                tiling.first, tiling.counts, tiling.step, tiling.size, strict=True
            )
        )

    def attributes(self, platform: str, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Those of the handler."""
        tiling = self.tiling
        numbers = *tiling.counts, *self.window.dft.shape, *tiling.first, *tiling.step
        return {**self.window.attributes(platform, dtype), "tiles": np.array(numbers, np.int64)}

    def windows(self, x: jax.Array) -> jax.Array:
        """Copies the windows out of maps ``(N, H, W, C)``: ``(N * windows, h, w, C)``."""
        tiling, sizes = self.tiling, self.window.dft.shape
        for axis in range(2):
            first, step = tiling.first[axis], tiling.step[axis]
            end = first + (tiling.counts[axis] - 1) * step + sizes[axis]
            before, after = max(0, -first), max(0, end - tiling.size[axis])
            at = 1 + 2 * axis
            x = jnp.pad(x, [(before, after) if i == at else (0, 0) for i in range(x.ndim)])
            starts = (
                first + before + step * jnp.arange(tiling.counts[axis])
            )  # No array is captured.
            places = starts[:, None] + jnp.arange(sizes[axis])[None]
            x = jnp.take(x, places, axis=at, mode="clip")
        x = jnp.swapaxes(x, 2, 3)
        return x.reshape(-1, *sizes, x.shape[-1])

    def maps_like(self, n: int, c: int, dtype: Any) -> jax.ShapeDtypeStruct:
        """Shape and type of the maps."""
        return jax.ShapeDtypeStruct((n, *self.tiling.size, c), dtype)


def _apart(spec: TiledSpec, part: jax.Array) -> jax.Array:
    """``(k0, k1, N * windows, C)`` to ``(k0, k1, N, windows, C)``."""
    return part.reshape(*part.shape[:2], -1, math.prod(spec.tiling.counts), part.shape[-1])


@functools.lru_cache(maxsize=1024)
def _analysis(spec: TiledSpec) -> Operation:
    """Analysis of the windows where they are: the kernel, and its XLA fallback."""

    def fallback(x: jax.Array, *tables: jax.Array) -> Arrays:
        parts = transform.analysis_2d(spec.window)(spec.windows(x), *tables)
        return tuple(_apart(spec, part) for part in parts)

    def out_types(platform: str, x: jax.Array, *_: jax.Array) -> Any:
        shape = (*spec.window.dft.box, x.shape[0], math.prod(spec.tiling.counts), x.shape[-1])
        part = jax.ShapeDtypeStruct(shape, spec.window.spectrum_dtype)
        return (part, part), ()

    def batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
        x, *tables = args
        n = x.shape[1]
        parts = f(x.reshape(size * n, *x.shape[2:]), *tables)
        flat = (part.reshape(*part.shape[:3], -1) for part in parts)
        return tuple(
            split_batch(a, size, n).reshape(size, *part.shape[:2], n, *part.shape[3:])
            for a, part in zip(flat, parts, strict=True)
        )

    call = by_platform(
        "analysis", out_types, fallback, attributes=spec.attributes, platforms=("cpu",)
    )
    rule = "n h w c, p q, r s -> u v n t c, u v n t c"
    return partitioned(call, rule, shared="nc", batching=batch)


@functools.lru_cache(maxsize=1024)
def _synthesis(spec: TiledSpec) -> Operation:
    """Synthesis of windows that are written to their places."""

    def batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
        given = (a if b else repeat(a, size) for a, b in zip(args[:2], batched[:2], strict=True))
        joined = (
            join_batch(a.reshape(*a.shape[:4], -1)).reshape(*a.shape[1:3], -1, *a.shape[-2:])
            for a in given
        )
        (x,) = f(*joined, *args[2:])
        return (x.reshape(size, -1, *x.shape[1:]),)

    return partitioned(_local_synthesis(spec), _SYNTHESIS, shared="nc", batching=batch)


_SYNTHESIS = "u v n t c, u v n t c, p q, r s -> n h w c"


@functools.lru_cache(maxsize=1024)
def _finished_synthesis(spec: TiledSpec, epilogue: Epilogue) -> Operation:
    return epilogue.operation(
        "synthesis",
        lambda platform, *args: _map_types(spec, *args),
        _synthesis(spec),
        local=_local_synthesis(spec),
        rule=_SYNTHESIS,
        shared="nc",
        attributes=spec.attributes,
    )


def _map_types(spec: TiledSpec, re: jax.Array, *_: jax.Array) -> Any:
    return (spec.maps_like(re.shape[2], re.shape[-1], spec.window.sample_dtype),), ()


def _local_synthesis(spec: TiledSpec) -> Operation:
    """The kernel, and its XLA fallback."""

    def fallback(re: jax.Array, im: jax.Array, *tables: jax.Array) -> Arrays:
        n, c = re.shape[2], re.shape[-1]
        flat = (part.reshape(*part.shape[:2], -1, c) for part in (re, im))
        (windows,) = transform.synthesis_2d(spec.window)(*flat, *tables)
        like = spec.maps_like(n, c, windows.dtype)
        return tuple(jax.linear_transpose(spec.windows, like)(windows))

    return by_platform(
        "synthesis",
        lambda platform, *args: _map_types(spec, *args),
        fallback,
        attributes=spec.attributes,
        platforms=("cpu",),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def analysis(spec: TiledSpec, x: Float[Array, "N H W C"]) -> InputSpectrum:
    """Maps ``(N, H, W, C)`` to the centred spectra of their windows, two ``(k0, k1, N * T, C)``."""
    re, im = _analysis(spec)(x, *map(jnp.asarray, spec.window.tables))
    return re.reshape(*re.shape[:2], -1, re.shape[-1]), im.reshape(*im.shape[:2], -1, im.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def synthesis(spec: TiledSpec, spectrum: InputSpectrum) -> Float[Array, "N H W C"]:
    """The adjoint of :func:`analysis`, where no sample is in two windows."""
    parts = (_apart(spec, part) for part in spectrum)
    return _synthesis(spec)(*parts, *map(jnp.asarray, spec.window.tables))[0]


def finished_synthesis(
    spec: TiledSpec, spectrum: InputSpectrum, finish: Finish
) -> Float[Array, "N H W C"]:
    """:func:`synthesis` and an epilogue, without a rule for derivatives."""
    parts = (_apart(spec, part) for part in spectrum)
    tables = map(jnp.asarray, spec.window.tables)
    epilogue, window = finish.epilogue, spec.window
    own = epilogue.typed(finish.operands, window.compute_dtype, window.sample_dtype)
    return _finished_synthesis(spec, epilogue)(*parts, *tables, *own)[0]


def _analysis_bwd(spec: TiledSpec, _: None, ct: InputSpectrum) -> tuple[jax.Array]:
    if spec.disjoint:
        return (synthesis(spec, ct),)
    windows = transform.synthesis(spec.window, ct)
    n = ct[0].shape[-2] // math.prod(spec.tiling.counts)
    like = spec.maps_like(n, windows.shape[-1], windows.dtype)
    return tuple(jax.linear_transpose(spec.windows, like)(windows))


analysis.defvjp(lambda spec, x: (analysis(spec, x), None), _analysis_bwd)
synthesis.defvjp(
    lambda spec, spectrum: (synthesis(spec, spectrum), None),
    lambda spec, _, ct: (analysis(spec, ct),),
)
