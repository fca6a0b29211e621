"""Bands compared over many data sets: means, ranks, tests and pictures.

As is usual for the UCR archive (Demsar, "Statistical comparisons of classifiers over multiple data
sets", JMLR 2006; Benavoli et al., "Should we really use post-hoc tests based on mean-ranks?", JMLR
2016): a Friedman test of the ranks over the sets, then Wilcoxon's signed-rank test of each pair
with Holm's correction, drawn as a critical-difference diagram.
"""

from __future__ import annotations

import os
import statistics
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from experiments.jobs.report import foldable
from experiments.settings.errors import UserError
from experiments.settings.records import Record

SIGNIFICANCE = 0.05
LATE_SHARE = 10
"""The late epochs are the last of so many parts of a run."""


def import_posthocs() -> ModuleType:
    """The module of scikit-posthocs.

    Raises:
        UserError: it is not installed.
    """
    try:
        import scikit_posthocs
    except ImportError as error:
        raise UserError(
            "comparing three bands or more needs scikit-posthocs: pip install 'bandjax[sweep]'"
        ) from error
    return scikit_posthocs


def compare(sets: dict[str, dict[str, list[Record]]]) -> Record:
    """What the bands reached.

    Args:
        sets: by data set and band the records of the seeds; the same bands in each, with the same
            seeds in the same order. The first band is the one that others are compared with.

    Returns:
        ``bands``; ``sets``, by set and band the accuracies of the ``seeds`` in the last epoch,
        their ``mean`` and ``std`` (sample standard deviation, None for one seed), the same of each
        run's mean over its late epochs (``late``) and the ``compression``; ``overall``, by band
        the ``mean`` over sets and seeds, ``std`` of the seeds' means over the sets, the same of
        the late epochs, how many sets are ``better``, ``equal`` and ``worse`` than with the first
        band, the mean ``rank`` (1 is best, equal ones share) and ``by_epoch``, the mean accuracy
        after each epoch; ``late_epochs``, how many they are, the last tenth: the last epoch alone
        swings where an epoch is few steps; ``friedman_p``, the probability that bands which do not
        differ have ranks at least so different (None below three bands or two sets); and
        ``wilcoxon_p``, by pair of bands, corrected by Holm's method (None likewise).
    """
    bands = list(next(iter(sets.values())))
    length = len(next(iter(sets.values()))[bands[0]][0]["curves"]["test_accuracy"])
    late_epochs = max(1, length // LATE_SHARE)
    table: Record = {}
    for name, by_band in sets.items():
        table[name] = {}
        for band, runs in by_band.items():
            each = [run["result"]["test_accuracy"] for run in runs]
            curves = np.array([run["curves"]["test_accuracy"] for run in runs])
            late = curves[:, -late_epochs:].mean(1).round(6).tolist()
            table[name][band] = {
                "seeds": each,
                **_spread(each),
                "late": {"seeds": late, **_spread(late)},
                "compression": runs[0]["result"]["compression"]["total"],
            }
    accuracies = np.array([[table[name][band]["seeds"] for band in bands] for name in sets])
    late_ones = np.array([[table[name][band]["late"]["seeds"] for band in bands] for name in sets])
    means = accuracies.mean(-1)
    ranks = stats.rankdata(-means, axis=1).mean(0)
    overall = {}
    for index, band in enumerate(bands):
        curves = [run["curves"]["test_accuracy"] for each in sets.values() for run in each[band]]
        difference = means[:, index] - means[:, 0]
        overall[band] = {
            **_spread(accuracies[:, index].mean(0).tolist()),
            "late": _spread(late_ones[:, index].mean(0).tolist()),
            "compression": statistics.mean(table[name][band]["compression"] for name in sets),
            "better": int((difference > 0).sum()),
            "equal": int((difference == 0).sum()),
            "worse": int((difference < 0).sum()),
            "rank": float(ranks[index]),
            "by_epoch": np.mean(curves, axis=0).round(6).tolist(),
        }
    return {
        "bands": bands,
        "late_epochs": late_epochs,
        "overall": overall,
        **_significance(bands, means),
        "sets": table,
    }


def _spread(values: list[float]) -> dict[str, float | None]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": spread}


def _significance(bands: list[str], means: np.ndarray) -> Record:
    """Friedman's p, and Wilcoxon's of each pair corrected by Holm; None for too few bands or sets.

    Args:
        bands: their names.
        means: accuracies, ``(sets, bands)``.
    """
    if len(bands) < 3 or len(means) < 2:
        return {"friedman_p": None, "wilcoxon_p": None}
    with warnings.catch_warnings():  # Few sets, or sets where all bands are equal: p is NaN or 1.
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        friedman = float(stats.friedmanchisquare(*means.T).pvalue)
        pairs = import_posthocs().posthoc_wilcoxon(
            list(means.T), zero_method="zsplit", p_adjust="holm"
        )
    values = np.nan_to_num(pairs.to_numpy(), nan=1.0)
    return {
        "friedman_p": friedman if np.isfinite(friedman) else 1.0,
        "wilcoxon_p": {
            band: dict(zip(bands, row, strict=True))
            for band, row in zip(bands, values.tolist(), strict=True)
        },
    }


def comparison_table(title: str, comparison: Record) -> Table:
    """Test accuracy of each set and band, and the means below."""
    bands = comparison["bands"]
    result = Table(
        title=title,
        caption="test accuracy, %: mean ± standard deviation over the seeds, last epoch",
    )
    result.add_column("data set", overflow="fold")
    for band in bands:
        result.add_column(foldable(band), justify="right", no_wrap=True)
    for name, row in comparison["sets"].items():
        result.add_row(name, *(_cell(row[band]) for band in bands))
    result.add_section()
    overall = comparison["overall"]
    count = len(comparison["sets"])
    result.add_row(f"mean of {count}", *(_cell(overall[band]) for band in bands))
    late_epochs = comparison["late_epochs"]
    if late_epochs > 1:
        result.add_row(
            f"mean, last {late_epochs} epochs", *(_cell(overall[band]["late"]) for band in bands)
        )
    result.add_row("mean rank", *(f"{overall[band]['rank']:.2f}" for band in bands))
    result.add_row(
        "better / equal / worse",
        *("" if band == bands[0] else _against(overall[band]) for band in bands),
    )
    result.add_row(
        "compression", *(f"{100 * overall[band]['compression']:.1f} %" for band in bands)
    )
    return result


def _cell(entry: Record) -> str:
    spread = "" if entry["std"] is None else f" ± {100 * entry['std']:.2f}"
    return f"{100 * entry['mean']:.2f}{spread}"


def _against(entry: Record) -> str:
    return f"{entry['better']} / {entry['equal']} / {entry['worse']}"


def draw_accuracies(title: str, comparison: Record, path: Path) -> None:
    """Each band's accuracy against the first one's, set by set; and the mean by epoch."""
    from matplotlib.figure import Figure  # Takes longer to import than all else here.

    first, *others = comparison["bands"]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    pairs, epochs = figure.subplots(1, 2)
    rows = comparison["sets"].values()
    for index, band in enumerate(others, 1):
        style: dict[str, Any] = {"color": f"C{index}", "fmt": "o", "markersize": 4, "alpha": 0.8}
        x, y = ([100 * row[b]["mean"] for row in rows] for b in (first, band))
        errors = ([100 * (row[b]["std"] or 0) for row in rows] for b in (first, band))
        x_error, y_error = errors
        label = f"{band}: {_against(comparison['overall'][band])}"
        pairs.errorbar(x, y, y_error, x_error, label=label, linewidth=0.6, **style)
    low, high = _within(pairs.get_xlim())
    pairs.axline((low, low), slope=1, color="0.5", linewidth=0.8, zorder=0)
    pairs.set(
        xlim=(low, high),
        ylim=_within(pairs.get_ylim()),
        xlabel=f"test accuracy, {first} (%)",
        ylabel="test accuracy (%)",
        title=f"{len(rows)} data sets",
    )
    if others:
        pairs.legend(title="better / equal / worse", fontsize="small", loc="lower right")
    for index, (band, entry) in enumerate(comparison["overall"].items()):
        curve = 100 * np.array(entry["by_epoch"])
        epochs.plot(
            np.arange(1, len(curve) + 1), curve, color=f"C{index}", linewidth=1.2, label=band
        )
    epochs.set(
        xlabel="epoch", ylabel="test accuracy (%)", title="mean over the data sets and seeds"
    )
    epochs.legend(fontsize="small", loc="lower right")
    for axes in (pairs, epochs):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    _save(figure, path)


def _within(limits: tuple[float, float]) -> tuple[float, float]:
    """An axis of percentages: error bars beyond 0 and 100 are cut."""
    return max(limits[0], -1), min(limits[1], 101)


def draw_ranks(title: str, comparison: Record, path: Path) -> bool:
    """A critical-difference diagram; returns False, and draws nothing, where no test was made.

    Bars join bands that no Wilcoxon test tells apart.
    """
    if comparison["wilcoxon_p"] is None:
        return False
    import pandas as pd
    from matplotlib.figure import Figure

    posthocs = import_posthocs()
    bands = comparison["bands"]
    figure = Figure(figsize=(8, 1.6 + 0.25 * len(bands)), layout="constrained")
    ranks = {band: comparison["overall"][band]["rank"] for band in bands}
    posthocs.critical_difference_diagram(
        ranks,
        pd.DataFrame(comparison["wilcoxon_p"]),
        ax=figure.subplots(),
        alpha=SIGNIFICANCE,
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        color_palette={band: f"C{index}" for index, band in enumerate(bands)},
    )
    figure.suptitle(
        f"{title}: mean rank over {len(comparison['sets'])} data sets (1 is best)\n"
        f"Friedman p = {comparison['friedman_p']:.2g}; bars join what Wilcoxon-Holm at "
        f"{SIGNIFICANCE:g} does not tell apart",
        fontsize="small",
    )
    _save(figure, path)
    return True


def _save(figure: Any, path: Path) -> None:
    """The whole picture, or the one before."""
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=120, format="png")
    os.replace(part, path)
