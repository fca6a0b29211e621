"""The handlers of the native kernels, one at a time, against literal sums; and what they refuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import STATUS, native
from choices import FULL, crossed

from bandjax._native import product

ASKED_FOR = os.environ.get("BANDJAX_CPU_ISA", "")
# The type of samples and spectra, that of sums, and the relative error.
TYPES = [
    pytest.param(jnp.float32, jnp.float32, 1e-5, id="float32"),
    pytest.param(jnp.float64, jnp.float64, 1e-12, id="float64"),
    pytest.param(jnp.bfloat16, jnp.float32, 2.0**-8, id="bfloat16"),
]
# --------------------------------------------------------------------- the handlers, one at a time


def shape(*sizes, dtype):
    return jax.ShapeDtypeStruct(sizes, dtype)


def call(name, results, *arguments, **attributes):
    out = jax.ffi.ffi_call(f"bandjax_{name}", results)(*arguments, **attributes)
    return [np.asarray(a).astype(np.float64) for a in jax.tree.leaves(out)]


def draw(rng, dtype, *sizes):
    """Random numbers as a kernel gets them, and the same numbers in double precision."""
    array = jnp.asarray(rng.normal(size=sizes), dtype)
    return array, np.asarray(array).astype(np.float64)


def matrix(table, n, kept=None):
    """The matrix ``(kept, n)`` of one axis that a folded table stands for."""
    limit, half = len(table) // 2, -(-n // 2)
    place = np.minimum(np.arange(n), n - 1 - np.arange(n))
    sign = np.sign(n - 1 - 2 * np.arange(n))
    rows = table[: limit + 1, place].astype(complex)
    rows[1:] -= 1j * sign * table[limit + 1 :, place]
    assert table.shape == (2 * limit + 1, half)
    if kept is None:
        return rows
    return np.array([rows[u] if u <= limit else rows[kept - u].conj() for u in range(kept)])


# n, h, w, c, U0, U1, and whether the Nyquist frequency of axis 0 is kept once.
TRANSFORMS = [
    (2, 8, 8, 3, 2, 3, False),
    (1, 7, 13, 16, 3, 6, False),
    (3, 11, 6, 17, 5, 2, True),
    (2, 1, 19, 33, 0, 9, False),
    (1, 5, 1, 100, 2, 0, False),
    (4, 2, 3, 1, 0, 0, False),
    (2, 4, 5, 64, 2, 2, True),
    (1, 3, 4, 65, 1, 3, True),
    (0, 5, 6, 4, 2, 1, False),
    (1, 300, 2, 65, 1, 16, False),
]
TRANSFORMS_OF_TYPES = crossed([pytest.param(*sizes) for sizes in TRANSFORMS], TYPES, strength=1)


def transform_tables(rng, dtype, h, w, u0, u1):
    table0, exact0 = draw(rng, dtype, 2 * u0 + 1, -(-h // 2))
    table1, exact1 = draw(rng, dtype, 2 * u1 + 1, -(-w // 2))
    return (table0, table1), (exact0, exact1)


@native
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("n", "h", "w", "c", "u0", "u1", "nyquist", "stored", "summed", "bound"),
    TRANSFORMS_OF_TYPES,
)
def test_handler_of_transforms(n, h, w, c, u0, u1, nyquist, stored, summed, bound):
    rng = np.random.default_rng((n, h, w, c))
    k0, k1 = 2 * u0 + 1 - nyquist, u1 + 1
    tables, exact = transform_tables(rng, summed, h, w, u0, u1)
    both = matrix(exact[0], h, k0)[:, None, :, None] * matrix(exact[1], w)[:, None]

    samples, x = draw(rng, stored, n, h, w, c)
    part = shape(k0, k1, n, c, dtype=stored)
    re, im = call("analysis", (part, part), samples, *tables)
    expected = np.einsum("uvhw,nhwc->uvnc", both, x)
    (re_in, y_re), (im_in, y_im) = (draw(rng, stored, k0, k1, n, c) for _ in range(2))
    (y,) = call("synthesis", shape(n, h, w, c, dtype=stored), re_in, im_in, *tables)
    back = np.einsum("uvhw,uvnc->nhwc", both.conj(), y_re + 1j * y_im).real
    for actual, wanted in ((re, expected.real), (im, expected.imag), (y, back)):
        assert actual.shape == wanted.shape
        scale = np.abs(wanted).max(initial=0)
        assert np.abs(actual - wanted).max(initial=0) <= bound * scale


# k0, k1, n, channels of a group in and out, groups, t0, t1.
PRODUCTS = [
    (3, 2, 2, 3, 5, 1, 3, 3),
    (1, 9, 4, 7, 16, 1, 1, 5),
    (4, 5, 3, 17, 33, 1, 2, 3),
    (2, 2, 5, 100, 70, 1, 3, 1),
    (2, 3, 2, 5, 3, 4, 3, 2),
    (5, 4, 3, 1, 1, 67, 3, 3),
    (3, 3, 2, 1, 4, 6, 2, 2),
    (3, 3, 2, 4, 1, 6, 2, 2),
    (2, 20, 3, 2, 3, 1, 2, 2),
    (1, 2, 300, 5, 6, 1, 1, 2),
    (2, 1, 2, 300, 2, 1, 1, 1),
    (2, 2, 2, 20, 30, 1, 31, 2),
    (2, 2, 1, 1, 1, 1, 1, 1),
    (2, 3, 0, 6, 5, 1, 2, 2),
    (3, 2, 41, 20, 37, 1, 3, 3),
    (2, 3, 18, 34, 17, 2, 3, 1),
]
# The types of the input's spectrum, of the output's, that of sums, and the relative error. Products
# of which both are bfloat16 may round the filter's spectrum to that as well.
PRODUCT_TYPES = [
    pytest.param(jnp.float32, jnp.float32, jnp.float32, 1e-5, id="float32"),
    pytest.param(jnp.float64, jnp.float64, jnp.float64, 1e-12, id="float64"),
    pytest.param(jnp.bfloat16, jnp.float32, jnp.float32, 1e-5, id="bfloat16 input"),
    pytest.param(jnp.bfloat16, jnp.bfloat16, jnp.float32, 2.0**-7, id="bfloat16"),
]
# Every type with and without symmetry; every size once.
PRODUCTS_OF_TYPES = crossed(
    [pytest.param(*sizes) for sizes in PRODUCTS],
    [
        pytest.param(hermitian, *kind.values, id=f"{hermitian}-{kind.id}")
        for hermitian in (False, True)
        for kind in PRODUCT_TYPES
    ],
    strength=1,
)


def conjugate_rows(re, im, column=slice(None)):
    """Row ``k - u`` made the conjugate of row ``u``, and row 0 real, in one column or in all."""
    re, im = np.array(re), np.array(im)
    im[0, column] = 0
    for u in range(len(re) // 2 + 1, len(re)):
        re[u, column], im[u, column] = re[len(re) - u, column], -im[len(re) - u, column]
    return re, im


def real_first_column(table):
    table = np.array(table)
    table[1, 0] = 0
    return table


@native
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    (
        *("k0", "k1", "n", "c", "o", "groups", "t0", "t1"),
        *("hermitian", "x_type", "y_type", "summed", "bound"),
    ),
    PRODUCTS_OF_TYPES,
)
def test_handler_of_products(
    k0, k1, n, c, o, groups, t0, t1, x_type, y_type, summed, bound, hermitian
):
    rng = np.random.default_rng((k0, k1, n, c, o))
    outer, exact_outer = draw(rng, summed, 2, k0, t0)
    inner, exact_inner = draw(rng, summed, 2, k1, t1)
    taps, w = draw(rng, summed, t0, t1, c, groups * o)
    (x_re, x_real), (x_im, x_imag) = (draw(rng, x_type, k0, k1, n, groups * c) for _ in range(2))
    (y_re, y_real), (y_im, y_imag) = (draw(rng, y_type, k0, k1, n, groups * o) for _ in range(2))
    attributes = {"groups": np.int64(groups), "hermitian": hermitian}
    if hermitian:  # As of real signals: half of the rows, of column 0, are the others' conjugates.
        inner, exact_inner = real_first_column(inner), real_first_column(exact_inner)
        outer, exact_outer = (np.stack(conjugate_rows(*a)) for a in (outer, exact_outer))
        (x_re, x_im), (x_real, x_imag) = (
            conjugate_rows(*pair, column=0) for pair in ((x_re, x_im), (x_real, x_imag))
        )
        (y_re, y_im), (y_real, y_imag) = (
            conjugate_rows(*pair, column=0) for pair in ((y_re, y_im), (y_real, y_imag))
        )

    factor = exact_outer[0] + 1j * exact_outer[1], exact_inner[0] + 1j * exact_inner[1]
    filters = np.einsum("us,vt,stcgo->uvcgo", *factor, w.reshape(t0, t1, c, groups, o))
    x = (x_real + 1j * x_imag).reshape(k0, k1, n, groups, c)
    y = (y_real + 1j * y_imag).reshape(k0, k1, n, groups, o)
    forward = np.einsum("uvngc,uvcgo->uvngo", x, filters.conj()).reshape(k0, k1, n, groups * o)
    backward = np.einsum("uvngo,uvcgo->uvngc", y, filters).reshape(k0, k1, n, groups * c)
    pairs = np.einsum("uvngc,uvngo->uvcgo", x, y.conj())
    gradient = np.einsum("us,vt,uvcgo->stcgo", *map(np.conj, factor), pairs).real

    out = shape(k0, k1, n, groups * o, dtype=y_type)
    back = shape(k0, k1, n, groups * c, dtype=y_type)
    workspace = product.filter_workspace(
        "cpu", x_re.shape, groups * o, groups, (t0, t1), np.dtype(summed)
    )
    results = [
        *call("multiply_sum", (out, out), x_re, x_im, taps, outer, inner, **attributes),
        *call("input_product", (back, back), y_re, y_im, taps, outer, inner, **attributes),
        call(
            "filter_product",
            (shape(*taps.shape, dtype=summed), workspace),
            *(x_re, x_im, y_re, y_im, outer, inner),
            **attributes,
        )[0],
    ]
    expected = [forward.real, forward.imag, backward.real, backward.imag]
    for actual, wanted in zip(results, [*expected, gradient.reshape(w.shape)], strict=True):
        assert actual.shape == wanted.shape
        scale = np.abs(wanted).max(initial=0)
        assert np.abs(actual - wanted).max(initial=0) <= bound * scale


@pytest.mark.no_cover
@native
@pytest.mark.parametrize(
    ("isa", "choice"),
    [
        pytest.param(isa, choice, marks=marks, id=f"{isa}-{choice or 'all'}")
        for choice, few in (("not full", ("portable",)), ("", ()))
        for isa in ("amx", "avx512bf16", "avx512", "avx2", "portable")
        for marks in [() if isa in few else FULL]
    ],
)
def test_every_instruction_set(isa, choice):
    if ASKED_FOR:
        pytest.skip("this is the run of one instruction set")
    if choice and f"(cpu: {isa}" in STATUS:
        pytest.skip("the other tests of this file run on it")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            env={**os.environ, "BANDJAX_CPU_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )

    status = run("-c", "import bandjax; print(bandjax.native_status())")
    assert status.returncode == 0, status.stderr
    refusal = re.search(r"BANDJAX_CPU_ISA must be one of .*", status.stdout)
    if refusal:
        pytest.skip(refusal[0])
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    names = "test_handler_of or bits or asked_for"
    result = run(*command, "-m", choice, "-k", names, str(Path(__file__)))
    assert result.returncode == 0, result.stdout
    cases = [*TRANSFORMS_OF_TYPES, *PRODUCTS_OF_TYPES]
    chosen = [case for case in cases if not choice or FULL not in case.marks]
    assert f"{len(chosen) + 2} passed" in result.stdout


@native
def test_the_instruction_set_is_the_one_asked_for():
    assert f"(cpu: {ASKED_FOR}" in STATUS


@native
def test_the_bits_of_bfloat16():
    """Rounding is to nearest, ties to even; what is not finite stays so."""
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x00000001], np.uint32)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    x = np.concatenate([bits.view(np.float32), ties.view(np.float32), special])
    # A transform of one sample is that sample, plus zero.
    one = jnp.ones((1, 1), jnp.float32)
    part = shape(1, 1, 1, len(x), dtype=jnp.bfloat16)
    re = jax.ffi.ffi_call("bandjax_analysis", (part, part))(x.reshape(1, 1, 1, -1), one, one)[0]
    actual, wanted = np.asarray(re).ravel(), np.asarray(jnp.asarray(x).astype(jnp.bfloat16))
    normal = np.abs(x) > 1e-37
    nan = np.isnan(x)
    assert np.array_equal(np.isnan(actual.astype(np.float32)), nan)
    same = normal & ~nan
    assert np.array_equal(actual[same].view(np.uint16), wanted[same].view(np.uint16))


# ------------------------------------------------------------------------ what handlers do not take


def transform_arguments():
    tables, _ = transform_tables(np.random.default_rng(0), jnp.float32, 5, 6, 2, 1)
    return [jnp.ones((2, 5, 6, 3), jnp.float32), *tables], shape(5, 2, 2, 3, dtype=jnp.float32)


@native
@pytest.mark.parametrize(
    ("place", "changed", "result"),
    [
        (0, (2, 5, 6), None),  # a rank
        (0, (2, 7, 6, 3), None),  # samples that the tables do not fit
        (0, (2, 0, 6, 3), None),
        (1, (4, 3), None),  # an even number of rows
        (1, (5, 2), None),
        (2, (5, 3), None),
        (None, None, (3, 2, 2, 3)),  # too few frequencies, or too many
        (None, None, (6, 2, 2, 3)),
        (None, None, (5, 3, 2, 3)),
        (None, None, (5, 2, 1, 3)),
        (None, None, (5, 2, 2, 4)),
    ],
)
def test_transforms_that_do_not_fit(place, changed, result):
    arguments, part = transform_arguments()
    if place is not None:
        arguments[place] = jnp.ones(changed, jnp.float32)
    if result is not None:
        part = shape(*result, dtype=jnp.float32)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT: bandjax: .*(must|fit)"
    ):
        call("analysis", (part, part), *arguments)


@native
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("types", "result"),
    [
        ((jnp.float16, jnp.float32, jnp.float32), jnp.float32),
        ((jnp.float32, jnp.float64, jnp.float32), jnp.float32),
        ((jnp.float32, jnp.float64, jnp.float64), jnp.float32),
        ((jnp.float64, jnp.float64, jnp.float64), jnp.float32),
        ((jnp.float32, jnp.bfloat16, jnp.bfloat16), jnp.float32),
        ((jnp.float32, jnp.float32, jnp.float32), jnp.int32),
    ],
)
def test_types_of_transforms(types, result):
    arguments, part = transform_arguments()
    arguments = [a.astype(t) for a, t in zip(arguments, types, strict=True)]
    part = shape(*part.shape, dtype=result)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT: bandjax: .*float"):
        call("analysis", (part, part), *arguments)


@native
@pytest.mark.parametrize(
    ("tiles", "windows"),
    [
        ([1, 2, 5, 6, 0, 0, 5, 6], 2),  # the one that is right, lest all be refused
        ([1, 2, 5, 6, 0, 0, 5, 6], 3),
        ([1, 2, 5, 6, 0, 0, 5], 2),
        ([1, -2, 5, 6, 0, 0, 5, 6], 2),
        ([1, 2, 5, 7, 0, 0, 5, 6], 2),
        ([1, 2, 5, 6, 0, 0, 0, 6], 2),
        ([1, 2, 5, 6, 0, 2**40, 5, 6], 2),
    ],
)
def test_windows_that_do_not_fit(tiles, windows):
    (x, *tables), part = transform_arguments()
    x = jnp.ones((2, 5, 11, 3), jnp.float32)
    part = shape(*part.shape[:3], windows, part.shape[-1], dtype=jnp.float32)
    attributes = {"tiles": np.array(tiles, np.int64)}
    if (tiles, windows) == ([1, 2, 5, 6, 0, 0, 5, 6], 2):
        call("analysis", (part, part), x, *tables, **attributes)
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: bandjax: "):
        call("analysis", (part, part), x, *tables, **attributes)


SPECTRUM, TAPS, OUTER, INNER = (3, 2, 2, 4), (3, 2, 4, 6), (2, 3, 3), (2, 2, 2)


@native
@pytest.mark.parametrize(
    ("change", "result", "groups"),
    [
        ({"x": (3, 2, 2)}, None, 1),
        ({"x": (3, 2, 2, 0), "taps": (3, 2, 0, 6)}, None, 1),
        ({"taps": (0, 2, 4, 6), "outer": (2, 3, 0)}, None, 1),
        ({"x": (3, 2, 2, 5)}, None, 1),
        ({"taps": (3, 2, 4, 5)}, None, 1),
        ({"outer": (2, 3, 2)}, None, 1),
        ({"inner": (1, 2, 2)}, None, 1),
        ({}, (3, 2, 1, 6), 1),
        ({}, (3, 2, 2, 7), 1),
        ({}, None, 2),
        ({}, None, 0),
        ({}, None, -1),
        ({"x": (3, 2, 2, 12)}, None, 3),
    ],
)
def test_products_that_do_not_fit(change, result, groups):
    fits = change == {"x": (3, 2, 2, 12)}  # The one that is right, lest all be refused.
    sizes = {"x": SPECTRUM, "im": change.get("x", SPECTRUM), "taps": TAPS, "outer": OUTER}
    arguments = [jnp.ones(s, jnp.float32) for s in ({**sizes, "inner": INNER} | change).values()]
    part = shape(*(result or (3, 2, 2, 6)), dtype=jnp.float32)
    attributes = {"groups": np.int64(groups), "hermitian": False}
    if fits:
        call("multiply_sum", (part, part), *arguments, **attributes)
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: bandjax: "):
        call("multiply_sum", (part, part), *arguments, **attributes)


@native
def test_the_gradient_of_a_spectrum_has_all_its_numbers():
    x, y = (jnp.ones((3, 2, 2, c), jnp.float32) for c in (4, 6))
    tables = (jnp.ones((2, size, 0), jnp.float32) for size in (3, 2))
    result = shape(6, 2, 4, 6, dtype=jnp.float32), shape(0, dtype=jnp.uint8)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match="gradient of a spectrum is of all numbers"
    ):
        call("filter_product", result, x, x, y, y, *tables, groups=np.int64(1), hermitian=True)


@native
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("x", "y", "taps"),
    [
        (jnp.float32, jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, jnp.float64, jnp.float64),
        (jnp.float16, jnp.float32, jnp.float32),
    ],
)
def test_types_of_products(x, y, taps):
    part = shape(3, 2, 2, 6, dtype=y)
    arguments = [jnp.ones(SPECTRUM, x)] * 2 + [jnp.ones(s, taps) for s in (TAPS, OUTER, INNER)]
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT: bandjax: all must be"):
        call("multiply_sum", (part, part), *arguments, groups=np.int64(1), hermitian=False)


@native
def test_a_workspace_that_is_too_small():
    x, y = (jnp.ones((3, 2, 2, c), jnp.float32) for c in (4, 6))
    tables = (jnp.ones(OUTER, jnp.float32), jnp.ones(INNER, jnp.float32))
    needed = product.filter_workspace("cpu", x.shape, 6, 1, TAPS[:2], np.dtype(np.float32))
    chunks = needed.size // (4 * int(np.prod(TAPS)))
    assert chunks > 1
    results = [shape(*TAPS, dtype=jnp.float32), shape(needed.size - 1, dtype=jnp.uint8)]
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"must hold {chunks} filter gradients"):
        call("filter_product", results, x, x, y, y, *tables, groups=np.int64(1), hermitian=False)
