"""The one choice of the method that computes a convolution."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bandjax._conv.classes import CLASSES
from bandjax._conv.cost import Target
from bandjax._conv.geometry import ConvGeometry
from bandjax._conv.methods import Direct, Fft, FilterDomain, Method
from bandjax._conv.options import ConvSpec
from bandjax._native import call as native_call
from bandjax._spectra.types import Precision, compute_dtype


def choose(
    geometry: ConvGeometry,
    spec: ConvSpec,
    dtype: np.dtype[Any],
    domain: FilterDomain = "spatial",
    platform: str | None = None,
    precision: Precision = None,
    *,
    inference: bool = False,
) -> type[Method]:
    """Returns the class that computes a convolution.

    A method that is named is computed by native kernels where there are some; ``"auto"`` takes the
    least estimated cost. With every frequency kept that is the backend's own convolution, to the
    last bit, unless native kernels, or on accelerators the fast transform, are surely faster.

    Args:
      geometry: shapes and band.
      spec: method and implementation asked for.
      dtype: of the arrays.
      domain: whether the filter is given by its taps or by its spectrum.
      platform: as ``jax.default_backend()`` names it, which is the default.
      precision: of products.
      inference: whether the forward pass alone is computed; it counts on a CPU, whose own
        convolution is faster forward than backward.

    Raises:
      RuntimeError: native kernels are asked for, and there are none.
      ValueError: they are asked for a method or a type that they do not have; or the method does
        not take such a filter.
    """
    platform = jax.default_backend() if platform is None else platform
    if spec.implementation == "jax":
        return Direct
    classes = [c for c in CLASSES if c.supports(geometry, dtype, platform, domain)]
    if spec.implementation == "native":
        _require_native(spec.method, dtype, platform)
        classes = [c for c in classes if c.native]
        if not classes:
            raise ValueError(
                "implementation 'native' takes a spectral filter on the CPU alone, not on "
                f"{platform!r}"
            )
    elif spec.implementation == "xla" or not spec.recompute_filter or platform != "cpu":
        # The native kernels never hold the filter's spectrum. On a GPU plain JAX is faster in most
        # cases: they are used where they are asked for.
        classes = [c for c in classes if not c.native]
    if spec.method != "auto":
        named = [c for c in classes if c.name == spec.method]
        if not named:
            names = ", ".join(dict.fromkeys(("auto", *(c.name for c in classes))))
            asked = (c for c in CLASSES if c.native or spec.implementation != "native")
            takes = next(c.takes for c in asked if c.name == spec.method)
            raise ValueError(
                f"method must be one of {names} here, got {spec.method!r}, which takes {takes}"
            )
        classes = [c for c in named if c.native] or named
    elif geometry.exact and Direct in classes:
        classes = [
            c for c in classes if c.native or c is Direct or (c is Fft and platform != "cpu")
        ]
    target = Target(
        platform,
        dtype,
        precision,
        given=domain != "spatial",
        inference=inference and platform == "cpu",
    )
    return min(classes, key=lambda c: c.cost(geometry, target))


def _require_native(method: str, dtype: np.dtype[Any], platform: str) -> None:
    if not any(c.native and method in ("auto", c.name) for c in CLASSES):
        names = ", ".join(dict.fromkeys(repr(c.name) for c in CLASSES if c.native))
        raise ValueError(f"implementation 'native' computes method {names}, got method={method!r}")
    native_call.require(platform)
    if not native_call.supports(compute_dtype(dtype), platform):
        raise ValueError(
            f"implementation 'native' computes {dtype} on the CPU alone, not on {platform!r}"
        )
