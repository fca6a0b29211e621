"""Tables and pictures of what is saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bandjax._optional import report_module
from bandjax.memory._saved import (
    CONV_INPUT,
    FILTER,
    MIB,
    PACKED,
    SCALE,
    SPECTRUM,
    SavedBytes,
    _sums,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table


def table(reports: Mapping[str, SavedBytes]) -> Table:
    """A table with one row for each variant: MiB in all, in the mean, and of spectra.

    Args:
      reports: what each variant keeps, see :func:`saved_bytes`. The first is what the others are
        compared with.

    Returns:
      A ``rich.table.Table``; ``rich.print`` prints it.

    Raises:
      ImportError: rich is not installed.
      ValueError: no reports.
    """
    _check_reports(reports)
    rich_table = report_module("rich.table")
    escape = report_module("rich.markup").escape
    made: Table = rich_table.Table(title="kept between forward and backward, MiB")
    made.add_column("", overflow="fold")
    for heading in ("total", "average", "share", "spectra", "other"):
        made.add_column(heading, justify="right")
    first = next(iter(reports.values())).total
    for variant, saved in reports.items():
        kinds = saved.by_kind()
        spectra = sum(kinds.get(kind, 0) for kind in (SPECTRUM, SCALE, FILTER))
        made.add_row(
            escape(variant),
            f"{saved.total / MIB:.1f}",
            f"{saved.average / MIB:.1f}",
            f"{saved.total / first:.1%}" if first else "",
            f"{spectra / MIB:.1f}",
            f"{(saved.total - spectra) / MIB:.1f}",
        )
    return made


def plot(
    reports: Mapping[str, SavedBytes],
    path: str | os.PathLike[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws a bar for each variant, stacked by what is kept: spectra, inputs, other activations.

    Args:
      reports: what each variant keeps, see :func:`saved_bytes`; the first is drawn on top, and the
        others' totals are labelled as shares of its own.
      path: file to save the picture in; its ending tells the format.
      ax: where to draw; by default on a figure of its own.

    Returns:
      The axes drawn on.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: no reports.
    """
    _check_reports(reports)
    if ax is None:
        size = (9, 1.6 + 0.5 * len(reports))
        if path is None:
            pyplot = report_module("matplotlib.pyplot")
            _, ax = pyplot.subplots(figsize=size, layout="constrained")
        else:  # Not in pyplot's list of open figures.
            figures = report_module("matplotlib.figure")
            ax = figures.Figure(figsize=size, layout="constrained").subplots()
    assert ax is not None
    groups = [_groups(saved) for saved in reports.values()]
    shown = _largest(groups)
    left = np.zeros(len(reports))
    for color, label in enumerate(shown):
        if label == REST:
            sizes = [sum(size for name, size in g.items() if name not in shown) for g in groups]
        else:
            sizes = [g.get(label, 0) for g in groups]
        widths = np.array(sizes) / MIB
        colour = f"C{color}" if label != REST else "0.75"
        ax.barh(range(len(reports)), widths, left=left, color=colour, label=label)
        left += widths
    first = left[0]
    for row, total in enumerate(left):
        share = f" ({total / first:.0%})" if row and first else ""
        ax.annotate(
            f"{total:.3g} MiB{share}",
            (total, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    ax.set_yticks(range(len(reports)), list(reports))
    ax.set_ylim(len(reports) - 0.5, -0.5)
    ax.set_xlim(0, 1.4 * max(left.max(), 1e-6))  # room for the labels
    ax.set_xlabel("kept between forward and backward, MiB")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    if shown:
        ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.5)
    if path is not None:
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.savefig(path, dpi=130)
    return ax


REST = "all else"
_LABELS = {
    SPECTRUM: "spectra",
    SCALE: "scales",
    FILTER: "filter spectra",
    PACKED: "packed",
    CONV_INPUT: "inputs of convolutions",
}


def _groups(saved: SavedBytes) -> dict[str, int]:
    """Bytes of each kind, and of each operation or name among the others."""
    return _sums(
        (_LABELS.get(tensor.kind, tensor.name or tensor.operation), tensor.nbytes)
        for tensor in saved.tensors
    )


def _largest(groups: list[dict[str, int]], most: int = 6) -> list[str]:
    """Labels in the order of the legend: the kinds, then the largest others, then the rest."""
    size = {label: max(g.get(label, 0) for g in groups) for g in groups for label in g}
    kinds = [label for label in _LABELS.values() if label in size]
    others = sorted((label for label in size if label not in kinds), key=lambda g: -size[g])
    visible = [label for label in others[:most] if size[label] > max(size.values()) / 100]
    return kinds + visible + ([REST] if len(visible) < len(others) else [])


def _check_reports(reports: Mapping[str, SavedBytes]) -> None:
    if not reports:
        raise ValueError("reports must hold what at least one variant keeps, got none")
