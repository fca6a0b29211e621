"""The pictures of :mod:`bandjax.plot`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bandjax._bands.band import Band
from bandjax._bands.boxes import kept_per_axis
from bandjax._flax.capture import LayerSignals, joined
from bandjax._optional import report_module
from bandjax.plot._magnitudes import (
    PARTS,
    Place,
    Volume,
    arranged,
    batches,
    first_frequency,
    half_magnitude,
    modes_of,
    plane_of,
    sizes,
    to_decibels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_OUTLINE = "deepskyblue"
_COLOURS = "magma"
_TITLES = ("input", "filter", "output", "gradient by the output")


def spectrum(
    values: Any,
    grid: Sequence[int] | None = None,
    *,
    dc: Place = "centre",
    band: Band = None,
    reference: float | None = None,
    decibels: float = 80,
    volume: Volume = "slice",
    title: str = "",
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the magnitude of a spectrum: a line in one dimension, a heat map in two and three.

    Args:
      values: samples, real ``(batch, *spatial, channels)``, or their half spectrum or a box of it,
        complex ``(batch, *frequencies, channels)``.
      grid: points on the circle of each axis; by default the samples' own. A spectrum needs it.
      dc: "corner" draws the half spectrum as it is stored, the low frequencies in its left corners;
        "centre" the whole spectrum with DC in the middle.
      band: marked, and its compression told; :class:`bandjax.Energy` finds its box in ``values``.
        None marks nothing.
      reference: magnitude of 0 dB; by default the largest that is drawn.
      decibels: range of the picture, down from the largest magnitude; what lies below is drawn as
        its end.
      volume: of three dimensions, draw the "slice" ``u_1 = 0`` or the "marginal", the root mean
        square over ``u_1``. The title tells which.
      title: above the picture.
      path: file to save the picture in; its ending tells the format.
      ax: where to draw; by default on a figure of its own.

    Returns:
      The axes drawn on. Those of the colour bar are ``axes.images[0].colorbar.ax``.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: ``band`` is no band.
      ValueError: a number of axes other than 3 to 5, a grid that does not fit, a band that does
        not fit the grid, or an unknown ``dc`` or ``volume``.

    Example:
      >>> from matplotlib.figure import Figure
      >>> x = np.random.default_rng(0).normal(size=(8, 32, 32, 3))
      >>> axes = spectrum(x, (33, 33), band=Compression(0.5), ax=Figure().subplots())
      >>> axes.get_title(), axes.images[0].colorbar.ax.get_ylabel()
      ('band |u| <= 11, 11: 50.8 % dropped', 'magnitude (dB, 0 dB the largest)')

    Source: Dziedzic et al. (ICML 2019), supplement, figures 6 and 7.
    """
    if dc not in ("corner", "centre"):
        raise ValueError(f"dc must be 'corner' or 'centre', got {dc!r}")
    if volume not in ("slice", "marginal"):
        raise ValueError(f"volume must be 'slice' or 'marginal', got {volume!r}")
    half, grid = half_magnitude(values, grid)
    modes = modes_of(band, half, grid)
    if ax is None:
        ax = _new_figure((4.8, 3.6) if len(grid) == 1 else (5, 4.2), path).subplots()
    notes = [title] if title else []
    if modes is not None:
        kept = np.prod(kept_per_axis(grid, modes)) / half.size
        limits = ", ".join(map(str, modes))
        notes.append(f"band |u| <= {limits}: {100 * (1 - kept):.1f} % dropped")
    if len(grid) == 3:
        notes.append(_VOLUME_NOTES[volume])
    last = len(grid)
    half, grid, modes = plane_of(half, grid, modes, volume)
    levels, zero = to_decibels(arranged(half, grid, dc), reference, decibels)
    top = float(levels.max())
    if len(grid) == 1:
        _line(ax, levels, grid[0], dc, color="C0")
        _shade(ax, modes, grid[0], dc)
        ax.set_ylim(top - decibels, top + 0.05 * decibels)
        ax.set_ylabel(zero)
    else:
        image = _heat_map(ax, levels, grid, dc, modes, (top - decibels, top), last)
        figure = ax.get_figure()
        assert figure is not None
        figure.colorbar(image, ax=ax, label=zero)
    ax.set_title("\n".join(notes), fontsize="medium")
    _save(ax, path)
    return ax


