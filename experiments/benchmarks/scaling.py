"""How the time of a point grows with the map: a picture of the group ``scaling``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from experiments.benchmarks.workloads import SCALING
from experiments.settings.records import Record

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator


def lines(rows: Sequence[Record]) -> dict[tuple[int, str], dict[str, dict[int, float]]]:
    """Nanoseconds a point against the length of a side.

    Args:
        rows: of the benchmark; those of other groups do not count, and of two of the same workload
            the later does.

    Returns:
        For each number of axes and each precision the lines by name: bandjax at each band, and the
        fastest variant of each peer.
    """
    found: dict[tuple[int, str], dict[str, dict[int, float]]] = {}
    for row in {(r["workload"], r["precision"]): r for r in rows if r["group"] == SCALING}.values():
        grid = next(iter(row["bands"].values()))["grid"]
        panel = found.setdefault((len(grid), row["precision"]), {})
        size = int(row["workload"].rpartition("-")[2])
        for candidate in row["candidates"]:
            ours = candidate["side"] == "bandjax"
            name = candidate["name"] if ours else candidate["side"]
            line = panel.setdefault(name, {})
            time = 1e9 * candidate["seconds"]["median"] / row["points"]
            line[size] = min(time, line.get(size, math.inf))
    return found


def plot(rows: Sequence[Record], title: str, path: Path) -> bool:
    """Time a point against the length of a side, on logarithmic scales, a panel for each rank.

    Returns:
        Whether there was anything to draw.
    """
    panels = sorted(lines(rows).items())
    if not panels:
        return False
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.5), layout="constrained", squeeze=False
    )
    for axis, ((rank, precision), named) in zip(axes[0], panels, strict=True):
        sizes = sorted({size for line in named.values() for size in line})
        for name, line in named.items():
            at = sorted(line)
            style = "-" if name.startswith("bandjax") else "--"
            axis.loglog(at, [line[size] for size in at], style, marker="o", label=name)
        axis.xaxis.set_major_locator(FixedLocator(sizes))
        axis.xaxis.set_minor_locator(NullLocator())
        labels = FuncFormatter(lambda size, _, rank=rank: f"{size:g}{'²' if rank == 2 else '³'}")
        axis.xaxis.set_major_formatter(labels)
        what = "pixel" if rank == 2 else "voxel"
        axis.set(xlabel="map", ylabel=f"nanoseconds a {what}: output and both gradients")
        axis.set_title(f"3{'×3' * (rank - 1)} layers, {precision}", fontsize=10)
        axis.grid(which="both", alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
