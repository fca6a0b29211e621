"""The rule behind ``method="auto"``."""

from __future__ import annotations

import numpy as np
import pytest

import bandjax
from bandjax._conv.choose import choose
from bandjax._conv.options import ConvSpec
from bandjax._native import extension

FLOAT32 = np.dtype(np.float32)
HALF, QUARTER = bandjax.Compression(0.5), bandjax.Compression(0.75)


def choice(x_shape, kernel_shape, band, platform="cpu", **options):
    geometry = bandjax.conv_geometry(x_shape, kernel_shape, band, **options)
    return choose(geometry, ConvSpec(implementation="xla"), FLOAT32, platform=platform).name


def choice_with_kernels(x_shape, kernel_shape, band, platform="cpu", **options):
    geometry = bandjax.conv_geometry(x_shape, kernel_shape, band, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "available", lambda platform: True)
        method = choose(geometry, ConvSpec(), FLOAT32, platform=platform)
    return "native" if method.native else method.name


# What was fastest by a wide margin when every method was timed on two AVX-512 cores.
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "band", "options", "fastest"),
    [
        ((128, 32, 32, 64), (3, 3, 64, 64), HALF, {}, "dft"),
        ((128, 16, 16, 128), (3, 3, 128, 128), HALF, {}, "dft"),
        ((128, 8, 8, 256), (3, 3, 256, 256), QUARTER, {}, "dft"),
        ((32, 4, 4, 512), (3, 3, 512, 512), HALF, {}, "dft"),
        ((16, 270, 128), (5, 128, 256), HALF, {}, "direct"),
        ((16, 270, 128), (5, 128, 256), QUARTER, {}, "dft"),
        ((16, 4096, 1), (8, 1, 128), HALF, {}, "direct"),
        ((16, 4096, 128), (3, 128, 256), HALF, {}, "direct"),
        ((8, 56, 56, 64), (31, 31, 1, 64), HALF, {"feature_group_count": 64}, "dft"),
        ((4, 32, 32, 32, 32), (3, 3, 3, 32, 32), HALF, {}, "dft"),
    ],
)
def test_the_measured_fastest_is_chosen(x_shape, kernel_shape, band, options, fastest):
    assert choice(x_shape, kernel_shape, band, **options) == fastest


def test_a_long_axis_with_a_long_kernel_goes_to_the_fft():
    long = (4, 65536, 16), (4096, 1, 16)
    assert choice(*long, HALF, feature_group_count=16) == "fft"


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_an_exact_convolution_is_the_backends_own(platform, padding):
    shapes = (128, 32, 32, 64), (3, 3, 64, 64)
    assert choice(*shapes, None, platform, padding=padding) == "direct"
    assert choice(*shapes, bandjax.Compression(0), platform, padding=padding) == "direct"


def test_the_choice_depends_on_the_band():
    shapes = (16, 270, 128), (5, 128, 256)
    assert {choice(*shapes, band) for band in (HALF, QUARTER)} == {"direct", "dft"}


TRANSPOSED = {"input_dilation": 2, "padding": 2}


# The same with the native kernels, timed in the same way.
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "band", "options", "fastest"),
    [
        ((128, 32, 32, 64), (3, 3, 64, 64), HALF, {}, "native"),
        ((128, 32, 32, 64), (3, 3, 64, 64), None, {}, "native"),
        ((8, 8, 8, 256), (3, 3, 256, 256), None, {}, "native"),
        ((32, 4, 4, 512), (3, 3, 512, 512), QUARTER, {}, "native"),
        ((32, 32, 32, 3), (3, 3, 3, 64), None, {}, "native"),
        ((32, 32, 32, 3), (3, 3, 3, 64), HALF, {}, "native"),
        ((8, 64, 64, 64), (3, 3, 64, 64), None, {}, "native"),
        ((1, 256, 256, 32), (3, 3, 32, 32), None, {}, "native"),
        ((1, 512, 512, 16), (3, 3, 16, 16), None, {}, "native"),
        ((32, 2, 2, 512), (3, 3, 512, 512), None, {}, "native"),
        ((4, 64, 64, 16), (16, 16, 16, 16), None, {}, "native"),
        ((2, 16, 16, 16, 64), (4, 4, 4, 64, 1), None, TRANSPOSED, "direct"),
        ((8, 16, 16, 64), (4, 4, 64, 64), None, TRANSPOSED, "direct"),
        ((1, 32, 32, 32, 32), (3, 3, 3, 32, 1), None, {}, "native"),
        ((4, 16000, 1), (1001, 1, 40), None, {}, "native"),
        ((16, 270, 256), (3, 256, 128), None, {}, "native"),
        ((16, 270, 256), (3, 256, 128), HALF, {}, "native"),
        ((16, 1024, 64), (5, 64, 64), None, {}, "native"),
        ((16, 1024, 64), (5, 64, 64), HALF, {}, "native"),
        ((4, 4096, 64), (5, 64, 64), HALF, {}, "native"),
        ((8, 56, 56, 64), (7, 7, 1, 64), HALF, {"feature_group_count": 64}, "native"),
        ((8, 56, 56, 64), (7, 7, 1, 64), None, {"feature_group_count": 64}, "native"),
        ((2, 32, 32, 32, 16), (3, 3, 3, 16, 16), None, {}, "native"),
        ((16, 28, 28, 96), (3, 3, 8, 96), QUARTER, {"feature_group_count": 12}, "native"),
    ],
)
def test_the_measured_fastest_is_chosen_with_native_kernels(
    x_shape, kernel_shape, band, options, fastest
):
    assert choice_with_kernels(x_shape, kernel_shape, band, **options) == fastest


def test_accelerators_keep_to_xla_until_the_kernels_are_measured_there():
    shapes = (128, 32, 32, 64), (3, 3, 64, 64)
    assert choice_with_kernels(*shapes, HALF, "gpu") == choice(*shapes, HALF, "gpu")


# Timed on an H200: lax 49 ms, and 374, 945 and 1,146 us where the fast transform took 2,937, 8,752
# and 5,304.
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "groups", "fastest"),
    [
        ((32, 32, 32, 256), (31, 31, 1, 256), 256, "fft"),
        ((32, 64, 64, 256), (3, 3, 1, 256), 256, "direct"),
        ((4, 32, 32, 32, 64), (3, 3, 3, 64, 64), 1, "direct"),
        ((32, 64, 64, 256), (3, 3, 32, 256), 8, "direct"),
    ],
)
def test_accelerators_transform_large_kernels_alone(x_shape, kernel_shape, groups, fastest):
    options = {"feature_group_count": groups, "padding": "SAME"}
    assert choice(x_shape, kernel_shape, None, "gpu", **options) == fastest


def test_the_choice_depends_on_type_and_precision():
    """Half precision makes dense convolutions cheaper, and fast transforms no cheaper."""
    geometry = bandjax.conv_geometry((32, 64, 64, 64), (13, 13, 64, 64), None, padding="SAME")

    def chosen(dtype, precision=None):
        spec = ConvSpec(implementation="xla")
        return choose(geometry, spec, np.dtype(dtype), "spatial", "gpu", precision).name

    assert chosen("float32") == "direct"
    assert chosen("float32", "highest") == "fft"
    assert chosen("bfloat16", "highest") == "direct"
