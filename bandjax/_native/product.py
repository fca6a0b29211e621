"""The multiply-sum by the native kernels: of a filter's taps, or of its spectrum."""

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
from bandjax._native.given import turned
from bandjax._native.transform import NativeTransformSpec, analysis, synthesis
from bandjax._parallel.partition import Arrays, Operation, partitioned
from bandjax._spectra.bilinear import contractions
from bandjax._spectra.partial_dft import PartialDFT, fourier_matrix
from bandjax._spectra.precision import matrix_unit_precision
from bandjax._spectra.product import ProductSpec, complex_product
from bandjax._spectra.types import (
    FilterSpectrum,
    InputSpectrum,
    OutputSpectrum,
    Precision,
    Spectrum,
    compute_dtype,
)
from bandjax._tables import tables

LANES = 8  # output channels that the kernels compute at once, at least
_MANY_SUMS = 28


def sums_of_taps(taps: Sequence[int], kept: int) -> float:
    """Multiply-adds that one coefficient of a filter's spectrum takes, summed from the taps.

    The first axis, of ``kept`` frequencies, is summed for each frequency, the others before.
    """
    first, *others = taps
    return first * (1 + math.prod(others) / kept)


def whole_filter(sums: float, outputs: int) -> bool:
    """Whether a transform of a whole group's filter costs less than so many sums."""
    return sums * (-(-outputs // LANES) * LANES) > _MANY_SUMS * outputs


@dataclasses.dataclass(frozen=True)
class NativeProductSpec:
    """All that is static about one multiply-sum.

    Attributes:
      dft: positions of the taps, shifted by what the centring of input and output leaves; of a
        filter that is given by its spectrum one position, that of its centre.
      groups: feature groups.
      precision: of the products.
      spectral: whether the filter is its spectrum, ``(2, *box, C / groups, O)``, in place of taps.
      of_real: whether a given spectrum is that of a real filter, see :mod:`given`.
      half: whether products of bfloat16 spectra are bfloat16 spectra. The CPU's kernels then round
        the filter's to that too, where the processor multiplies such numbers; sums are of float32.
    """

    dft: PartialDFT
    groups: int
    precision: Precision = None
    spectral: bool = False
    of_real: bool = False
    half: bool = False

    def boxed(self, part: jax.Array) -> jax.Array:
        """``(k0, k1, N, C)`` to ``(*box, N, C)``."""
        return part.reshape(*self.dft.box, *part.shape[2:])

    @property
    def product(self) -> ProductSpec:
        """The multiply-sum of spectra, by XLA."""
        return ProductSpec(self.groups, self.precision)

    def result_dtype(self, dtype: Any, *parts: jax.Array) -> np.dtype[Any]:
        """The type of a product's spectrum.

        Args:
          dtype: in which it is computed.
          *parts: the spectra of its operands.
        """
        half = self.half and all(part.dtype == jnp.bfloat16 for part in parts)
        return jnp.dtype(jnp.bfloat16 if half else dtype)

    def attributes(self, which: str, platform: str, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Those of the kernel ``which`` on a platform, for a first operand of ``dtype``."""
        attributes: dict[str, Any] = {"groups": np.int64(self.groups)}
        if platform == "cpu":
            # The spectra are those of real arrays, or products of such. A single axis has no
            # negative frequencies, the first of several has.
            # A spectrum that is given may be that of no real filter; its gradient has all numbers.
            given = self.spectral and (not self.of_real or which == "filter_product")
            attributes["hermitian"] = len(self.dft.grid) > 1 and not given
        if platform == "cuda":
            attributes["variant"] = "tiled"
            attributes["precision"] = matrix_unit_precision(self.precision, dtype)
        return attributes

    def transforms_filter(self, in_per_group: int, out: int) -> bool:
        """Whether the filter's spectrum is transformed as a whole, for to sum its taps is too much.

        Depthwise the kernel sums them for next to nothing.
        """
        outputs = out // self.groups
        if self.spectral or in_per_group == outputs == 1:
            return False
        return whole_filter(sums_of_taps(self.dft.shape, self.dft.box[0]), outputs)


@tables
def filter_tables(
    dft: PartialDFT, dtype: Any, spectral: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """``outer`` (2, k0, t0) of the first axis and ``inner`` (2, k1, t1) of the others together.

    Without columns they tell the kernels that the filter is a spectrum.
    """
    if spectral:
        sizes = dft.box[0], math.prod(dft.box[1:])
        empty_outer, empty_inner = (np.zeros((2, size, 0), dtype) for size in sizes)
        return empty_outer, empty_inner
    outer, *others = (dft.matrix(axis) for axis in range(len(dft.grid)))
    inner = np.ones((1, 1))
    for matrix in others:
        inner = np.kron(inner, matrix)
    first, second = (np.stack([m.real, m.imag]).astype(dtype) for m in (outer, inner))
    return first, second


def _flat(dft: PartialDFT, array: jax.Array, kept: bool) -> jax.Array:
    """Axes ``(first, others, ...)`` of a spectrum (``kept``) or of taps."""
    rank = len(dft.grid)
    first, *others = dft.box if kept else dft.shape
    return array.reshape(first, math.prod(others), *array.shape[rank:])


def _flat_filter(spec: NativeProductSpec, w: jax.Array) -> jax.Array:
    """A filter as the kernels take it: ``(t0, t1, c, o)``, or ``(2 k0, k1, c, o)``."""
    if not spec.spectral:
        return _flat(spec.dft, w, kept=False)
    first, *others = spec.dft.box
    return turned(spec.dft, w).reshape(2 * first, math.prod(others), *w.shape[-2:])


@functools.lru_cache(maxsize=1024)
def kernel(
    which: str, spec: NativeProductSpec, dtype: np.dtype[Any], stored: np.dtype[Any]
) -> Operation:
    """One of the three contractions of flat arrays: the kernel, or its XLA fallback.

    Args:
      which: "multiply_sum", "input_product" or "filter_product".
      spec: all that is static.
      dtype: of the taps, and in which to compute.
      stored: of a spectrum that results.
    """
    product = spec.product
    einsum = functools.partial(jnp.einsum, precision=spec.precision)

    def filter_spectrum(w: jax.Array, outer: jax.Array, inner: jax.Array) -> Spectrum:
        if spec.spectral:
            re, im = jnp.split(w.astype(dtype), 2)
            return re, im
        re, im = (einsum("vt,stco->vsco", plane, w) for plane in inner)
        sums = functools.partial(einsum, "us,vsco->uvco")
        re0, im0 = outer
        return sums(re0, re) - sums(im0, im), sums(re0, im) + sums(im0, re)

    def multiply_sum_fallback(re: jax.Array, im: jax.Array, *filters: jax.Array) -> Arrays:
        x, w = (re.astype(dtype), im.astype(dtype)), filter_spectrum(*filters)
        y_re, y_im = complex_product(product, "ngc,cgo->ngo", x, w, conjugate=True)
        return y_re.astype(stored), y_im.astype(stored)

    def input_product_fallback(re: jax.Array, im: jax.Array, *filters: jax.Array) -> Arrays:
        y, w = (re.astype(dtype), im.astype(dtype)), filter_spectrum(*filters)
        x_re, x_im = complex_product(product, "ngo,cgo->ngc", y, w, conjugate=False)
        return x_re.astype(stored), x_im.astype(stored)

    def filter_product_fallback(*args: jax.Array) -> Arrays:
        x_re, x_im, y_re, y_im, outer, inner = args
        x, y = (x_re.astype(dtype), x_im.astype(dtype)), (y_re.astype(dtype), y_im.astype(dtype))
        re, im = complex_product(product, "ngc,ngo->cgo", x, y, conjugate=True)
        if spec.spectral:
            return (jnp.concatenate([re, im]),)
        (re0, im0), (re1, im1) = outer, inner
        sums = functools.partial(einsum, "us,uvco->vsco")
        re, im = sums(re0, re) + sums(im0, im), sums(re0, im) - sums(im0, re)
        return (einsum("vt,vsco->stco", re1, re) + einsum("vt,vsco->stco", im1, im),)

    def spectrum_like(re: jax.Array, channels: int) -> Any:
        part = jax.ShapeDtypeStruct((*re.shape[:3], channels), stored)
        return part, part

    def output_types(platform: str, re: jax.Array, im: Any, w: jax.Array, *_: Any) -> Any:
        return spectrum_like(re, w.shape[3]), ()

    def input_types(platform: str, re: jax.Array, im: Any, w: jax.Array, *_: Any) -> Any:
        return spectrum_like(re, w.shape[2] * spec.groups), ()

    def taps_types(
        platform: str, x: jax.Array, _x: Any, y: jax.Array, _y: Any, outer: Any, inner: Any
    ) -> Any:
        t0, t1 = outer.shape[2], inner.shape[2]
        rows = (2 * x.shape[0], x.shape[1]) if spec.spectral else (t0, t1)
        shape = (*rows, x.shape[3] // spec.groups, y.shape[3])
        workspace = filter_workspace(platform, x.shape, y.shape[3], spec.groups, (t0, t1), dtype)
        return (jax.ShapeDtypeStruct(shape, dtype),), (workspace,)

    operations: dict[str, tuple[Operation, Any]] = {
        "multiply_sum": (multiply_sum_fallback, output_types),
        "input_product": (input_product_fallback, input_types),
        "filter_product": (filter_product_fallback, taps_types),
    }
    fallback, out_types = operations[which]
    attributes = functools.partial(spec.attributes, which)
    return by_platform(which, out_types, fallback, attributes=attributes)


@functools.lru_cache(maxsize=1024)
def _product_operation(
    which: str, spec: NativeProductSpec, dtype: np.dtype[Any], stored: np.dtype[Any]
) -> Operation:
    """The same, with its rules for sharding and ``vmap``."""
    rule, summed = _RULES[which]
    # The channels of a group belong together, and a filter has the input channels of one alone.
    shared = "nco" if spec.groups == 1 else "n"
    return partitioned(
        kernel(which, spec, dtype, stored),
        rule.format(c="c" if spec.groups == 1 else "i", w="a b" if spec.spectral else "s t"),
        shared=shared,
        summed=[name for name in summed if name in shared],
        batching=functools.partial(_batch_product, which, spec, dtype, stored),
    )


_RULES = {  # and the axis that is summed over
    "multiply_sum": ("u v n c, u v n c, {w} {c} o, p u s, q v t -> u v n o, u v n o", "c"),
    "input_product": ("u v n o, u v n o, {w} {c} o, p u s, q v t -> u v n c, u v n c", "o"),
    "filter_product": ("u v n c, u v n c, u v n o, u v n o, p u s, q v t -> {w} {c} o", "n"),
}


def _batch_product(
    which: str,
    spec: NativeProductSpec,
    dtype: np.dtype[Any],
    stored: np.dtype[Any],
    f: Operation,
    size: int,
    batched: list[bool],
    args: Arrays,
) -> Arrays:
    """``vmap`` over the spectrum alone is a larger batch, over the filter more groups."""
    if which != "filter_product" and not batched[2]:
        re, im = (
            join_batch(a if b else repeat(a, size))
            for a, b in zip(args[:2], batched[:2], strict=True)
        )
        n = args[0].shape[-2]
        return tuple(split_batch(a, size, n) for a in f(re, im, *args[2:]))
    # (Left to XLA, products with a batch dimension more fail to compile in jaxlib 0.10.)
    *arrays, outer, inner = args
    spec = dataclasses.replace(spec, groups=size * spec.groups)
    grouped = _product_operation(which, spec, dtype, stored)
    joined = (
        jnp.moveaxis(a if b else repeat(a, size), 0, 3).reshape(*a.shape[-4:-1], -1)
        for a, b in zip(arrays, batched, strict=False)
    )
    out = grouped(*joined, outer, inner)
    return tuple(jnp.moveaxis(a.reshape(*a.shape[:3], size, -1), 3, 0) for a in out)


def filter_workspace(
    platform: str,
    x_shape: tuple[Any, ...],
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


def _multiply_sum(
    spec: NativeProductSpec, x: InputSpectrum, w: Float[Array, "*taps c O"]
) -> OutputSpectrum:
    """Returns the output's spectrum, two times ``(*box, N, O)``."""
    if spec.transforms_filter(*w.shape[-2:]):
        x = x[0].astype(w.dtype), x[1].astype(w.dtype)
        w_spectrum = _filter_spectrum(spec, w)
        return complex_product(spec.product, "ngc,cgo->ngo", x, w_spectrum, conjugate=True)
    dtype = compute_dtype(w.dtype)
    re, im = _call_product("multiply_sum", spec, dtype, spec.result_dtype(dtype, *x), x, w)
    return spec.boxed(re), spec.boxed(im)


def _input_product(
    spec: NativeProductSpec, y: OutputSpectrum, w: Float[Array, "*taps c O"]
) -> InputSpectrum:
    """Returns the gradient of the input's spectrum, two times ``(*box, N, C)``."""
    stored = spec.result_dtype(w.dtype, *y)
    if stored == w.dtype or spec.transforms_filter(*w.shape[-2:]):
        y = y[0].astype(w.dtype), y[1].astype(w.dtype)
    if spec.transforms_filter(*w.shape[-2:]):
        w_spectrum = _filter_spectrum(spec, w)
        return complex_product(spec.product, "ngo,cgo->ngc", y, w_spectrum, conjugate=False)
    re, im = _call_product("input_product", spec, w.dtype, stored, y, w)
    return spec.boxed(re), spec.boxed(im)


def _filter_product(
    spec: NativeProductSpec, x: InputSpectrum, y: OutputSpectrum
) -> Float[Array, "*taps c O"]:
    """Returns the taps' gradient ``(*taps, C / groups, O)``."""
    dtype = compute_dtype(y[0].dtype)
    per_group = x[0].shape[-1] // spec.groups
    whole = spec.transforms_filter(per_group, y[0].shape[-1])
    if whole or spec.result_dtype(dtype, *x, *y) == dtype:
        y = y[0].astype(dtype), y[1].astype(dtype)
    if whole:
        x = x[0].astype(dtype), x[1].astype(dtype)
        ct = complex_product(spec.product, "ngc,ngo->cgo", x, y, conjugate=True)
        return _filter_from_spectrum(spec, ct)
    (w,) = _call_product("filter_product", spec, dtype, dtype, x, y)
    if spec.spectral:
        return turned(spec.dft, w.reshape(2, *spec.dft.box, *w.shape[2:]), back=True)
    return w.reshape(*spec.dft.shape, *w.shape[2:])


def _filter_spectrum(spec: NativeProductSpec, w: Float[Array, "*taps c O"]) -> FilterSpectrum:
    """The filter's spectrum, two times ``(*box, C / groups, O)``, by the transform of samples."""
    transform = NativeTransformSpec(spec.dft.centred, w.dtype, w.dtype, spec.precision)
    dft = w.reshape(1, *spec.dft.shape, -1)
    re, im = (a.reshape(*spec.dft.box, *w.shape[-2:]) for a in analysis(transform, dft))
    return _turn(spec, re, im)


def _filter_from_spectrum(
    spec: NativeProductSpec, spectrum: FilterSpectrum
) -> Float[Array, "*taps c O"]:
    """The transpose of :func:`_filter_spectrum`."""
    channels, dtype = spectrum[0].shape[-2:], spectrum[0].dtype
    transform = NativeTransformSpec(spec.dft.centred, dtype, dtype, spec.precision)
    re, im = _turn(spec, *spectrum, back=True)
    parts = (a.reshape(*spec.dft.box, 1, -1) for a in (re, im))
    return synthesis(transform, tuple(parts)).reshape(*spec.dft.shape, *channels)


def _turn(spec: NativeProductSpec, re: jax.Array, im: jax.Array, *, back: bool = False) -> Spectrum:
    """From the centred spectrum of the taps to the one at their true positions, or back."""
    box = spec.dft.box
    centred = spec.dft.centred.shift
    if spec.dft.shift == centred:
        return re, im
    turn = np.ones(box, np.complex128)
    for axis, (whole, part) in enumerate(zip(spec.dft.shift, centred, strict=True)):
        one = fourier_matrix(
            spec.dft.grid[axis],
            spec.dft.modes[axis],
            range(1),
            shift=whole - part,
            half=axis == len(box) - 1,
        )
        turn = turn * one.reshape([-1 if i == axis else 1 for i in range(len(box))])
    turn = turn.conj() if back else turn
    c, s = (jnp.asarray(a[..., None, None], re.dtype) for a in (turn.real, turn.imag))
    return re * c - im * s, re * s + im * c


def _call_product(
    which: str,
    spec: NativeProductSpec,
    dtype: Any,
    stored: Any,
    spectrum: Spectrum,
    other: Spectrum | jax.Array,
) -> Arrays:
    """Calls a kernel with flat arrays, and its tables.

    Args:
      which: of the three contractions.
      spec: all that is static.
      dtype: in which to compute.
      stored: of a spectrum that results.
      spectrum: the first operand.
      other: the second one, or the filter.
    """
    arrays = [_flat(spec.dft, a, kept=True) for a in spectrum]
    if isinstance(other, tuple):
        arrays += [_flat(spec.dft, a, kept=True) for a in other]
    else:
        arrays.append(_flat_filter(spec, other))
    tables = map(jnp.asarray, filter_tables(spec.dft, np.dtype(dtype), spec.spectral))
    operation = _product_operation(which, spec, np.dtype(dtype), np.dtype(stored))
    return operation(*arrays, *tables)


multiply_sum, input_product, filter_product = contractions(
    _multiply_sum, _input_product, _filter_product
)
