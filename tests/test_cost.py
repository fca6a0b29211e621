"""The rule behind ``method="auto"``."""

from __future__ import annotations

import pytest

import bandjax
from bandjax._cost import cheapest_method

HALF, QUARTER = bandjax.Compression(0.5), bandjax.Compression(0.75)


def choice(x_shape, kernel_shape, band, platform="cpu", **options):
    return cheapest_method(bandjax.conv_geometry(x_shape, kernel_shape, band, **options), platform)


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
