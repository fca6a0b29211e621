"""A layer in float64 NumPy, for the error of what is timed."""

from __future__ import annotations

import numpy as np

import bandjax
from experiments.benchmarks.candidates import Arrays


def reference(arrays: Arrays, geometry: bandjax.ConvGeometry) -> tuple[np.ndarray, ...]:
    """Output and both gradients of a band-limited convolution.

    The circle's convolution theorem, with FFTs on the whole grid and a mask. Nothing is JAX's and
    nothing but the geometry is bandjax's.

    Args:
        arrays: channels last; computed in float64 whatever their type.
        geometry: grid, band, padding, strides, dilation of the input, and groups.

    Returns:
        ``(y, dx, dw)``, channels last.
    """
    grid, axes = geometry.grid, geometry.axes
    rank = len(grid)
    spatial = tuple(range(1, rank + 1))
    taps = tuple(range(rank))
    mask = _mask(geometry)
    groups = geometry.groups

    # Positions on the circle: the first output lies the padding before the first sample.
    out = np.ix_(*((np.arange(a.out) * a.stride - a.padding[0]) % a.grid for a in axes))
    into = np.ix_(*(np.arange(a.size) * a.input_dilation for a in axes))
    x = np.zeros((len(arrays.x), *grid, arrays.x.shape[-1]))
    x[:, *into] = arrays.x
    ct = np.zeros((len(arrays.ct), *grid, arrays.ct.shape[-1]))
    ct[:, *out] = arrays.ct

    # (frequencies, batch or taps' input channels, channels), the kept frequencies alone
    X = _kept(np.fft.rfftn(x, grid, spatial), mask)
    C = _kept(np.fft.rfftn(ct, grid, spatial), mask)
    W = np.fft.rfftn(arrays.kernel.astype(np.float64), grid, taps)[mask]
    Xs, Cs, Ws = (np.split(a, groups, -1) for a in (X, C, W))
    Y = np.concatenate([x @ w.conj() for x, w in zip(Xs, Ws, strict=True)], -1)
    dX = np.concatenate([c @ w.swapaxes(1, 2) for c, w in zip(Cs, Ws, strict=True)], -1)
    dW = np.concatenate([x.swapaxes(1, 2) @ c.conj() for x, c in zip(Xs, Cs, strict=True)], -1)

    y = _samples(Y.swapaxes(0, 1), mask, grid)[:, *out]
    dx = _samples(dX.swapaxes(0, 1), mask, grid)
    dx = dx[:, *into]
    # For a kernel the frequencies come first; an axis in front makes it like the others.
    dw = _samples(dW[None].reshape(1, len(dW), -1), mask, grid)[0]
    dw = dw[tuple(slice(a.taps) for a in axes)].reshape(arrays.kernel.shape)
    return y, dx, dw


def relative_error(results: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> float:
    """The largest error, in units of the largest number of the same array."""
    errors = []
    for result, right in zip(results, expected, strict=False):  # forward alone has but y
        errors.append(float(np.abs(result - right).max() / np.abs(right).max()))
    return max(errors)


def _mask(geometry: bandjax.ConvGeometry) -> np.ndarray:
    """Which entries of the half spectrum are kept, ``(g1, ..., g_last // 2 + 1)``."""
    mask = np.ones((), bool)
    for i, (g, u) in enumerate(zip(geometry.grid, geometry.modes, strict=True)):
        frequency = np.arange(g // 2 + 1 if i == len(geometry.grid) - 1 else g)
        mask = mask[..., None] & (np.minimum(frequency, g - frequency) <= u)
    return mask


def _kept(spectrum: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``(batch, *half grid, channels)`` to ``(frequencies, batch, channels)``."""
    return spectrum[:, mask].swapaxes(0, 1)


def _samples(kept: np.ndarray, mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """``(batch, frequencies, channels)`` to ``(batch, *grid, channels)``."""
    full = np.zeros((len(kept), *mask.shape, kept.shape[-1]), complex)
    full[:, mask] = kept
    return np.fft.irfftn(full, grid, tuple(range(1, len(grid) + 1)))
