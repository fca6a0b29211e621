"""Bands compared over data sets, on known numbers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from experiments.jobs.comparison import compare, comparison_table, draw_accuracies, draw_ranks


def record(curve, compression=0.25):
    result = {"test_accuracy": curve[-1], "compression": {"total": compression}}
    return {"result": result, "curves": {"test_accuracy": curve}}


def test_comparison_of_known_numbers():
    sets = {
        "one": {"a": [record([0.2, 0.5]), record([0.4, 0.7])], "b": [record([0.1, 0.9])] * 2},
        "two": {"a": [record([0.0, 0.3]), record([0.2, 0.5])], "b": [record([0.1, 0.4])] * 2},
    }
    found = compare(sets)
    assert found["bands"] == ["a", "b"]
    assert found["sets"]["one"]["a"]["seeds"] == [0.5, 0.7]
    assert found["sets"]["one"]["a"]["mean"] == pytest.approx(0.6)
    assert found["sets"]["one"]["a"]["std"] == pytest.approx(0.02**0.5)
    a, b = found["overall"]["a"], found["overall"]["b"]
    # The seeds' means over the sets are 0.4 and 0.6 with a, 0.65 twice with b.
    assert (a["mean"], a["std"]) == (pytest.approx(0.5), pytest.approx(0.02**0.5))
    assert (b["mean"], b["std"]) == (pytest.approx(0.65), pytest.approx(0))
    assert (a["better"], a["equal"], a["worse"]) == (0, 2, 0)
    assert (b["better"], b["equal"], b["worse"]) == (1, 1, 0)
    assert (a["rank"], b["rank"]) == (1.75, 1.25)
    assert a["by_epoch"] == pytest.approx([0.2, 0.5])
    assert a["compression"] == 0.25
    assert found["friedman_p"] is found["wilcoxon_p"] is None
    assert found["late_epochs"] == 1
    assert a["late"] == {"mean": a["mean"], "std": a["std"]}


def test_late_epochs_are_the_last_tenth():
    """Of 29 epochs the last two; the last alone stays what the ranks go by."""
    swinging = [0.0] * 27 + [0.25, 0.75]
    sets = {
        "one": {"a": [record(swinging), record([0.1] * 29)], "b": [record([0.5] * 29)] * 2},
        "two": {"a": [record([0.3] * 29)] * 2, "b": [record([0.5] * 29)] * 2},
    }
    found = compare(sets)
    assert found["late_epochs"] == 2
    late = found["sets"]["one"]["a"]["late"]
    assert late["seeds"] == pytest.approx([0.5, 0.1])
    assert (late["mean"], late["std"]) == (pytest.approx(0.3), pytest.approx(0.08**0.5))
    assert found["sets"]["one"]["a"]["mean"] == pytest.approx(0.425)
    # The seeds' late means over the sets are 0.4 and 0.2.
    overall = found["overall"]["a"]["late"]
    assert (overall["mean"], overall["std"]) == (pytest.approx(0.3), pytest.approx(0.02**0.5))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table("title", found))
    assert "mean, last 2 epochs" in console.export_text()


def test_table_cuts_no_figure():
    """On a terminal of 80 columns names fold; bands and figures are whole."""
    bands = ("none", "compression=0.5", "compression=0.75")
    runs = {band: [record([1.0]), record([0.5])] for band in bands}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table("title", compare({"ucr:MiddlePhalanxOutlineAgeGroup": runs})))
    shown = console.export_text()
    assert "…" not in shown
    assert all(band in shown for band in bands)
    assert shown.count("75.00 ± 35.36") == 6


@pytest.mark.full
def test_differences_between_three_bands(tmp_path):
    """Over ten sets one band is worst each time, and the other two take turns."""
    sets = {}
    for index in range(10):
        lead = 0.01 * (index + 1) * (-1) ** index
        accuracies = {"x": 0.8, "y": 0.8 + lead, "z": 0.5 - 0.001 * index}
        sets[f"set{index}"] = {band: [record([v])] for band, v in accuracies.items()}
    found = compare(sets)
    ranks = {band: entry["rank"] for band, entry in found["overall"].items()}
    assert ranks == {"x": 1.5, "y": 1.5, "z": 3.0}
    # Friedman's statistic by its definition: 12 n / (k (k + 1)) sum of (rank - 2)^2 is 15; the
    # chi-squared distribution with two degrees of freedom is exponential.
    assert found["friedman_p"] == pytest.approx(np.exp(-15 / 2))
    # All ten differences have one sign: exactly 2 / 2^10, times 3 and 2 by Holm's method.
    pairs = found["wilcoxon_p"]
    assert pairs["x"]["z"] == pairs["z"]["x"] == pytest.approx(3 * 2 / 2**10)
    assert pairs["x"]["y"] > 0.5
    assert found["overall"]["x"]["std"] is None

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table("title", found))
    shown = console.export_text()
    assert "mean of 10" in shown
    assert "0 / 0 / 10" in shown
    assert draw_ranks("title", found, tmp_path / "ranks.png")
    draw_accuracies("title", found, tmp_path / "accuracy.png")
    for name in ("ranks.png", "accuracy.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    # Nothing to tell apart is no difference, not NaN.
    same = {name: {band: [record([0.5])] for band in "xyz"} for name in ("s", "t")}
    equal = compare(same)
    assert equal["friedman_p"] == 1
    assert set(equal["wilcoxon_p"]["x"].values()) == {1.0}
