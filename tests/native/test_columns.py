"""Convolutions by columns of the spectrum, against NumPy's Fourier transforms in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import native, value_and_gradients
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

import bandjax
from bandjax._native import columns

pytestmark = native
BAND = bandjax.Compression(0.5)


@pytest.fixture
def small_maps(monkeypatch):
    """Maps count that would stay in a cache."""
    monkeypatch.setattr(columns, "CACHED", 0)


def drawn(*shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


def banded(band=BAND, **options):
    return lambda x, w: bandjax.band_conv(
        x, w, band, method="dft", implementation="native", **options
    )


def reference(x, w, ct, grid, modes, low, stride, groups):
    """Output and both gradients of a band-limited cross-correlation on a circle."""
    x, w, ct = (np.asarray(a, np.float64) for a in (x, w, ct))
    kept = np.ones(grid)
    for axis, (g, most) in enumerate(zip(grid, modes, strict=True)):
        u = np.abs(np.fft.fftfreq(g, 1 / g))
        kept *= (u <= most).reshape(-1, *(1,) * (len(grid) - 1 - axis))
    circle = {"s": grid, "axes": (1, 2)}
    laid = np.zeros((len(x), *grid, x.shape[-1]))
    laid[:, low[0] : low[0] + x.shape[1], low[1] : low[1] + x.shape[2]] = x
    sources = np.fft.ifft2(np.fft.fft2(laid, axes=(1, 2)) * kept[None, :, :, None], **circle).real
    n, height, width, _ = ct.shape
    y, dx, dw = np.zeros(ct.shape), np.zeros(laid.shape), np.zeros(w.shape)
    of_group = [np.array_split(np.arange(c), groups) for c in (x.shape[-1], w.shape[-1])]
    for s, t in np.ndindex(*w.shape[:2]):
        i = (np.arange(height) * stride + s) % grid[0]
        j = (np.arange(width) * stride + t) % grid[1]
        part = sources[:, i][:, :, j]
        for ins, outs in zip(*of_group, strict=True):
            y[..., outs] += part[..., ins] @ w[s, t][:, outs]
            dw[s, t][:, outs] += np.einsum("nijc,nijo->co", part[..., ins], ct[..., outs])
            back = np.zeros((n, *grid, len(ins)))
            np.add.at(back, np.ix_(range(n), i, j), ct[..., outs] @ w[s, t][:, outs].T)
            dx[..., ins] += back
    dx = np.fft.ifft2(np.fft.fft2(dx, axes=(1, 2)) * kept[None, :, :, None], axes=(1, 2)).real
    dx = dx[:, low[0] : low[0] + x.shape[1], low[1] : low[1] + x.shape[2]]
    return y, dx, dw


CASES = [
    # n, height, width, in, out, taps, options
    (1, 29, 17, 5, 7, (3, 3), {}),
    (3, 32, 39, 20, 33, (3, 3), {}),
    (2, 28, 20, 4, 6, (5, 2), {"feature_group_count": 2}),
    (2, 39, 31, 3, 4, (3, 3), {"strides": 2}),
    (1, 25, 24, 70, 3, (1, 4), {}),
    (12, 11, 15, 2, 8, (3, 3), {}),
]


@pytest.mark.usefixtures("x64", "small_maps")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("n", "height", "width", "c", "o", "taps", "options"), CASES, ids=str)
def test_values_and_gradients(n, height, width, c, o, taps, options, wide):
    dtype = jnp.float64 if wide else jnp.float32
    groups, stride = options.get("feature_group_count", 1), options.get("strides", 1)
    x, w = drawn(n, height, width, c, dtype=dtype), drawn(*taps, c // groups, o, dtype=dtype)
    f = banded(**options)
    program = jax.jit(jax.grad(lambda x, w: f(x, w).sum(), (0, 1))).lower(x, w).as_text()
    assert program.count("@bandjax_columns_gradients") == 1
    ct = drawn(*jax.eval_shape(f, x, w).shape, dtype=dtype)
    geometry = bandjax.conv_geometry(x.shape, w.shape, BAND, **options)
    sizes = zip((height, width), taps, ct.shape[1:3], strict=True)
    low = [max((out - 1) * stride + k - size, 0) // 2 for size, k, out in sizes]
    expected = reference(x, w, ct, geometry.grid, geometry.modes, low, stride, groups)
    for got, wanted in zip(value_and_gradients(f, x, w, ct), expected, strict=True):
        assert got.dtype == dtype
        assert oracle.relative_gap(got, wanted) <= (1e-12 if wide else 1e-5)


def test_where_they_are_called():
    """Maps too small, examples too many, bfloat16, a shrinking band: the kernels one by one."""

    def targets(shape, band=BAND, dtype=jnp.float32, out=4):
        x = jax.ShapeDtypeStruct(shape, dtype)
        w = jax.ShapeDtypeStruct((3, 3, shape[-1], out), dtype)
        return jax.jit(banded(band)).lower(x, w).as_text()

    assert "@bandjax_columns(" in targets((2, 256, 256, 4))
    for other in (
        targets((2, 128, 128, 4)),
        targets((13, 256, 256, 4)),
        targets((2, 256, 256, 4), dtype=jnp.bfloat16),
        targets((2, 1024, 1024, 64), out=64),
        targets((1, 15999, 8, 4), bandjax.Modes(7000, 0)),
    ):
        assert "bandjax_columns" not in other
        assert "@bandjax_multiply_sum" in other


@pytest.mark.usefixtures("x64", "small_maps")
def test_derivatives_of_second_order():
    x, w = drawn(1, 12, 10, 1), drawn(2, 2, 1, 2)
    check_grads(jax.jit(banded()), (x, w), order=2, modes=["rev"], rtol=1e-5)


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(axes):
    x, w = drawn(2, 1, 20, 17, 3, dtype=jnp.float32), drawn(2, 3, 3, 3, 2, dtype=jnp.float32)
    x, w = (a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True))

    def both(x, w):
        return value_and_gradients(banded(), x, w)

    mapped = jax.jit(jax.vmap(both, axes))(x, w)
    for i in range(2):
        each = (a[i] if axis == 0 else a for a, axis in zip((x, w), axes, strict=True))
        for got, wanted in zip(mapped, both(*each), strict=True):
            assert oracle.relative_gap(got[i], wanted) <= 1e-5


@pytest.mark.usefixtures("small_maps")
def test_devices_share_the_examples():
    mesh = jax.make_mesh((2,), ("data",))
    x, w = drawn(4, 20, 24, 3, dtype=jnp.float32), drawn(3, 3, 3, 2, dtype=jnp.float32)
    assert "@bandjax_columns(" in jax.jit(banded()).lower(x, w).as_text()
    expected = value_and_gradients(banded(), x, w)
    shared = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(w, NamedSharding(mesh, PartitionSpec()))
    got = value_and_gradients(banded(), shared, whole)
    assert got[1].sharding.spec[0] == "data"
    for a, b in zip(got, expected, strict=True):
        assert oracle.relative_gap(a, b) <= 1e-5


def handler_arguments(which, **changed):
    """Of maps of 9x8 samples on 10x9 points, right unless something is changed."""
    sizes = {
        "re": (5, 3, 2, 4),
        "im": (5, 3, 2, 4),
        "ct": (2, 9, 8, 6),
        "w": (3, 2, 2, 6),
        "outer": (2, 5, 3),
        "inner": (2, 3, 2),
        "out0": (5, 5),
        "out1": (5, 4),
        "in0": (5, 5),
        "in1": (5, 4),
    }
    forward = which == "columns"
    steps = ["steps"] if forward else ["out_steps", "in_steps"]
    attributes = {"groups": 2, "hermitian": True, "grid": [10, 9], **{key: [1, 1] for key in steps}}
    types = changed.pop("types", {})
    for name, value in changed.items():
        (sizes if name in sizes else attributes)[name] = value
    if forward:
        sizes = {name: size for name, size in sizes.items() if name not in ("ct", "in0", "in1")}
    arrays = [jnp.ones(size, types.get(name, jnp.float32)) for name, size in sizes.items()]
    attributes["groups"] = np.int64(attributes["groups"])
    return arrays, {
        name: np.array(value, np.int64) if isinstance(value, list) else value
        for name, value in attributes.items()
    }


@pytest.mark.parametrize(
    "changed",
    [
        {},  # the one that is right, lest all be refused
        {"re": (5, 3, 4)},
        {"im": (5, 3, 2, 5)},
        {"re": (5, 1, 2, 4), "im": (5, 1, 2, 4), "inner": (2, 1, 2), "out1": (1, 4), "in1": (1, 4)},
        {"w": (3, 2, 3, 6)},
        {"w": (0, 2, 2, 6)},
        {"outer": (2, 5, 2)},
        {"inner": (2, 4, 2)},
        {"out0": (5, 4)},
        {"out1": (7, 4)},
        {"groups": 0},
        {"groups": 3},
        {"grid": [10]},
        {"grid": [0, 9]},
        {"grid": [3, 9]},
        {"out0": (5, 0), "grid": [17, 9]},  # neither a table nor a fast transform
        {"types": {"im": jnp.bfloat16}},
        {"types": {"out0": jnp.float16}},
    ],
    ids=str,
)
@pytest.mark.parametrize("which", ["columns", "columns_gradients"])
def test_arguments_that_do_not_fit(which, changed):
    arrays, attributes = handler_arguments(which, **changed)
    results = [(2, 9, 8, 6)] if which == "columns" else [(2, 9, 8, 4), (3, 2, 2, 6)]
    types = [jax.ShapeDtypeStruct(size, jnp.float32) for size in results]
    run = jax.ffi.ffi_call(f"bandjax_{which}", types)
    if not changed:
        assert all(np.isfinite(a).all() for a in run(*arrays, **attributes))
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: bandjax: "):
        jax.block_until_ready(run(*arrays, **attributes))
