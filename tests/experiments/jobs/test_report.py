"""What a job says at its end, on known numbers."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments.jobs.report import gain, plot, summarise, table

FEW = "compression=0.5,remat=blocks,residual-dtype=int8"


def record(band, seed, accuracy, seconds=1.0, kept=8 << 20, temporary=4 << 20):
    curve = [0.5, 0.25, 0.125]
    return {
        "config": {"band": band, "seed": seed},
        "result": {
            "test_accuracy": accuracy,
            "seconds_per_epoch": seconds,
            "compression": {"total": 0.25},
            "saved_bytes": kept,
            "temporary_bytes": temporary,
        },
        "curves": {
            f"{split}_{name}": curve for split in ("train", "test") for name in ("loss", "accuracy")
        },
    }


def runs(band, *accuracies, **others):
    return [record(band, seed, accuracy, **others) for seed, accuracy in enumerate(accuracies)]


def test_summary_of_known_numbers():
    many, one = summarise(
        [record("b", 0, 0.5, 3.0), record("b", 1, 0.7, 1.0), record("a", 0, 0.9, 2.0)]
    )
    assert many["test_accuracy"]["mean"] == pytest.approx(0.6)
    assert many["test_accuracy"]["std"] == pytest.approx(0.02**0.5)
    assert many["seconds_per_epoch"] == 2
    assert one["band"] == "a"
    assert one["test_accuracy"]["std"] is None
    older = record("a", 0, 0.9)
    del older["result"]["temporary_bytes"]
    assert summarise([older])[0]["temporary_bytes"] is None


def shown(summary):
    """The table on a terminal of 80 columns, as rows of words."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table("title", summary))
    text = console.export_text()
    assert "…" not in text
    return text, [line.split() for line in text.splitlines()]


def test_table_compares_with_dense():
    summary = summarise(
        [
            *runs("none", 0.9, 0.92),
            *runs("compression=0.5", 0.9, kept=6 << 20, temporary=None),
            *runs(FEW, 0.8, 0.9, seconds=0.5, kept=1 << 19, temporary=8 << 20),
        ]
    )
    text, rows = shown(summary)
    assert "in brackets how many times fewer bytes than with none" in " ".join(text.split())
    assert ["none", "91.00", "±", "1.41", "25.0", "1.000", "8.00", "4.00"] in rows
    assert ["compression=0.5", "90.00", "25.0", "1.000", "6.00", "-"] in rows
    assert ["(1.3x)"] in rows
    assert ["compression=0.5,", "85.00", "±", "7.07", "25.0", "0.500", "0.50", "8.00"] in rows
    assert ["remat=blocks,", "(16.0x)", "(0.5x)"] in rows
    assert ["residual-dtype=int8"] in rows
    assert "brackets" not in shown(summary[:1])[0]
    assert "brackets" not in shown(summary[1:])[0]


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        (
            {"seconds": 0.624, "kept": 1 << 19},
            "keeps 1/16.0 of the bytes for the backward pass and takes 0.62 of the time for an "
            "epoch",
        ),
        ({"seconds": 1.2, "kept": 4 << 20}, "keeps 0.50 of the bytes "),
        ({"seconds": 1.2, "kept": 4 << 20}, "takes 1.20 times the time for an epoch"),
        ({"kept": 16 << 20}, "keeps 2.00 times the bytes"),
    ],
)
def test_what_was_gained_in_bytes_and_time(others, sentence):
    text = gain(summarise([*runs("none", 0.9, 0.92), *runs(FEW, 0.9, 0.92, **others)]))
    assert sentence in text
    assert text.startswith(f"Against none, {FEW} keeps ")


@pytest.mark.parametrize(
    ("dense", "limited", "sentence"),
    [
        # Standard deviations of sqrt(2) and 2 sqrt(2) points: their hypotenuse is 3.16.
        ((0.90, 0.92), (0.86, 0.90), "the same test accuracy within the spread of the seeds (88."),
        ((0.90, 0.92), (0.85, 0.89), "but its test accuracy is 4.00 points lower (87.00 and 91.00"),
        ((0.85, 0.89), (0.90, 0.92), "and its test accuracy is 4.00 points higher (91.00 and 87."),
        ((0.90, 0.92), (0.85, 0.89), "the spread of the seeds is 3.16)"),
        (
            (0.9,),
            (0.5, 0.6),
            "at test accuracies of 55.00 and 90.00 % (a single seed tells no spread)",
        ),
        ((0.9, 0.9), (0.9, 0.9), "at the same test accuracy within the spread"),
    ],
)
def test_what_was_gained_or_lost_in_accuracy(dense, limited, sentence):
    assert sentence in gain(summarise([*runs("none", *dense), *runs(FEW, *limited)]))


def test_the_gain_is_that_of_the_fewest_bytes():
    found = summarise(
        [*runs("a", 0.9, kept=3), *runs("none", 0.9), *runs("b", 0.9, kept=2), *runs("c", 0.9)]
    )
    assert gain(found).startswith("Against none, b keeps ")
    assert gain(found[:1]) is None
    assert gain(found[1:2]) is None
    assert gain([found[0], *found[2:]]) is None


def test_the_picture_has_every_variant(tmp_path):
    records = [*runs("none", 0.9, 0.92), *runs(FEW, 0.9, 0.92, temporary=None)]
    plot("title", records, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
