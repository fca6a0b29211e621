"""Truncated analysis and synthesis by the native kernels.

Positions are measured from the middle of each axis, for there a real signal falls into an even and
an odd half. Spectra so differ by a phase for each frequency from those of
:mod:`bandjax._spectra.transform`, and the filter's positions make up for it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._native.call import by_platform, join_batch, repeat, split_batch
from bandjax._native.epilogue import Epilogue, Finish
from bandjax._parallel.partition import Arrays, Operation, partitioned
from bandjax._spectra.partial_dft import PartialDFT
from bandjax._spectra.types import InputSpectrum, Precision
from bandjax._tables import tables


@dataclasses.dataclass(frozen=True)
class NativeTransformSpec:
    """All that is static about one transform.

    Attributes:
      samples: centred sample positions.
      sample_dtype: of the samples, float32, bfloat16 or float64.
      spectrum_dtype: of the spectrum; float64 goes with float64, any other with any other.
      precision: of the products where there is no kernel.
    """

    dft: PartialDFT
    sample_dtype: np.dtype[Any]
    spectrum_dtype: np.dtype[Any]
    precision: Precision = None

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        """The type of tables and sums."""
        return np.dtype(np.float64 if self.sample_dtype == np.float64 else np.float32)

    @property
    def tables(self) -> tuple[np.ndarray, ...]:
        """The folded table of every axis, without columns where the kernels do without it."""
        axes = range(len(self.dft.grid))
        return tuple(
            np.zeros((2 * self.dft.modes[axis] + 1, 0), self.compute_dtype)
            if _needs_no_table(self.dft, axis)
            else folded_table(self.dft, axis, self.compute_dtype)
            for axis in axes
        )

    def whole_tables(self, given: Sequence[jax.Array]) -> list[jax.Array]:
        """The tables, of which those without columns are made here."""
        return [
            table if table.shape[1] else _table_in_program(self.dft, axis, table.dtype)
            for axis, table in enumerate(given)
        ]

    def attributes(self, platform: str, dtype: np.dtype[Any]) -> dict[str, Any]:
        """What tells the CPU's kernels of the tables, that they may transform without them."""
        if platform != "cpu":
            return {}
        grid, steps = self.dft.grid, (points.step for points in self.dft.points)
        return {
            "grid": np.array(grid, np.int64),
            "steps": np.fromiter(steps, np.int64),
            "inverse": self.dft.inverse,
        }

    def einsum(self, pattern: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(pattern, a, b, precision=self.precision)

    def analyse(self, x: jax.Array) -> Arrays:
        """:func:`analysis` of two or three axes, without its rule for derivatives."""
        return _analysis(self)(x, *map(jnp.asarray, self.tables))

    def synthesise(self, re: jax.Array, im: jax.Array, finish: Finish | None = None) -> jax.Array:
        """:func:`synthesis` of two or three axes, without its rule for derivatives."""
        tables = map(jnp.asarray, self.tables)
        if finish is None:
            return _synthesis(self)(re, im, *tables)[0]
        epilogue = finish.epilogue
        own = epilogue.typed(finish.operands, self.compute_dtype, self.sample_dtype)
        return _finished_synthesis(self, epilogue)(re, im, *tables, *own)[0]


# Transforms of two or three axes; a single axis gets one of length 1 in front. Where the kernels
# have two at most, the first of three is transformed for itself.


@functools.lru_cache(maxsize=1024)
def _analysis(spec: NativeTransformSpec) -> Operation:
    solid = len(spec.dft.grid) == 3
    return partitioned(
        _analysis_3d(spec) if solid else analysis_2d(spec),
        "n d h w c, o l, p q, r s -> t u v n c, t u v n c"
        if solid
        else "n h w c, p q, r s -> u v n c, u v n c",
        shared="nc",
        batching=_analyse_batch,
    )


@functools.lru_cache(maxsize=1024)
def _synthesis(spec: NativeTransformSpec) -> Operation:
    local, rule = _local_synthesis(spec)
    return partitioned(local, rule, shared="nc", batching=_synthesise_batch)


def _local_synthesis(spec: NativeTransformSpec) -> tuple[Operation, str]:
    if len(spec.dft.grid) == 3:
        return _synthesis_3d(spec), "t u v n c, t u v n c, o l, p q, r s -> n d h w c"
    return synthesis_2d(spec), "u v n c, u v n c, p q, r s -> n h w c"


@functools.lru_cache(maxsize=1024)
def _finished_synthesis(spec: NativeTransformSpec, epilogue: Epilogue) -> Operation:
    local, rule = _local_synthesis(spec)
    return epilogue.operation(
        "synthesis",
        lambda platform, *args: _sample_types(spec, *args),
        _synthesis(spec),
        local=local,
        rule=rule,
        shared="nc",
        attributes=spec.attributes,
    )


def _sample_types(spec: NativeTransformSpec, re: jax.Array, *_: jax.Array) -> Any:
    shape = (re.shape[-2], *spec.dft.shape, re.shape[-1])
    return (jax.ShapeDtypeStruct(shape, spec.sample_dtype),), ()


@functools.lru_cache(maxsize=1024)
def analysis_2d(spec: NativeTransformSpec) -> Operation:
    """Analysis of two axes: the kernel, and its XLA fallback."""

    def fallback(x: jax.Array, table0: jax.Array, table1: jax.Array) -> Arrays:
        x = x.astype(spec.compute_dtype)
        table0, table1 = spec.whole_tables([table0, table1])
        re1, im1 = _matrix(table1, x.shape[2], box[1], half=True)
        re, im = (spec.einsum("vw,nhwc->vnhc", m, x) for m in (re1, im1))
        re0, im0 = _matrix(table0, x.shape[1], box[0])
        product = functools.partial(spec.einsum, "uh,vnhc->uvnc")
        re, im = product(re0, re) - product(im0, im), product(re0, im) + product(im0, re)
        return re.astype(spec.spectrum_dtype), im.astype(spec.spectrum_dtype)

    def out_types(platform: str, x: jax.Array, *_: jax.Array) -> Any:
        part = jax.ShapeDtypeStruct((*box, x.shape[0], x.shape[-1]), spec.spectrum_dtype)
        return (part, part), ()

    box = spec.dft.box
    return by_platform("analysis", out_types, fallback, attributes=spec.attributes)


@functools.lru_cache(maxsize=1024)
def synthesis_2d(spec: NativeTransformSpec) -> Operation:
    """Synthesis of two axes: the kernel, and its XLA fallback."""

    def fallback(re: jax.Array, im: jax.Array, table0: jax.Array, table1: jax.Array) -> Arrays:
        re, im = re.astype(spec.compute_dtype), im.astype(spec.compute_dtype)
        table0, table1 = spec.whole_tables([table0, table1])
        re0, im0 = _matrix(table0, shape[0], box[0])
        product = functools.partial(spec.einsum, "uh,uvnc->vnhc")
        re, im = product(re0, re) + product(im0, im), product(re0, im) - product(im0, re)
        re1, im1 = _matrix(table1, shape[1], box[1], half=True)
        product = functools.partial(spec.einsum, "vw,vnhc->nhwc")
        return ((product(re1, re) + product(im1, im)).astype(spec.sample_dtype),)

    box, shape = spec.dft.box, spec.dft.shape
    return by_platform(
        "synthesis",
        lambda platform, *args: _sample_types(spec, *args),
        fallback,
        attributes=spec.attributes,
    )


@functools.lru_cache(maxsize=1024)
def _analysis_3d(spec: NativeTransformSpec) -> Operation:
    """Analysis of three axes: the CPU's kernel, or else one axis and then two."""

    def by_axes(x: jax.Array, *tables: jax.Array) -> Arrays:
        n, depth, *_, c = x.shape
        table0, *others = spec.whole_tables(tables)
        first, rest = map(analysis_2d, _split_first(spec))
        planes = rest(x.reshape(n * depth, *x.shape[2:]), *others)
        lines = (a.reshape(-1, 1, depth, c) for a in planes)  # (u1 * u2 * n, 1, depth, c)
        one = jnp.ones((1, 1), table0.dtype)
        (a_re, a_im), (b_re, b_im) = (first(a, one, table0) for a in lines)
        plus, minus = (a_re - b_im, a_im + b_re), (a_re + b_im, b_re - a_im)
        re, im = (
            jnp.concatenate([p[0], _negative(dft, m[0])])
            .reshape(*dft.box, n, c)
            .astype(spec.spectrum_dtype)
            for p, m in zip(plus, minus, strict=True)
        )
        return re, im

    def out_types(platform: str, x: jax.Array, *_: jax.Array) -> Any:
        part = jax.ShapeDtypeStruct((*dft.box, x.shape[0], x.shape[-1]), spec.spectrum_dtype)
        return (part, part), ()

    dft = spec.dft
    return by_platform(
        "analysis", out_types, by_axes, attributes=spec.attributes, platforms=("cpu",)
    )


@functools.lru_cache(maxsize=1024)
def _synthesis_3d(spec: NativeTransformSpec) -> Operation:
    """Synthesis of three axes: the CPU's kernel, or else one axis and then two."""

    def by_axes(re: jax.Array, im: jax.Array, *tables: jax.Array) -> Arrays:
        n, c = re.shape[-2:]
        table0, *others = spec.whole_tables(tables)
        first, rest = map(synthesis_2d, _split_first(spec))
        one = jnp.ones((1, 1), table0.dtype)
        re, im = (a.astype(spec.compute_dtype).reshape(dft.box[0], -1, c) for a in (re, im))
        limit = dft.modes[0]
        p_re, p_im = re[: limit + 1], im[: limit + 1]
        m_re, m_im = (_mirrored(dft, a) for a in (re, im))
        a_part, b_part = (p_re + m_re, p_im - m_im), (p_im + m_im, m_re - p_re)
        planes = (
            first(*(a[None] for a in part), one, table0)[0].reshape(
                *dft.box[1:], n * dft.shape[0], c
            )
            for part in (a_part, b_part)
        )
        return (rest(*planes, *others)[0].reshape(n, *dft.shape, c),)

    dft = spec.dft
    return by_platform(
        "synthesis",
        lambda platform, *args: _sample_types(spec, *args),
        by_axes,
        attributes=spec.attributes,
        platforms=("cpu",),
    )


def _matrix(
    table: jax.Array, count: int, kept: int, *, half: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The matrix ``(kept, count)`` that a folded table stands for: its real and imaginary part."""
    limit, odd = len(table) // 2, count // 2
    cosine = table[: limit + 1]
    sine = jnp.pad(table[limit + 1 :], [(1, 0), (0, 0)])
    cosine = jnp.concatenate([cosine, jnp.flip(cosine[:, :odd], 1)], 1)
    sine = jnp.concatenate([sine, -jnp.flip(sine[:, :odd], 1)], 1)
    if not half:
        negative = slice(1, kept - limit)
        cosine = jnp.concatenate([cosine, jnp.flip(cosine[negative], 0)])
        sine = jnp.concatenate([sine, -jnp.flip(sine[negative], 0)])
    return cosine, -sine


def _analyse_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    x, *rest = args
    n, *sizes = x.shape[1:]
    return tuple(split_batch(a, size, n) for a in f(x.reshape(size * n, *sizes), *rest))


def _synthesise_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    re, im = (
        join_batch(a if b else repeat(a, size)) for a, b in zip(args[:2], batched[:2], strict=True)
    )
    (x,) = f(re, im, *args[2:])
    return (x.reshape(size, args[0].shape[-2], *x.shape[1:]),)


@tables
def folded_table(dft: PartialDFT, axis: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Cosines, then sines, for the first half of an axis: ``(2 U + 1, ceil(samples / 2))``."""
    limit = dft.modes[axis]
    half = -(-len(dft.points[axis]) // 2)
    matrix = dft.matrix(axis)[: limit + 1, :half]
    return np.concatenate([matrix.real, -matrix.imag[1:]]).astype(dtype)


# A fast transform of a line, in multiply-adds of a table: for each point, and each point and pass.
_FAST_POINT, _FAST_PASS, _FAST_RADIX, _FAST_PRIMES = 6.0, 5.6, 7, (2, 3, 5, 7, 11, 13)
_LARGEST_TABLE = 1 << 18  # numbers
_LONGEST_CIRCLE = (1 << 16) - 1  # whose phases are products below 2 ** 32


def fast_line(points: int) -> float:
    """A fast transform in multiply-adds; infinite where the kernels have no radix for it."""
    if points < 2:
        return math.inf
    rest = points
    for prime in _FAST_PRIMES:
        while rest % prime == 0:
            rest //= prime
    if rest > 1:
        return math.inf
    return points * (_FAST_POINT + _FAST_PASS * max(1.0, math.log(points, _FAST_RADIX)))


def _needs_no_table(dft: PartialDFT, axis: int) -> bool:
    """Whether an axis has a large table, and the CPU's kernels a fast transform that is cheaper."""
    grid, limit, points = dft.grid[axis], dft.modes[axis], dft.points[axis]
    numbers = (2 * limit + 1) * len(points)
    if numbers <= 2 * _LARGEST_TABLE or limit == 0 or max(grid, len(points)) > _LONGEST_CIRCLE:
        return False
    fast = fast_line(grid // math.gcd(grid, points.step))
    return fast < numbers and jax.default_backend() == "cpu"


def _table_in_program(dft: PartialDFT, axis: int, dtype: Any) -> jax.Array:
    """What :func:`folded_table` returns, computed where it is needed."""
    grid, limit, points = dft.grid[axis], dft.modes[axis], dft.points[axis]
    shift = dft.shift[axis] if dft.shift else 0
    count = -(-len(points) // 2)
    # No array may be captured here. Twice the positions, modulo two turns, are integers.
    circle, step = np.uint32(2 * grid), np.uint32(2 * points.step % (2 * grid))
    first = np.uint32((2 * points.start + shift) % (2 * grid))
    positions = (jnp.arange(count, dtype=jnp.uint32) * step % circle + first) % circle
    u = jnp.arange(limit + 1, dtype=jnp.uint32)[:, None]
    angle = (u * positions[None, :] % circle).astype(dtype) * np.asarray(np.pi / grid, dtype)[()]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    if dft.inverse:
        pairs = (u > 0) & (2 * u < grid) & (axis == len(dft.grid) - 1)
        scale = jnp.where(pairs, 2 / grid, 1 / grid).astype(dtype)
        cosine, sine = cosine * scale, sine * scale
    return jnp.concatenate([cosine, sine[1:]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def analysis(spec: NativeTransformSpec, x: Float[Array, "N *spatial C"]) -> InputSpectrum:
    """Maps samples ``(N, *spatial, C)`` to their centred spectrum, two times ``(*box, N, C)``."""
    dft = spec.dft
    n, c = x.shape[0], x.shape[-1]
    if len(dft.grid) < 3:
        inner = dataclasses.replace(spec, dft=two_axes(dft))
        spectrum = inner.analyse(x.reshape(n, *inner.dft.shape, c))
        re, im = (a.reshape(*dft.box, n, c) for a in spectrum)
        return re, im
    re, im = spec.analyse(x)
    return re, im


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def synthesis(spec: NativeTransformSpec, spectrum: InputSpectrum) -> Float[Array, "N *spatial C"]:
    """Maps a centred spectrum to samples ``(N, *spatial, C)``: the adjoint of :func:`analysis`."""
    return finished_synthesis(spec, spectrum, None)


def finished_synthesis(
    spec: NativeTransformSpec, spectrum: InputSpectrum, finish: Finish | None
) -> Float[Array, "N *spatial C"]:
    """:func:`synthesis` and an epilogue, without a rule for derivatives."""
    dft = spec.dft
    n, c = spectrum[0].shape[-2:]
    if len(dft.grid) == 3:
        return spec.synthesise(*spectrum, finish)
    inner = dataclasses.replace(spec, dft=two_axes(dft))
    re, im = (a.reshape(*inner.dft.box, n, c) for a in spectrum)
    if finish is not None and finish.epilogue.residual:
        *bias, residual = finish.operands
        operands = (*bias, residual.reshape(n, *inner.dft.shape, c))
        finish = dataclasses.replace(finish, operands=operands)
    return inner.synthesise(re, im, finish).reshape(n, *dft.shape, c)


analysis.defvjp(
    lambda spec, x: (analysis(spec, x), None), lambda spec, _, ct: (synthesis(spec, ct),)
)
synthesis.defvjp(
    lambda spec, spectrum: (synthesis(spec, spectrum), None),
    lambda spec, _, ct: (analysis(spec, ct),),
)


def two_axes(dft: PartialDFT) -> PartialDFT:
    if len(dft.grid) == 2:
        return dft
    return dataclasses.replace(
        dft,
        grid=(1, *dft.grid),
        modes=(0, *dft.modes),
        points=(range(1), *dft.points),
        shift=(0, *dft.shift),
    )


def _split_first(spec: NativeTransformSpec) -> tuple[NativeTransformSpec, NativeTransformSpec]:
    """The transforms of the first of three axes, and of the two others."""
    dft = spec.dft

    def part(axes: slice, **more: Any) -> PartialDFT:
        return PartialDFT(
            dft.grid[axes],
            dft.modes[axes],
            dft.points[axes],
            shift=dft.shift[axes],
            **more,
        )

    between = spec.compute_dtype
    first = NativeTransformSpec(two_axes(part(slice(0, 1))), between, between, spec.precision)
    rest = NativeTransformSpec(
        part(slice(1, 3), inverse=dft.inverse), spec.sample_dtype, between, spec.precision
    )
    return first, rest


def _negative(dft: PartialDFT, spectrum: jax.Array) -> jax.Array:
    """Of frequencies 0, 1, ... those that are kept with a minus sign too, in the box's order."""
    negatives = dft.box[0] - dft.modes[0] - 1
    return jnp.flip(spectrum[1 : negatives + 1], 0)


def _mirrored(dft: PartialDFT, spectrum: jax.Array) -> jax.Array:
    """The negative frequencies of a box under the positive ones; zero where there is none."""
    limit = dft.modes[0]
    negatives = jnp.flip(spectrum[limit + 1 :], 0)
    return jnp.pad(negatives, [(1, limit - len(negatives))] + [(0, 0)] * (spectrum.ndim - 1))
