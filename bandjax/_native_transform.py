"""Truncated analysis and synthesis by the native kernels.

Positions are measured from the middle of each axis, for there a real signal falls into an even and
an odd half. Spectra so differ by a phase for each frequency from those of
:mod:`bandjax._transform`, and the filter's positions make up for it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._native import by_platform, join_batch, repeat, split_batch
from bandjax._partition import Arrays, Operation, partitioned
from bandjax._transform import Precision, Samples, Spectrum


@dataclasses.dataclass(frozen=True)
class Native:
    """All that is static about one transform.

    Attributes:
      samples: centred sample positions.
      sample_dtype: of the samples, float32, bfloat16 or float64.
      spectrum_dtype: of the spectrum; float64 goes with float64, any other with any other.
      precision: of the products where there is no kernel.
    """

    samples: Samples
    sample_dtype: np.dtype[Any]
    spectrum_dtype: np.dtype[Any]
    precision: Precision = None

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        """The type of tables and sums."""
        return np.dtype(np.float64 if self.sample_dtype == np.float64 else np.float32)

    @property
    def tables(self) -> tuple[np.ndarray, ...]:
        """The folded table of every axis."""
        axes = range(len(self.samples.grid))
        return tuple(_table(self.samples, axis, self.compute_dtype) for axis in axes)

    def attributes(self, platform: str, dtype: np.dtype[Any]) -> dict[str, Any]:
        """What tells the CPU's kernels of the tables, that they may transform without them."""
        if platform != "cpu":
            return {}
        grid, steps = self.samples.grid, (points.step for points in self.samples.points)
        return {
            "grid": np.array(grid, np.int64),
            "steps": np.fromiter(steps, np.int64),
            "inverse": self.samples.inverse,
        }

    def einsum(self, pattern: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(pattern, a, b, precision=self.precision)

    def analyse(self, x: jax.Array) -> Arrays:
        """:func:`analysis` of two or three axes, without its rule for derivatives."""
        return _analysis(self)(x, *map(jnp.asarray, self.tables))

    def synthesise(self, re: jax.Array, im: jax.Array) -> jax.Array:
        """:func:`synthesis` of two or three axes, without its rule for derivatives."""
        return _synthesis(self)(re, im, *map(jnp.asarray, self.tables))[0]


# Transforms of two or three axes; a single axis gets one of length 1 in front. Where the kernels
# have two at most, the first of three is transformed for itself.


@functools.lru_cache(maxsize=1024)
def _analysis(how: Native) -> Operation:
    solid = len(how.samples.grid) == 3
    return partitioned(
        _analysis_3d(how) if solid else _analysis_2d(how),
        "n d h w c, o l, p q, r s -> t u v n c, t u v n c"
        if solid
        else "n h w c, p q, r s -> u v n c, u v n c",
        shared="nc",
        batching=_analyse_batch,
    )


@functools.lru_cache(maxsize=1024)
def _synthesis(how: Native) -> Operation:
    solid = len(how.samples.grid) == 3
    return partitioned(
        _synthesis_3d(how) if solid else _synthesis_2d(how),
        "t u v n c, t u v n c, o l, p q, r s -> n d h w c"
        if solid
        else "u v n c, u v n c, p q, r s -> n h w c",
        shared="nc",
        batching=_synthesise_batch,
    )


@functools.lru_cache(maxsize=1024)
def _analysis_2d(how: Native) -> Operation:
    def twin(x: jax.Array, table0: jax.Array, table1: jax.Array) -> Arrays:
        x = x.astype(how.compute_dtype)
        re1, im1 = _matrix(table1, x.shape[2], box[1], half=True)
        re, im = (how.einsum("vw,nhwc->vnhc", m, x) for m in (re1, im1))
        re0, im0 = _matrix(table0, x.shape[1], box[0])
        product = functools.partial(how.einsum, "uh,vnhc->uvnc")
        re, im = product(re0, re) - product(im0, im), product(re0, im) + product(im0, re)
        return re.astype(how.spectrum_dtype), im.astype(how.spectrum_dtype)

    def out_types(platform: str, x: jax.Array, *_: jax.Array) -> Any:
        part = jax.ShapeDtypeStruct((*box, x.shape[0], x.shape[-1]), how.spectrum_dtype)
        return (part, part), ()

    box = how.samples.box
    return by_platform("analysis", out_types, twin, attributes=how.attributes)


@functools.lru_cache(maxsize=1024)
def _synthesis_2d(how: Native) -> Operation:
    def twin(re: jax.Array, im: jax.Array, table0: jax.Array, table1: jax.Array) -> Arrays:
        re, im = re.astype(how.compute_dtype), im.astype(how.compute_dtype)
        re0, im0 = _matrix(table0, shape[0], box[0])
        product = functools.partial(how.einsum, "uh,uvnc->vnhc")
        re, im = product(re0, re) + product(im0, im), product(re0, im) - product(im0, re)
        re1, im1 = _matrix(table1, shape[1], box[1], half=True)
        product = functools.partial(how.einsum, "vw,vnhc->nhwc")
        return ((product(re1, re) + product(im1, im)).astype(how.sample_dtype),)

    def out_types(platform: str, re: jax.Array, *_: jax.Array) -> Any:
        samples = (re.shape[2], *shape, re.shape[3])
        return (jax.ShapeDtypeStruct(samples, how.sample_dtype),), ()

    box, shape = how.samples.box, how.samples.shape
    return by_platform("synthesis", out_types, twin, attributes=how.attributes)


@functools.lru_cache(maxsize=1024)
def _analysis_3d(how: Native) -> Operation:
    def by_axes(x: jax.Array, table0: jax.Array, *tables: jax.Array) -> Arrays:
        n, depth, *_, c = x.shape
        first, rest = map(_analysis_2d, _split_first(how))
        planes = rest(x.reshape(n * depth, *x.shape[2:]), *tables)
        lines = (a.reshape(-1, 1, depth, c) for a in planes)  # (u1 * u2 * n, 1, depth, c)
        one = jnp.ones((1, 1), table0.dtype)
        (a_re, a_im), (b_re, b_im) = (first(a, one, table0) for a in lines)
        plus, minus = (a_re - b_im, a_im + b_re), (a_re + b_im, b_re - a_im)
        re, im = (
            jnp.concatenate([p[0], _negative(samples, m[0])])
            .reshape(*samples.box, n, c)
            .astype(how.spectrum_dtype)
            for p, m in zip(plus, minus, strict=True)
        )
        return re, im

    def out_types(platform: str, x: jax.Array, *_: jax.Array) -> Any:
        part = jax.ShapeDtypeStruct((*samples.box, x.shape[0], x.shape[-1]), how.spectrum_dtype)
        return (part, part), ()

    samples = how.samples
    return by_platform(
        "analysis", out_types, by_axes, attributes=how.attributes, platforms=("cpu",)
    )


@functools.lru_cache(maxsize=1024)
def _synthesis_3d(how: Native) -> Operation:
    def by_axes(re: jax.Array, im: jax.Array, table0: jax.Array, *tables: jax.Array) -> Arrays:
        n, c = re.shape[-2:]
        first, rest = map(_synthesis_2d, _split_first(how))
        one = jnp.ones((1, 1), table0.dtype)
        re, im = (a.astype(how.compute_dtype).reshape(samples.box[0], -1, c) for a in (re, im))
        limit = samples.modes[0]
        p_re, p_im = re[: limit + 1], im[: limit + 1]
        m_re, m_im = (_mirrored(samples, a) for a in (re, im))
        a_part, b_part = (p_re + m_re, p_im - m_im), (p_im + m_im, m_re - p_re)
        planes = (
            first(*(a[None] for a in part), one, table0)[0].reshape(
                *samples.box[1:], n * samples.shape[0], c
            )
            for part in (a_part, b_part)
        )
        return (rest(*planes, *tables)[0].reshape(n, *samples.shape, c),)

    def out_types(platform: str, re: jax.Array, *_: jax.Array) -> Any:
        shape = (re.shape[-2], *samples.shape, re.shape[-1])
        return (jax.ShapeDtypeStruct(shape, how.sample_dtype),), ()

    samples = how.samples
    return by_platform(
        "synthesis", out_types, by_axes, attributes=how.attributes, platforms=("cpu",)
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
    x, *tables = args
    return tuple(split_batch(a, size) for a in f(x.reshape(-1, *x.shape[2:]), *tables))


def _synthesise_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    re, im = (
        join_batch(a if b else repeat(a, size)) for a, b in zip(args[:2], batched[:2], strict=True)
    )
    (x,) = f(re, im, *args[2:])
    return (x.reshape(size, -1, *x.shape[1:]),)


@functools.lru_cache(maxsize=1024)
def _table(samples: Samples, axis: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Cosines, then sines, for the first half of an axis: ``(2 U + 1, ceil(samples / 2))``."""
    limit = samples.modes[axis]
    half = -(-len(samples.points[axis]) // 2)
    matrix = samples.matrix(axis)[: limit + 1, :half]
    return np.concatenate([matrix.real, -matrix.imag[1:]]).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def analysis(how: Native, x: jax.Array) -> Spectrum:
    """Maps samples ``(N, *spatial, C)`` to their centred spectrum, two times ``(*box, N, C)``."""
    samples = how.samples
    n, c = x.shape[0], x.shape[-1]
    if len(samples.grid) < 3:
        inner = dataclasses.replace(how, samples=_two_axes(samples))
        spectrum = inner.analyse(x.reshape(n, *inner.samples.shape, c))
        re, im = (a.reshape(*samples.box, n, c) for a in spectrum)
        return re, im
    re, im = how.analyse(x)
    return re, im


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def synthesis(how: Native, spectrum: Spectrum) -> jax.Array:
    """Maps a centred spectrum to samples ``(N, *spatial, C)``: the adjoint of :func:`analysis`."""
    samples = how.samples
    n, c = spectrum[0].shape[-2:]
    if len(samples.grid) < 3:
        inner = dataclasses.replace(how, samples=_two_axes(samples))
        re, im = (a.reshape(*inner.samples.box, n, c) for a in spectrum)
        return inner.synthesise(re, im).reshape(n, *samples.shape, c)
    return how.synthesise(*spectrum)


analysis.defvjp(lambda how, x: (analysis(how, x), None), lambda how, _, ct: (synthesis(how, ct),))
synthesis.defvjp(
    lambda how, spectrum: (synthesis(how, spectrum), None),
    lambda how, _, ct: (analysis(how, ct),),
)


def _two_axes(samples: Samples) -> Samples:
    if len(samples.grid) == 2:
        return samples
    return dataclasses.replace(
        samples,
        grid=(1, *samples.grid),
        modes=(0, *samples.modes),
        points=(range(1), *samples.points),
        shift=(0, *samples.shift),
    )


def _split_first(how: Native) -> tuple[Native, Native]:
    """The transforms of the first of three axes, and of the two others."""
    samples = how.samples

    def part(axes: slice, **more: Any) -> Samples:
        return Samples(
            samples.grid[axes],
            samples.modes[axes],
            samples.points[axes],
            shift=samples.shift[axes],
            **more,
        )

    between = how.compute_dtype
    first = Native(_two_axes(part(slice(0, 1))), between, between, how.precision)
    rest = Native(
        part(slice(1, 3), inverse=samples.inverse), how.sample_dtype, between, how.precision
    )
    return first, rest


def _negative(samples: Samples, spectrum: jax.Array) -> jax.Array:
    """Of frequencies 0, 1, ... those that are kept with a minus sign too, in the box's order."""
    negatives = samples.box[0] - samples.modes[0] - 1
    return jnp.flip(spectrum[1 : negatives + 1], 0)


def _mirrored(samples: Samples, spectrum: jax.Array) -> jax.Array:
    """The negative frequencies of a box under the positive ones; zero where there is none."""
    limit = samples.modes[0]
    negatives = jnp.flip(spectrum[limit + 1 :], 0)
    return jnp.pad(negatives, [(1, limit - len(negatives))] + [(0, 0)] * (spectrum.ndim - 1))
