"""The packed form of transform and multiply-sum, against complex sums in NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bandjax._spectra import packed
from bandjax._spectra.partial_dft import PartialDFT
from bandjax._spectra.product import ProductSpec

pytestmark = pytest.mark.thin(4)

DFTS = {
    "1-D": PartialDFT((12,), (4,), (range(0, 10),)),
    "2-D, one product": PartialDFT((8, 9), (3, 2), (range(0, 7), range(-1, 8))),
    "2-D, Nyquist": PartialDFT((6, 8), (3, 4), (range(6), range(8)), inverse=True),
    "2-D, by axes": PartialDFT((48, 45), (20, 15), (range(45), range(0, 44, 2))),
    "3-D, one product": PartialDFT((4, 5, 6), (1, 2, 2), (range(4), range(0, 10, 2), range(5))),
    "3-D, by axes": PartialDFT((16, 15, 18), (6, 5, 7), (range(14), range(15), range(16))),
}


def literal(dft: PartialDFT, x: np.ndarray) -> np.ndarray:
    """``(N, *spatial, C)`` to complex ``(*box, N, C)``, an axis after another."""
    spectrum = x.astype(complex)
    for axis, (g, limit, points) in enumerate(zip(dft.grid, dft.modes, dft.points, strict=True)):
        last = axis == len(dft.grid) - 1
        negative = [] if last else [u for u in range(-limit, 0) if 2 * u != -g]
        kept = [*range(limit + 1), *negative]
        angle = np.outer(kept, [p % g for p in points]) * (-2j * np.pi / g)
        matrix = np.exp(angle)
        if dft.inverse:
            once = [not last or u == 0 or 2 * u == g for u in kept]
            matrix *= np.where(once, 1, 2)[:, None] / g
        spectrum = np.moveaxis(np.tensordot(matrix, spectrum, (1, axis + 1)), 0, axis + 1)
    return np.moveaxis(spectrum, 0, -2)


def parts(a: np.ndarray) -> np.ndarray:
    """Real and imaginary parts side by side."""
    return np.concatenate([a.real, a.imag], -1)


@pytest.mark.parametrize("name", DFTS)
def test_the_spectrum_is_that_of_the_literal_sums(name):
    dft = DFTS[name]
    by_axes = packed._steps(dft, np.dtype(np.float32))
    assert len(by_axes) == (len(dft.grid) if "by axes" in name else 1)
    x = np.random.default_rng(0).normal(size=(3, *dft.shape, 4))
    expected = literal(dft, x)
    got = np.asarray(packed.to_packed(dft, jnp.asarray(x, jnp.float32)))
    assert got.shape == (*dft.box, 3, 8)
    assert oracle.relative_gap(got, parts(expected)) < 1e-5


@pytest.mark.parametrize("name", DFTS)
def test_the_way_back_is_the_adjoint(name, x64):
    dft = DFTS[name]
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(3, *dft.shape, 4)))
    y = jnp.asarray(rng.normal(size=(*dft.box, 3, 8)))
    there = jnp.vdot(packed.to_packed(dft, x), y)
    back = jnp.vdot(x, packed.from_packed(dft, y))
    assert abs(there - back) < 1e-10 * jnp.linalg.norm(y) * jnp.linalg.norm(x)
    # And what JAX makes of it is the same.
    (gradient,) = jax.vjp(lambda x: packed.to_packed(dft, x), x)[1](y)
    assert oracle.relative_gap(gradient, packed.from_packed(dft, y)) < 1e-12


@pytest.mark.parametrize("name", DFTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_multiply_adds_are_counted_as_they_are_made(name, dtype):
    dft, dtype = DFTS[name], jnp.dtype(dtype)
    made = 0
    if len(packed._steps(dft, dtype)) == 1:
        made = 2 * np.prod(dft.box) * np.prod(dft.shape)
    else:
        for axis, (kept, samples) in enumerate(zip(dft.box, dft.shape, strict=True)):
            rest = np.prod(dft.shape[axis + 1 :], dtype=int)
            done = np.prod(dft.box[:axis], dtype=int)
            made += done * 2 * kept * (1 if axis == 0 else 2) * samples * rest
    assert packed.multiply_adds(dft, dtype) == made


CHANNELS = {"plain": (3, 5, 1), "groups": (4, 6, 2), "depthwise": (4, 4, 4)}


@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_those_of_complex_numbers(kind, dtype):
    c, o, groups = CHANNELS[kind]
    rng = np.random.default_rng(2)
    box, n, each = (3, 2), 4, c // groups

    def spectrum(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    x, y, w = spectrum(*box, n, c), spectrum(*box, n, o), spectrum(*box, each, o)
    sums = np.zeros((*box, n, o), complex), np.zeros((*box, n, c), complex), np.zeros_like(w)
    for i, k in itertools.product(range(each), range(o)):
        j = k // (o // groups) * each + i
        sums[0][..., k] += x[..., j] * w[..., i, k, None].conj()
        sums[1][..., j] += y[..., k] * w[..., i, k, None]
        sums[2][..., i, k] += np.sum(x[..., j] * y[..., k].conj(), -1)

    def put(a):
        return jnp.asarray(parts(a), dtype)

    pair = jnp.asarray(w.real, jnp.float32), jnp.asarray(w.imag, jnp.float32)
    spec = ProductSpec(groups, None)
    results = (
        packed.multiply_sum(spec, put(x), pair),
        packed.input_product(spec, put(y), pair),
        packed.filter_product(spec, put(x), put(y)),
    )
    bound = 1e-5 if dtype == "float32" else 3e-2
    for got, expected in zip(results[:2], sums[:2], strict=True):
        assert got.dtype == dtype
        assert oracle.relative_gap(got, parts(expected)) < bound
    assert results[2][0].dtype == jnp.float32
    assert oracle.relative_gap(jnp.concatenate(results[2], -1), parts(sums[2])) < bound
