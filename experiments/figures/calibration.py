"""The pictures of ``experiments.calibration``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import bandjax


def _panels(title: str, count: int) -> tuple[Any, Any]:
    """A figure with a panel for each network, side by side."""
    size = (1 + 4.6 * count, 4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)
    figure.suptitle(title)
    return figure, axes[0]


def draw_training(
    title: str,
    paths: dict[str, dict[int, bandjax.Plan]],
    paper: Sequence[int] | None,
    path: Path,
) -> None:
    """The share of coefficients that each layer keeps, by epoch, network by network."""
    figure, panels = _panels(title, len(paths))
    for axes, (name, plans) in zip(panels, paths.items(), strict=True):
        layers = next(iter(plans.values())).layers
        for index, layer in enumerate(layers):
            kept = [100 * p.layers[layer].kept / p.layers[layer].total for p in plans.values()]
            axes.plot(list(plans), kept, ".-", color=f"C{index}", label=layer)
            if paper is not None:
                label = f"conv{index + 1} in the paper: {paper[index]} of 513"
                line = {"linestyle": ":", "color": f"C{index}"}
                axes.axhline(100 * paper[index] / 513, label=label, **line)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(list(plans), [str(epoch) for epoch in plans], fontsize="small")
        axes.set_xticks([], minor=True)
        axes.set(xlabel="epochs of training", title=name, yscale="log", xlim=(-0.2, None))
        for kind in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            kind("{x:g}")
        axes.grid(alpha=0.3, which="both")
    points = "x".join(map(str, next(iter(layers.values())).grid))
    share = 100 * next(iter(plans.values())).share
    panels[0].set_ylabel(
        f"coefficients for {share:g} % of the energy,\n% of the half spectrum (grid {points})"
    )
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=100)


def draw_energy(
    title: str,
    curves: dict[str, list[bandjax.Plan]],
    share: float,
    paper: Sequence[int] | None,
    path: Path,
) -> None:
    """The share of coefficients that holds a share of the energy, network by network."""
    figure, panels = _panels(title, len(curves))
    for axes, (name, plans) in zip(panels, curves.items(), strict=True):
        layers = plans[0].layers
        for index, layer in enumerate(layers):
            kept: list[Any] = [100 * p.layers[layer].kept / p.layers[layer].total for p in plans]
            colour = f"C{index}"
            axes.plot(kept, [100 * p.share for p in plans], ".-", color=colour, label=layer)
            if paper is not None:
                label = f"conv{index + 1} in the paper: {paper[index]} of 513"
                size = {"markersize": 9, "markeredgewidth": 2}
                axes.plot(
                    100 * paper[index] / 513, 100 * share, "x", color=colour, label=label, **size
                )
        points = "x".join(map(str, next(iter(layers.values())).grid))
        axes.axhline(100 * share, color="0.6", linewidth=0.8, zorder=0)
        axes.set(
            xscale="log",
            xlabel=f"coefficients kept, % of the half spectrum (grid {points})",
            title=name,
        )
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("spectral energy held, %")
    panels[-1].legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=100)
