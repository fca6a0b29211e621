"""Spectra on the half plane, the band's box in them, and the pieces of the paper's algorithm.

Conventions, for a signal on a grid of ``g`` points an axis:

* The forward transform is unnormalised, ``X[u] = sum_j x[j] exp(-2 pi i u j / g)``; the inverse
  divides by ``g``. These are the conventions of ``jnp.fft``.
* A spectrum is a complex array that has ``(batch..., *frequencies, channels)`` axes. The input is
  real, so the last frequency axis holds ``u >= 0`` alone (``g // 2 + 1`` values); the others hold
  both signs in FFT order (0, 1, ..., -2, -1), so the low frequencies lie in the corners.
* The *box* of ``modes = (U_1, ..., U_r)`` is every ``|u_i| <= U_i``, in the same order.
"""

from __future__ import annotations

from bandjax._analysis.approximate import (
    Approximation,
    Growth,
    Lead,
    Top,
    Variant,
    approximate,
    relative_error,
)
from bandjax._analysis.masks import (
    compression,
    energy,
    energy_mask,
    growth_mask,
    growth_places,
    lead_mask,
    top_mask,
)
from bandjax._bands.frequencies import frequencies, hermitian_weights
from bandjax._spectra.half import (
    analysis,
    corners,
    fill_box,
    from_corners,
    irfftn,
    keep_box,
    shift_dc,
    synthesis,
    unshift_dc,
)
from bandjax._spectra.kernels import kernel_to_spectrum, spectrum_to_kernel
from bandjax._spectra.partial_dft import fourier_matrix

__all__ = [
    "Approximation",
    "Growth",
    "Lead",
    "Top",
    "Variant",
    "analysis",
    "approximate",
    "compression",
    "corners",
    "energy",
    "energy_mask",
    "fill_box",
    "fourier_matrix",
    "frequencies",
    "from_corners",
    "growth_mask",
    "growth_places",
    "hermitian_weights",
    "irfftn",
    "keep_box",
    "kernel_to_spectrum",
    "lead_mask",
    "relative_error",
    "shift_dc",
    "spectrum_to_kernel",
    "synthesis",
    "top_mask",
    "unshift_dc",
]
