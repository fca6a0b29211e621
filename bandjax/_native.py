"""Transforms and multiply-sum by the native kernels; ``ffi/README.md`` has their interface.

Each operation is called through four wrappers: its rule for derivatives, one for ``vmap``, one for
partitioning over devices, and the choice by platform between the kernel and its equal in XLA.

Positions are measured from the middle of each axis, for there a real signal falls into an even and
an odd half. Spectra so differ by a phase for each frequency from those of
:mod:`bandjax._transform`, and the filter's positions make up for it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bandjax import _extension, spectral
from bandjax._bilinear import contractions
from bandjax._multiply import Product, complex_product
from bandjax._partition import Arrays, Operation, partitioned
from bandjax._transform import Precision, Samples, Spectrum

_TARGET = "bandjax_{}"

# The names of the kernels in a compiled program, for jax.export's list of trusted custom calls.
NATIVE_TARGETS = tuple(
    _TARGET.format(name)
    for name in ("analysis", "synthesis", "multiply_sum", "input_product", "filter_product")
)

# Beyond this, to sum the taps anew for each frequency costs more than a transform of the filter.
_MANY_TAPS = 64


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
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """The folded tables of the two axes."""
        first, second = (_table(self.samples, axis, self.compute_dtype) for axis in (0, 1))
        return first, second

    def einsum(self, pattern: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(pattern, a, b, precision=self.precision)

    def analyse(self, x: jax.Array) -> Arrays:
        """:func:`analysis` of two axes, without its rule for derivatives."""
        return _analysis_2d(self)(x, *map(jnp.asarray, self.tables))

    def synthesise(self, re: jax.Array, im: jax.Array) -> jax.Array:
        """:func:`synthesis` of two axes, without its rule for derivatives."""
        return _synthesis_2d(self)(re, im, *map(jnp.asarray, self.tables))[0]


@dataclasses.dataclass(frozen=True)
class NativeProduct:
    """All that is static about one multiply-sum.

    Attributes:
      samples: positions of the taps, shifted by what the centring of input and output leaves.
      groups: feature groups.
      precision: of the products.
    """

    samples: Samples
    groups: int
    precision: Precision = None

    def boxed(self, part: jax.Array) -> jax.Array:
        """``(k0, k1, N, C)`` to ``(*box, N, C)``."""
        return part.reshape(*self.samples.box, *part.shape[2:])

    @property
    def product(self) -> Product:
        """The multiply-sum of spectra, by XLA."""
        return Product(self.groups, self.precision)

    def transforms_filter(self, in_per_group: int, out: int) -> bool:
        """Whether the filter's spectrum is transformed as a whole, for it has many taps.

        Depthwise the kernel sums them for next to nothing.
        """
        depthwise = in_per_group == 1 and out == self.groups
        return math.prod(self.samples.shape) > _MANY_TAPS and not depthwise


def supports(dtype: Any, platform: str) -> bool:
    """Whether there are kernels for a platform that compute in ``dtype``."""
    wide = dtype == jnp.float64
    return not (wide and platform != "cpu") and _extension.available(_platform(platform))


def require(platform: str) -> None:
    """Raises RuntimeError, which says why and how to build them, if there are no kernels."""
    _extension.require(_platform(platform))


def _platform(platform: str) -> str:
    return "cuda" if platform == "gpu" else platform


def _by_platform(
    target: str, out_types: Any, twin: Operation, how: NativeProduct | None = None
) -> Operation:
    """The kernel on platforms that have it, ``twin`` on the others.

    ``out_types`` tells the results on a platform, those of ``twin`` and then the workspace; ``how``
    is that of a multiply-sum, whose handlers have attributes.
    """
    kernels = {}
    for platform in ("cpu", "cuda"):
        if _extension.available(platform):
            kernels[platform] = functools.partial(_call_kernel, platform, target, out_types, how)

    def call(*args: jax.Array) -> Arrays:
        return jax.lax.platform_dependent(*args, **kernels, default=twin)

    return call


def _call_kernel(
    platform: str, target: str, out_types: Any, how: NativeProduct | None, *args: jax.Array
) -> Arrays:
    results, workspace = out_types(platform, *args)
    # Under shard_map results vary over the devices as the first operand does.
    like = jax.typeof(args[0])
    shapes = [
        jax.ShapeDtypeStruct(
            r.shape,
            r.dtype,
            sharding=NamedSharding(like.sharding.mesh, PartitionSpec()),
            manual_axis_type=like.manual_axis_type,
        )
        for r in (*results, *workspace)
    ]
    attributes: dict[str, Any] = {}
    if how is not None:
        attributes["groups"] = np.int64(how.groups)
        if platform == "cuda":
            attributes["variant"] = "tiled"
            attributes["precision"] = _cuda_precision(how.precision, args[0].dtype)
    out = jax.ffi.ffi_call(_TARGET.format(target), shapes)(*args, **attributes)
    return tuple(out[: len(results)])


def _cuda_precision(precision: Precision, dtype: np.dtype[Any]) -> str:
    """How tensor cores multiply: as JAX's own products of that precision do on a GPU."""
    asked = jax.config.values["jax_default_matmul_precision"] if precision is None else precision
    name = str(getattr(asked, "name", asked)).lower()
    if name in ("highest", "high", "float32", "bfloat16_3x", "tensorfloat32_3x"):
        return "tf32x3"  # as accurate as float32
    return "bf16" if dtype == jnp.bfloat16 else "tf32"