def compression(
    layers: Any, *, path: str | os.PathLike[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draws a bar for each layer: the share of its coefficients that its band drops.

    Args:
      layers: pairs ``(path, compression)``, a mapping of the one to the other, or anything with
        ``layers`` of which each has ``path`` and ``compression``, such as what
        :func:`bandjax.summary` returns. Compressions are shares in ``0 ... 1``; None for a layer
        that is not band-limited.
      path: file to save the picture in; its ending tells the format.
      ax: where to draw; by default on a figure of its own.

    Returns:
      The axes drawn on; the first layer is on top.

    Raises:
      ImportError: matplotlib is not installed.
      TypeError: ``layers`` holds something else.
      ValueError: no layers, or a compression outside ``[0, 1]``.

    Example:
      >>> from matplotlib.figure import Figure
      >>> axes = compression({"convs.0": 0.508, "convs.1": None}, ax=Figure().subplots())
      >>> [text.get_text() for text in axes.texts]
      ['50.8 %', 'every frequency']
    """
    pairs = _pairs(layers)
    if not pairs:
        raise ValueError("layers must hold at least one layer, got none")
    for name, share in pairs:
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"compression must lie in [0, 1], got {share} for layer {name!r}")
    if ax is None:
        ax = _new_figure((7, 1.2 + 0.28 * len(pairs)), path).subplots()
    percent = [100 * (share or 0.0) for _, share in pairs]
    ax.barh(range(len(pairs)), percent, color="C0")
    for row, ((_, share), width) in enumerate(zip(pairs, percent, strict=True)):
        text = "every frequency" if share is None else f"{width:.1f} %"
        ax.annotate(
            text, (width, row), (4, 0), textcoords="offset points", va="center", fontsize="small"
        )
    ax.set_yticks(range(len(pairs)), [name for name, _ in pairs], fontsize="small")
    ax.set_ylim(len(pairs) - 0.5, -0.5)
    ax.set_xlim(0, 115)  # room for the labels
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel("coefficients dropped (%)")
    ax.set_ylabel("layer")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    _save(ax, path)
    return ax


def layer_spectra(
    before: LayerSignals,
    after: LayerSignals | None = None,
    *,
    dc: Place = "centre",
    decibels: float = 80,
    title: str = "",
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws the spectra of a layer's input, filter, output and gradient, before and after training.

    In one dimension both are lines of the same panel; in two, and as the slice ``u_1 = 0`` in
    three, they are heat maps below one another. 0 dB is the largest magnitude of each quantity, in
    the two together, so that a change of level shows. All four are laid on the layer's grid, sample
    beside sample: with dilations and strides the frequencies of input, filter and output are those
    of each one's own sampling. The layer's band is marked.

    Args:
      before: signals of the layer, see :func:`layer_signals`.
      after: the same, later; None draws ``before`` alone.
      dc: as in :func:`spectrum`.
      decibels: range of the picture, down from 0 dB.
      title: above the picture; by default the layer's path.
      path: file to save the picture in; its ending tells the format.

    Returns:
      The figure. Its panels have the order input, filter, output, gradient.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: the two have different numbers of spatial axes, or an unknown ``dc``.

    Source: Dziedzic et al., supplement 2.12.
    """
    if dc not in ("corner", "centre"):
        raise ValueError(f"dc must be 'corner' or 'centre', got {dc!r}")
    states = [("before", before)] if after is None else [("before", before), ("after", after)]
    ranks = {np.ndim(signals.kernel) - 2 for _, signals in states}
    if len(ranks) != 1:
        raise ValueError(f"before and after must have as many spatial axes, got {sorted(ranks)}")
    (rank,) = ranks
    least = [sizes(signals, rank) for _, signals in states]
    grid = tuple(int(n) for n in np.max(least, axis=0))
    modes = before.modes if before.grid == grid else None
    if modes == tuple(g // 2 for g in grid):
        modes = None
    magnitudes = [[half_magnitude(v, grid)[0] for v in batches(s, rank)] for _, s in states]
    _, plane_grid, plane_modes = plane_of(magnitudes[0][0], grid, modes, "slice")
    drawn = [
        [arranged(plane_of(m, grid, modes, "slice")[0], plane_grid, dc) for m in row]
        for row in magnitudes
    ]
    rows = len(states) if rank > 1 else 1
    figure = _new_figure((13, 1.2 + (2.4 if rank == 1 else 2.9) * rows), path)
    panels = figure.subplots(rows, len(PARTS), squeeze=False)
    for column, heading in enumerate(_TITLES):
        reference = max(float(row[column].max()) for row in drawn)
        for number, ((label, _), row) in enumerate(zip(states, drawn, strict=True)):
            levels, _ = to_decibels(row[column], reference or None, decibels)
            ax = panels[number if rank > 1 else 0][column]
            if rank == 1:
                _line(ax, levels, plane_grid[0], dc, color=f"C{number}", label=label)
            else:
                limits = (-float(decibels), 0.0)
                image = _heat_map(ax, levels, plane_grid, dc, plane_modes, limits, rank)
                ax.set_title(f"{heading}, {label}" if after is not None else heading)
        if rank == 1:
            _shade(ax, plane_modes, plane_grid[0], dc)
            ax.set_ylim(-decibels, 0.05 * decibels)
            ax.set(title=heading, ylabel="magnitude (dB)")
        else:
            bar = figure.colorbar(image, ax=list(panels[:, column]), location="bottom", shrink=0.9)
            bar.set_label("magnitude (dB)")
    if rank == 1:
        panels[0][0].legend(fontsize="small")
    title = title or before.path
    notes = ["0 dB: the largest of each quantity" + (", before and after" if after else "")]
    if rank == 3:
        notes.append(_VOLUME_NOTES["slice"])
    if modes is not None:
        notes.append(f"band |u| <= {', '.join(map(str, modes))} marked")
    figure.suptitle("\n".join(filter(None, [title, "; ".join(notes)])), fontsize="medium")
    if path is not None:
        figure.savefig(path, dpi=90)
    return figure


_VOLUME_NOTES = {"slice": "slice $u_1 = 0$", "marginal": "root mean square over $u_1$"}


def _line(ax: Axes, levels: np.ndarray, g: int, dc: Place, **style: Any) -> None:
    ax.plot(np.arange(len(levels)) + first_frequency(g, dc), levels, linewidth=1.2, **style)
    ax.set_xlabel(f"u (cycles on {g} points)")
    ax.grid(alpha=0.3)


def _shade(ax: Axes, modes: tuple[int, ...] | None, g: int, dc: Place) -> None:
    """Marks a band of one dimension."""
    low = first_frequency(g, dc)
    high = g // 2 if dc == "corner" else (g - 1) // 2
    ax.set_xlim(low - 0.5, high + 0.5)
    ax.xaxis.set_major_locator(report_module("matplotlib.ticker").MaxNLocator(6, integer=True))
    if modes is not None:
        ends = max(-modes[0], low) - 0.5, min(modes[0], high) + 0.5
        ax.axvspan(*ends, color=_OUTLINE, alpha=0.2, linewidth=0, label="band")


def _heat_map(
    ax: Axes,
    levels: np.ndarray,
    grid: tuple[int, ...],
    dc: Place,
    modes: tuple[int, ...] | None,
    limits: tuple[float, float],
    last: int,
) -> Any:
    """An image of the last two of ``last`` axes.

    Its data coordinates are frequencies, but for rows in the order of an FFT.
    """
    rows, columns = levels.shape
    top, left = (first_frequency(g, dc) for g in grid)
    image = ax.imshow(
        levels,
        cmap=_COLOURS,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        extent=(left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5),
        aspect="equal" if max(rows, columns) <= 4 * min(rows, columns) else "auto",
    )
    ticker = report_module("matplotlib.ticker")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    if dc == "corner":
        g = grid[0]
        ax.yaxis.set_major_formatter(
            ticker.FuncFormatter(
                lambda k, _: f"{k if 2 * k <= g else k - g:g}".replace("-", "\u2212")
            )
        )
    ax.set_ylabel(f"$u_{last - 1}$ (cycles on {grid[0]} points)")
    ax.set_xlabel(f"$u_{last}$ (cycles on {grid[1]} points)")
    if modes is not None:
        _outline(ax, grid, modes, dc)
    return image


def _outline(ax: Axes, grid: tuple[int, ...], modes: tuple[int, ...], dc: Place) -> None:
    """Rectangles around the kept frequencies: the whole box, or its two corners S1 and S2."""
    rectangle = report_module("matplotlib.patches").Rectangle
    kept = min(2 * modes[0] + 1, grid[0])
    if dc == "centre":
        across = min(2 * modes[1] + 1, grid[1])
        boxes = [
            (
                max(-modes[1], first_frequency(grid[1], dc)),
                max(-modes[0], first_frequency(grid[0], dc)),
            )
        ]
        extents = [(across, kept)]
    else:
        negative = kept - modes[0] - 1
        boxes = [(0, 0), (0, grid[0] - negative)]
        extents = [(modes[1] + 1, modes[0] + 1), (modes[1] + 1, negative)]
    for (left, top), (width, height) in zip(boxes, extents, strict=True):
        if height:
            ax.add_patch(
                rectangle(
                    (left - 0.5, top - 0.5),
                    width,
                    height,
                    fill=False,
                    edgecolor=_OUTLINE,
                    linewidth=1.5,
                    clip_on=False,
                )
            )


def _pairs(layers: Any) -> list[tuple[str, float | None]]:
    """Path and compression of each layer, from what :func:`compression` takes."""
    layers = getattr(layers, "layers", layers)
    entries: Iterable[Any] = layers.items() if isinstance(layers, Mapping) else layers
    pairs = []
    for entry in entries:
        name: Any
        share: Any
        if hasattr(entry, "compression"):
            name, share = entry.path, entry.compression
        elif isinstance(entry, tuple | list) and len(entry) >= 2:
            name, share = entry[0], getattr(entry[1], "compression", entry[1])
        else:
            raise TypeError(
                "layers must hold (path, compression) pairs or records with path and compression, "
                f"got {entry!r}"
            )
        if share is not None and not isinstance(share, int | float | np.number):
            raise TypeError(f"compression must be a number or None, got {share!r} for {name!r}")
        pairs.append(
            (
                name if isinstance(name, str) else joined(name),
                None if share is None else float(share),
            )
        )
    return pairs


def _new_figure(size: tuple[float, float], path: str | os.PathLike[str] | None) -> Figure:
    figure: Figure
    if path is None:
        figure = report_module("matplotlib.pyplot").figure(figsize=size, layout="constrained")
    else:  # Not in pyplot's list of open figures.
        figure = report_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
    return figure


def _save(ax: Axes, path: str | os.PathLike[str] | None) -> None:
    if path is not None:
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.savefig(path, dpi=110)
