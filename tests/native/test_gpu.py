"""The library on a GPU, against sums in float64: values, gradients, every method and precision.

Elsewhere these tests are skipped. ``experiments/checks/gpu_check.sh`` runs them on a GPU.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import band_of
from configs import Config, random_config

import bandjax

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU")
HAS_NATIVE = "cuda" in bandjax.native_status()

# By precision: the type of the arrays, and the bound on the largest error over the largest number.
BOUNDS = {
    "highest": (jnp.float32, 2e-5),
    None: (jnp.float32, 6e-3),
    "bfloat16": (jnp.bfloat16, 5e-2),
}
METHODS = ("dft", "fft", "direct", "native", "auto")


def banded(index: int) -> Config:
    return random_config(31, index, banded=True)


def wide(channels: int, features: int, groups: int = 1) -> Config:
    """A layer whose channels fill tiles of the tensor cores, and more."""
    return Config(
        seed=(32, channels),
        batch=(4,),
        sizes=(9, 8),
        taps=(3, 3),
        channels=channels,
        features=features,
        strides=(1, 1),
        padding="SAME",
        input_dilation=(1, 1),
        kernel_dilation=(1, 1),
        groups=groups,
        rate=0.5,
    )


CASES = {f"random {i}": banded(i) for i in range(24)}
CASES |= {"wide": wide(72, 136), "groups": wide(64, 32, 2), "depthwise": wide(40, 40, 40)}


def reference(config: Config, x: np.ndarray, w: np.ndarray, ct: np.ndarray) -> list[np.ndarray]:
    """Output and gradients; the gradients by the output's linearity, from unit arrays or sums."""
    geometry, groups = config.geometry, config.groups
    y = oracle.convolve(x, w, geometry, groups)
    rank = len(geometry)
    examples = ct.reshape(-1, *ct.shape[ct.ndim - rank - 1 :])
    jacobian = oracle.input_jacobian(w, geometry, config.channels, groups)
    dx = np.tensordot(examples, jacobian, axes=rank + 1).reshape(x.shape)
    units = oracle.kernel_jacobian(x, w.shape, geometry, groups)
    dw = np.tensordot(ct, units, axes=ct.ndim)
    return [y, dx, dw]


@pytest.mark.parametrize("precision", BOUNDS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, precision):
    config = CASES[case]
    dtype, bound = BOUNDS[precision]
    arrays = [jnp.asarray(a, dtype) for a in (*config.arrays(), config.cotangent())]
    names = [m for m in METHODS if m != "native" or HAS_NATIVE]

    def run(x, w, ct):
        results = {}
        for name in names:
            how = {"method": name}
            if name in ("native", "dft"):
                implementation = "native" if name == "native" else "xla"
                how = {"method": "dft", "implementation": implementation}
            y, back = jax.vjp(
                lambda x, w, how=how: bandjax.band_conv(
                    x,
                    w,
                    band_of(config),
                    precision=None if precision == "bfloat16" else precision,
                    **how,
                    **config.arguments(),
                ),
                x,
                w,
            )
            results[name] = [y, *back(ct)]
        return results

    got = jax.jit(run)(*arrays)
    exact = [np.asarray(a, np.float64) for a in arrays]
    # Jacobians of the wide cases would be large: they are compared with each other in float64.
    expected = reference(config, *exact) if not_wide(config) else in_double(config, *exact)
    for name, results in got.items():
        assert all(a.dtype == dtype for a in results)
        gaps = [
            oracle.gap(np.asarray(a, np.float64), b) for a, b in zip(results, expected, strict=True)
        ]
        # Sums of n terms of size one grow by sqrt(n), and with them a cotangent's gradient.
        assert max(gaps) < bound, (name, gaps)


def not_wide(config: Config) -> bool:
    return math.prod(config.sizes) * config.channels <= 1000 and math.prod(config.taps) <= 130


def in_double(config, x, w, ct):
    """The same in float64 on the CPU, which the other tests hold against the literal sums."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        y, back = jax.vjp(
            lambda x, w: bandjax.band_conv(
                x, w, band_of(config), method="fft", **config.arguments()
            ),
            jnp.asarray(x),
            jnp.asarray(w),
        )
        return [np.asarray(a) for a in (y, *back(jnp.asarray(ct)))]


@pytest.mark.parametrize("residual_dtype", ["int8", "bfloat16", "float16"])
def test_narrow_residuals_change_the_kernels_gradient_alone(residual_dtype):
    config = wide(16, 24)
    x, w = (jnp.asarray(a, jnp.float32) for a in config.arrays())

    def run(dtype):
        return jax.vjp(
            lambda x, w: bandjax.band_conv(
                x, w, band_of(config), precision="highest", residual_dtype=dtype
            ),
            x,
            w,
        )

    (y, back), (exact, exactly) = run(residual_dtype), run(None)
    ct = jnp.asarray(config.cotangent(), jnp.float32)
    (dx, dw), (dx_exact, dw_exact) = back(ct), exactly(ct)
    assert oracle.relative_gap(dx, dx_exact) < 1e-5
    assert oracle.relative_gap(dw, dw_exact) < 2e-2
    assert oracle.relative_gap(y, exact) < 2e-2


def test_energy_keeps_the_box_that_the_cpu_keeps():
    config = wide(16, 24)
    x, w = (jnp.asarray(a, jnp.float32) for a in config.arrays())

    def run(x, w):
        return bandjax.band_conv(x, w, bandjax.Energy(0.9), precision="highest", return_modes=True)

    y, modes = jax.jit(run)(x, w)
    with jax.default_device(jax.devices("cpu")[0]):
        expected, kept = run(np.asarray(x), np.asarray(w))
    assert (np.asarray(modes) == np.asarray(kept)).all()
    assert oracle.relative_gap(y, expected) < 1e-5


def test_vmap_scan_and_checkpoint():
    config = wide(8, 8)
    x, w = (jnp.asarray(a, jnp.float32) for a in config.arrays())

    def layer(x, w):
        return bandjax.band_conv(x, w, band_of(config), precision="highest")

    xs = jnp.stack([x, 2 * x, 3 * x])
    expected = jnp.stack([layer(each, w) for each in xs])
    assert oracle.relative_gap(jax.vmap(layer, (0, None))(xs, w), expected) < 1e-5
    _, scanned = jax.lax.scan(lambda c, each: (c, layer(each, w)), None, xs)
    assert oracle.relative_gap(scanned, expected) < 1e-5
    plain = jax.grad(lambda w: jnp.sum(layer(x, w) ** 2))(w)
    again = jax.grad(jax.checkpoint(lambda w: jnp.sum(layer(x, w) ** 2)))(w)
    assert oracle.relative_gap(again, plain) < 1e-4
