"""What :mod:`bandjax.plot` draws: magnitudes of spectra, arranged and in decibels, in NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from bandjax._bands.band import Band, Energy, check_band, resolve_modes
from bandjax._bands.boxes import smallest_box
from bandjax._bands.frequencies import hermitian_weights
from bandjax._flax.capture import LayerSignals
from bandjax._spectra.half import fill_box

Place: TypeAlias = Literal["corner", "centre"]
Volume: TypeAlias = Literal["slice", "marginal"]

PARTS = ("input", "kernel", "output", "gradient")


def batches(signals: LayerSignals, rank: int) -> Iterable[np.ndarray]:
    """The four signals, each ``(batch, *spatial, channels)``."""
    for part in PARTS:
        values = np.asarray(getattr(signals, part))
        if part == "kernel":
            yield np.moveaxis(values, -1, 0)
        else:
            yield values.reshape(-1, *values.shape[values.ndim - rank - 1 :])


def sizes(signals: LayerSignals, rank: int) -> tuple[int, ...]:
    """The least grid that all four signals fit on, and the layer's own."""
    shapes = [values.shape[1:-1] for values in batches(signals, rank)]
    return tuple(np.max([*shapes, signals.grid or shapes[0]], axis=0))


def half_magnitude(values: Any, grid: Sequence[int] | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """The root mean square over batch and channels of the half spectrum, and its grid."""
    values = np.asarray(values)
    rank = values.ndim - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            "values must be (batch, *spatial, channels) with 1, 2 or 3 spatial axes, got shape "
            f"{values.shape}"
        )
    is_spectrum = np.iscomplexobj(values)
    if grid is None:
        if is_spectrum:
            raise ValueError("grid must be given with a spectrum: its last axis does not tell it")
        grid = values.shape[1:-1]
    grid = tuple(grid)
    if len(grid) != rank:
        raise ValueError(f"grid must have one entry for each of the {rank} axes, got {grid}")
    most = (*grid[:-1], grid[-1] // 2 + 1) if is_spectrum else grid
    if any(n > limit for n, limit in zip(values.shape[1:-1], most, strict=True)):
        raise ValueError(
            f"values have shape {values.shape}, with more than the {most} "
            f"{'frequencies' if is_spectrum else 'points'} of a grid of {grid}"
        )
    if is_spectrum:
        half = np.asarray(fill_box(values.astype(np.complex64), grid))
    else:
        half = np.fft.rfftn(values.astype(np.float64), grid, axes=range(1, rank + 1))
    return np.sqrt(np.mean(np.abs(half) ** 2, axis=(0, -1))), grid


def modes_of(band: Band, half: np.ndarray, grid: tuple[int, ...]) -> tuple[int, ...] | None:
    check_band(band)
    if band is None:
        return None
    if not isinstance(band, Energy):
        return resolve_modes(band, grid)
    energy = half**2 * hermitian_weights(grid[-1], grid[-1] // 2)
    return smallest_box(energy, grid, band.boxes(grid), band.share)[0]


def plane_of(
    half: np.ndarray,
    grid: tuple[int, ...],
    modes: tuple[int, ...] | None,
    volume: Volume,
) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...] | None]:
    """Reduces three dimensions to the two that are drawn."""
    if len(grid) < 3:
        return half, grid, modes
    plane = half[0] if volume == "slice" else np.sqrt(np.mean(half**2, axis=0))
    return plane, grid[1:], None if modes is None else modes[1:]


def arranged(half: np.ndarray, grid: tuple[int, ...], dc: Place) -> np.ndarray:
    """The half spectrum, or the whole one with DC in the centre."""
    if dc == "corner":
        return half
    last = half.ndim - 1
    rest = np.arange(grid[-1] // 2 + 1, grid[-1])  # of the last axis; their partners are stored
    mirrored = half[np.ix_(*(-np.arange(g) % g for g in grid[:-1]), grid[-1] - rest)]
    return np.fft.fftshift(np.concatenate([half, mirrored], axis=last))


def to_decibels(
    magnitude: np.ndarray, reference: float | None, decibels: float
) -> tuple[np.ndarray, str]:
    """Levels, none lower than the range below the largest, and what to call them."""
    if decibels <= 0:
        raise ValueError(f"decibels must be positive, got {decibels}")
    if reference is not None and reference <= 0:
        raise ValueError(f"reference must be positive, got {reference}")
    zero = "0 dB the largest" if reference is None else f"0 dB = {reference:.3g}"
    largest = float(magnitude.max())
    scale = reference or largest or 1.0
    least = (largest or scale) * 10 ** (-decibels / 20)
    levels = 20 * np.log10(np.maximum(magnitude, least) / scale)
    return levels, f"magnitude (dB, {zero})"


def first_frequency(g: int, dc: Place) -> int:
    """The frequency of the first index that is drawn."""
    return 0 if dc == "corner" else -(g // 2)