# Transforms of the last two axes. A single axis gets one of length 1 in front; of three the first
# is transformed for itself.


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
    return partitioned(
        _by_platform("analysis", out_types, twin),
        "n h w c, p q, r s -> u v n c, u v n c",
        shared="nc",
        batching=_analyse_batch,
    )


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
    return partitioned(
        _by_platform("synthesis", out_types, twin),
        "u v n c, u v n c, p q, r s -> n h w c",
        shared="nc",
        batching=_synthesise_batch,
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
    return tuple(_split_batch(a, size) for a in f(x.reshape(-1, *x.shape[2:]), *tables))


def _synthesise_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    re, im = (
        _join_batch(a if b else _repeat(a, size))
        for a, b in zip(args[:2], batched[:2], strict=True)
    )
    (x,) = f(re, im, *args[2:])
    return (x.reshape(size, -1, *x.shape[1:]),)


def _join_batch(spectrum: jax.Array) -> jax.Array:
    """``(B, u, v, n, c)`` to ``(u, v, B * n, c)``."""
    spectrum = jnp.moveaxis(spectrum, 0, 2)
    return spectrum.reshape(*spectrum.shape[:2], -1, spectrum.shape[-1])


def _split_batch(spectrum: jax.Array, size: int) -> jax.Array:
    spectrum = spectrum.reshape(*spectrum.shape[:2], size, -1, spectrum.shape[-1])
    return jnp.moveaxis(spectrum, 2, 0)


def _repeat(a: jax.Array, size: int) -> jax.Array:
    return jnp.broadcast_to(a, (size, *a.shape))


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
    first, rest = _split_first(how)
    depth = samples.shape[0]
    planes = rest.analyse(x.reshape(n * depth, *x.shape[2:]))
    lines = (a.reshape(-1, 1, depth, c) for a in planes)  # (u1 * u2 * n, 1, depth, c)
    (a_re, a_im), (b_re, b_im) = map(first.analyse, lines)
    plus, minus = (a_re - b_im, a_im + b_re), (a_re + b_im, b_re - a_im)
    re, im = (
        _weighted(samples, jnp.concatenate([p[0], _negative(samples, m[0])]))
        .reshape(*samples.box, n, c)
        .astype(how.spectrum_dtype)
        for p, m in zip(plus, minus, strict=True)
    )
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
    first, rest = _split_first(how)
    re, im = (
        _weighted(samples, a.astype(how.compute_dtype)).reshape(samples.box[0], -1, c)
        for a in spectrum
    )
    limit = samples.modes[0]
    p_re, p_im = re[: limit + 1], im[: limit + 1]
    m_re, m_im = (_mirrored(samples, a) for a in (re, im))
    a_part, b_part = (p_re + m_re, p_im - m_im), (p_im + m_im, m_re - p_re)
    planes = (
        first.synthesise(*(a[None] for a in part)).reshape(
            *samples.box[1:], n * samples.shape[0], c
        )
        for part in (a_part, b_part)
    )
    return rest.synthesise(*planes).reshape(n, *samples.shape, c)


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


def _weighted(samples: Samples, spectrum: jax.Array) -> jax.Array:
    """The weight of the first of three axes, which its transform leaves out."""
    return spectrum / samples.grid[0] if samples.inverse else spectrum


def _negative(samples: Samples, spectrum: jax.Array) -> jax.Array:
    """Of frequencies 0, 1, ... those that are kept with a minus sign too, in the box's order."""
    negatives = samples.box[0] - samples.modes[0] - 1
    return jnp.flip(spectrum[1 : negatives + 1], 0)


def _mirrored(samples: Samples, spectrum: jax.Array) -> jax.Array:
    """The negative frequencies of a box under the positive ones; zero where there is none."""
    limit = samples.modes[0]
    negatives = jnp.flip(spectrum[limit + 1 :], 0)
    return jnp.pad(negatives, [(1, limit - len(negatives))] + [(0, 0)] * (spectrum.ndim - 1))


# The multiply-sum with the filter's spectrum made of the taps inside the kernel.


@functools.lru_cache(maxsize=1024)
def _filter_tables(samples: Samples, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """``outer`` (2, k0, t0) of the first axis and ``inner`` (2, k1, t1) of the others together."""
    outer, *others = (samples.matrix(axis) for axis in range(len(samples.grid)))
    inner = np.ones((1, 1))
    for matrix in others:
        inner = np.kron(inner, matrix)
    first, second = (np.stack([m.real, m.imag]).astype(dtype) for m in (outer, inner))
    return first, second


def _flat(samples: Samples, array: jax.Array, kept: bool) -> jax.Array:
    """Axes ``(first, others, ...)`` of a spectrum (``kept``) or of taps."""
    rank = len(samples.grid)
    first, *others = samples.box if kept else samples.shape
    return array.reshape(first, math.prod(others), *array.shape[rank:])


@functools.lru_cache(maxsize=1024)
def _product_operation(which: str, how: NativeProduct, dtype: np.dtype[Any]) -> Operation:
    product = how.product
    einsum = functools.partial(jnp.einsum, precision=how.precision)

    def filter_spectrum(w: jax.Array, outer: jax.Array, inner: jax.Array) -> Spectrum:
        re, im = (einsum("vt,stco->vsco", plane, w) for plane in inner)
        sums = functools.partial(einsum, "us,vsco->uvco")
        re0, im0 = outer
        return sums(re0, re) - sums(im0, im), sums(re0, im) + sums(im0, re)

    def multiply_sum_twin(re: jax.Array, im: jax.Array, *filters: jax.Array) -> Arrays:
        x, w = (re.astype(dtype), im.astype(dtype)), filter_spectrum(*filters)
        return complex_product(product, "ngc,cgo->ngo", x, w, conjugate=True)

    def input_product_twin(re: jax.Array, im: jax.Array, *filters: jax.Array) -> Arrays:
        w = filter_spectrum(*filters)
        return complex_product(product, "ngo,cgo->ngc", (re, im), w, conjugate=False)

    def filter_product_twin(*args: jax.Array) -> Arrays:
        x_re, x_im, y_re, y_im, outer, inner = args
        x = x_re.astype(dtype), x_im.astype(dtype)
        re, im = complex_product(product, "ngc,ngo->cgo", x, (y_re, y_im), conjugate=True)
        (re0, im0), (re1, im1) = outer, inner
        sums = functools.partial(einsum, "us,uvco->vsco")
        re, im = sums(re0, re) + sums(im0, im), sums(re0, im) - sums(im0, re)
        return (einsum("vt,vsco->stco", re1, re) + einsum("vt,vsco->stco", im1, im),)

    def spectrum_like(re: jax.Array, channels: int) -> Any:
        part = jax.ShapeDtypeStruct((*re.shape[:3], channels), dtype)
        return part, part

    def output_types(platform: str, re: jax.Array, im: Any, w: jax.Array, *_: Any) -> Any:
        return spectrum_like(re, w.shape[3]), ()

    def input_types(platform: str, re: jax.Array, im: Any, w: jax.Array, *_: Any) -> Any:
        return spectrum_like(re, w.shape[2] * how.groups), ()

    def taps_types(
        platform: str, x: jax.Array, _x: Any, y: jax.Array, _y: Any, outer: Any, inner: Any
    ) -> Any:
        t0, t1 = outer.shape[2], inner.shape[2]
        shape = (t0, t1, x.shape[3] // how.groups, y.shape[3])
        workspace = filter_workspace(platform, x.shape, y.shape[3], how.groups, (t0, t1), dtype)
        return (jax.ShapeDtypeStruct(shape, dtype),), (workspace,)

    operations: dict[str, tuple[Operation, Any]] = {
        "multiply_sum": (multiply_sum_twin, output_types),
        "input_product": (input_product_twin, input_types),
        "filter_product": (filter_product_twin, taps_types),
    }
    twin, out_types = operations[which]
    rule, summed = _RULES[which]
    # The channels of a group belong together, and a filter has the input channels of one alone.
    shared = "nco" if how.groups == 1 else "n"
    return partitioned(
        _by_platform(which, out_types, twin, how),
        rule.format(c="c" if how.groups == 1 else "i"),
        shared=shared,
        summed=[name for name in summed if name in shared],
        batching=functools.partial(_batch_product, which, how, dtype),
    )


_RULES = {  # and the axis that is summed over
    "multiply_sum": ("u v n c, u v n c, s t {c} o, p u s, q v t -> u v n o, u v n o", "c"),
    "input_product": ("u v n o, u v n o, s t {c} o, p u s, q v t -> u v n c, u v n c", "o"),
    "filter_product": ("u v n c, u v n c, u v n o, u v n o, p u s, q v t -> s t {c} o", "n"),
}


def _batch_product(
    which: str,
    how: NativeProduct,
    dtype: np.dtype[Any],
    f: Operation,
    size: int,
    batched: list[bool],
    args: Arrays,
) -> Arrays:
    """``vmap`` over the spectrum alone is a larger batch, over the filter more groups."""
    if which != "filter_product" and not batched[2]:
        re, im = (
            _join_batch(a if b else _repeat(a, size))
            for a, b in zip(args[:2], batched[:2], strict=True)
        )
        return tuple(_split_batch(a, size) for a in f(re, im, *args[2:]))
    # (Left to XLA, products with a batch dimension more fail to compile in jaxlib 0.10.)
    *arrays, outer, inner = args
    grouped = _product_operation(which, dataclasses.replace(how, groups=size * how.groups), dtype)
    joined = (
        jnp.moveaxis(a if b else _repeat(a, size), 0, 3).reshape(*a.shape[-4:-1], -1)
        for a, b in zip(arrays, batched, strict=False)
    )
    out = grouped(*joined, outer, inner)
    return tuple(jnp.moveaxis(a.reshape(*a.shape[:3], size, -1), 3, 0) for a in out)


def filter_workspace(
    platform: str,
    x_shape: tuple[int, ...],
    out: int,
    groups: int,
    taps: tuple[int, int],
    dtype: np.dtype[Any],
) -> jax.ShapeDtypeStruct:
    """The workspace of the filter's gradient: partial sums of the frequencies, or none.

    They are counted by ``SplitFilter`` of ffi/cpu/kernels.h and ffi/cuda/filter_workspace.h, from
    shapes alone: the order of all additions, and with it the result, is always the same.
    """
    k0, k1 = x_shape[:2]
    c, o, t = x_shape[3] // groups, out // groups, math.prod(taps)
    if min(k0, k1, c, o, t) == 0:
        parts = 0
    elif platform == "cuda":
        tiles = groups * math.ceil(c / 32) * math.ceil(o / 64) * math.ceil(t / (3 if t <= 3 else 9))
        parts = math.ceil(k0 * k1 / math.ceil(k0 * k1 / min(math.ceil(264 / tiles), k0 * k1)))
    else:
        depthwise = c == o == 1
        tiles = math.ceil(out / 64) if depthwise else groups * math.ceil(c / 64) * math.ceil(o / 64)
        wanted = math.ceil(16 / tiles)
        parts = min(wanted, k1)
        parts *= min(math.ceil(wanted / parts), k0)
    size = t * c * out * dtype.itemsize
    return jax.ShapeDtypeStruct((parts * size if parts > 1 else 0,), np.uint8)


def _multiply_sum(how: NativeProduct, x: Spectrum, w: jax.Array) -> Spectrum:
    """Returns the output's spectrum, two times ``(*box, N, O)``."""
    if how.transforms_filter(*w.shape[-2:]):
        x = x[0].astype(w.dtype), x[1].astype(w.dtype)
        w_spectrum = _filter_spectrum(how, w)
        return complex_product(how.product, "ngc,cgo->ngo", x, w_spectrum, conjugate=True)
    re, im = _call_product("multiply_sum", how, w.dtype, x, w)
    return how.boxed(re), how.boxed(im)


def _input_product(how: NativeProduct, y: Spectrum, w: jax.Array) -> Spectrum:
    """Returns the gradient of the input's spectrum, two times ``(*box, N, C)``."""
    y = y[0].astype(w.dtype), y[1].astype(w.dtype)
    if how.transforms_filter(*w.shape[-2:]):
        w_spectrum = _filter_spectrum(how, w)
        return complex_product(how.product, "ngo,cgo->ngc", y, w_spectrum, conjugate=False)
    re, im = _call_product("input_product", how, w.dtype, y, w)
    return how.boxed(re), how.boxed(im)


def _filter_product(how: NativeProduct, x: Spectrum, y: Spectrum) -> jax.Array:
    """Returns the taps' gradient ``(*taps, C / groups, O)``."""
    dtype = y[0].dtype
    per_group = x[0].shape[-1] // how.groups
    if how.transforms_filter(per_group, y[0].shape[-1]):
        x = x[0].astype(dtype), x[1].astype(dtype)
        ct = complex_product(how.product, "ngc,ngo->cgo", x, y, conjugate=True)
        return _filter_from_spectrum(how, ct)
    (w,) = _call_product("filter_product", how, dtype, x, y)
    return w.reshape(*how.samples.shape, *w.shape[2:])


def _filter_spectrum(how: NativeProduct, w: jax.Array) -> Spectrum:
    """The filter's spectrum, two times ``(*box, C / groups, O)``, by the transform of samples."""
    transform = Native(how.samples.centred, w.dtype, w.dtype, how.precision)
    samples = w.reshape(1, *how.samples.shape, -1)
    re, im = (a.reshape(*how.samples.box, *w.shape[-2:]) for a in analysis(transform, samples))
    return _turn(how, re, im)


def _filter_from_spectrum(how: NativeProduct, spectrum: Spectrum) -> jax.Array:
    """The transpose of :func:`_filter_spectrum`."""
    channels, dtype = spectrum[0].shape[-2:], spectrum[0].dtype
    transform = Native(how.samples.centred, dtype, dtype, how.precision)
    re, im = _turn(how, *spectrum, back=True)
    parts = (a.reshape(*how.samples.box, 1, -1) for a in (re, im))
    return synthesis(transform, tuple(parts)).reshape(*how.samples.shape, *channels)


def _turn(how: NativeProduct, re: jax.Array, im: jax.Array, *, back: bool = False) -> Spectrum:
    """From the centred spectrum of the taps to the one at their true positions, or back."""
    box = how.samples.box
    centred = how.samples.centred.shift
    if how.samples.shift == centred:
        return re, im
    turn = np.ones(box, np.complex128)
    for axis, (whole, part) in enumerate(zip(how.samples.shift, centred, strict=True)):
        one = spectral.fourier_matrix(
            how.samples.grid[axis],
            how.samples.modes[axis],
            range(1),
            shift=whole - part,
            half=axis == len(box) - 1,
        )
        turn = turn * one.reshape([-1 if i == axis else 1 for i in range(len(box))])
    turn = turn.conj() if back else turn
    c, s = (jnp.asarray(a[..., None, None], re.dtype) for a in (turn.real, turn.imag))
    return re * c - im * s, re * s + im * c


def _call_product(
    which: str, how: NativeProduct, dtype: Any, spectrum: Spectrum, other: Spectrum | jax.Array
) -> Arrays:
    arrays = [_flat(how.samples, a, kept=True) for a in spectrum]
    if isinstance(other, tuple):
        arrays += [_flat(how.samples, a, kept=True) for a in other]
    else:
        arrays.append(_flat(how.samples, other, kept=False))
    tables = map(jnp.asarray, _filter_tables(how.samples, np.dtype(dtype)))
    return _product_operation(which, how, np.dtype(dtype))(*arrays, *tables)


multiply_sum, input_product, filter_product = contractions(
    _multiply_sum, _input_product, _filter_product
)
