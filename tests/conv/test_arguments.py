"""Arguments as lax, NumPy and jax.export have them; batches of nothing."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import bandjax
from bandjax import Compression, Energy

pytestmark = pytest.mark.thin(3)

RNG = np.random.default_rng(20)
X = RNG.normal(size=(3, 9, 8, 2)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 2, 2, 4)).astype(np.float32)
HOW = [("dft", "native"), ("dft", "xla"), ("fft", "xla"), ("direct", "xla")]


def skip_without(implementation):
    if implementation == "native" and "unavailable" in bandjax.native_status():
        pytest.skip("no native kernels")


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT"])
def test_padding_names_in_any_case(padding):
    for spelling in (padding.lower(), padding.title()):
        y = bandjax.band_conv(X, KERNEL, Compression(0.5), padding=spelling)
        assert np.array_equal(y, bandjax.band_conv(X, KERNEL, Compression(0.5), padding=padding))
        geometry = bandjax.conv_geometry(X.shape, KERNEL.shape, padding=spelling)
        assert geometry == bandjax.conv_geometry(X.shape, KERNEL.shape, padding=padding)


def test_lower_case_padding_of_one_axis():
    x, kernel = X[:, :, 0], KERNEL[:, 0]
    y = bandjax.band_conv(x, kernel, padding="causal")
    assert np.array_equal(y, bandjax.band_conv(x, kernel, padding="CAUSAL"))


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_arguments_that_are_arrays(array):
    y = bandjax.band_conv(
        X,
        KERNEL,
        strides=array([1, 2]),
        padding=array([[1, 2], [0, 1]]),
        kernel_dilation=array([2, 1]),
        grid=array([16, 12]),
    )
    wanted = jax.lax.conv_general_dilated(
        X, KERNEL, (1, 2), [(1, 2), (0, 1)], rhs_dilation=(2, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    assert oracle.relative_gap(y, wanted) <= 1e-5
    y = bandjax.band_conv(X, KERNEL, strides=array(2), padding=array(1))
    assert y.shape == bandjax.band_conv(X, KERNEL, strides=2, padding=1).shape


def test_a_traced_argument_is_named():
    with pytest.raises(TypeError, match="kernel_dilation must be known while tracing"):
        jax.jit(lambda d: bandjax.band_conv(X, KERNEL, kernel_dilation=d))(jnp.array([1, 1]))
    with pytest.raises(TypeError, match="padding must be known while tracing"):
        jax.jit(lambda p: bandjax.band_conv(X, KERNEL, padding=p))(jnp.array([1, 1]))


def test_numpy_doubles_are_jaxs_default_type():
    y = bandjax.band_conv(X.astype(np.float64), jnp.asarray(KERNEL), Compression(0.5))
    assert y.dtype == jnp.float32
    assert np.array_equal(y, bandjax.band_conv(X, KERNEL, Compression(0.5)))


@pytest.mark.thin(60)
@pytest.mark.parametrize(("method", "implementation"), HOW)
@pytest.mark.parametrize("band", [None, Compression(0.5), Energy(0.9)])
@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
def test_vmap_over_nothing(compiled, in_axes, band, method, implementation):
    skip_without(implementation)

    def loss(x, kernel):
        y = jax.vmap(
            lambda x, kernel: bandjax.band_conv(
                x, kernel, band, method=method, implementation=implementation
            ),
            in_axes,
        )(x, kernel)
        assert y.shape == (0, 3, 9, 8, 4)
        return y.sum()

    args = [
        jnp.zeros((0, *a.shape), a.dtype) if axis == 0 else jnp.asarray(a)
        for a, axis in zip((X, KERNEL), in_axes, strict=True)
    ]
    gradients = (jax.jit if compiled else lambda f: f)(jax.grad(loss, (0, 1)))(*args)
    assert [g.shape for g in gradients] == [a.shape for a in args]
    assert not any(np.any(g) for g in gradients)


@pytest.mark.parametrize(("method", "implementation"), [("auto", None), *HOW])
def test_a_symbolic_batch_is_exported(method, implementation):
    skip_without(implementation)
    (batch,) = jax.export.symbolic_shape("batch")
    options = {"method": method, "implementation": implementation}

    def step(x, kernel):
        return jax.value_and_grad(
            lambda x, kernel: (
                bandjax.band_conv(x, kernel, Compression(0.5), **options) ** 2
            ).sum(),
            (0, 1),
        )(x, kernel)

    allowed = map(jax.export.DisabledSafetyCheck.custom_call, bandjax.NATIVE_TARGETS)
    step = jax.jit(step)
    exported = jax.export.export(step, disabled_checks=list(allowed))(
        jax.ShapeDtypeStruct((batch, *X.shape[1:]), X.dtype), KERNEL
    )
    for size in (1, 3):
        value, gradients = exported.call(X[:size], KERNEL)
        wanted, wanted_gradients = step(X[:size], KERNEL)
        assert value == pytest.approx(float(wanted), rel=1e-5)
        for actual, expected in zip(gradients, wanted_gradients, strict=True):
            assert oracle.relative_gap(actual, expected) <= 1e-5


def test_a_symbolic_spatial_size_is_refused():
    (side,) = jax.export.symbolic_shape("side")
    with pytest.raises(ValueError, match="only the batch can be symbolic"):
        jax.export.export(jax.jit(lambda x: bandjax.band_conv(x, KERNEL)))(
            jax.ShapeDtypeStruct((3, side, 8, 2), X.dtype)
        )
