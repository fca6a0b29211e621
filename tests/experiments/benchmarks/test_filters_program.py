"""The benchmark of filter spectra that are kept."""

from __future__ import annotations

import json

import pytest

from experiments.benchmarks import filters, workloads

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def small(monkeypatch):
    layer = workloads.Layer("small", "stages", 2, (8, 8), (3, 3), 4, 6)
    monkeypatch.setattr(workloads, "WORKLOADS", (layer,))
    return layer


def test_it_counts_what_is_handed_on(small, tmp_path, capsys):
    out = tmp_path / "filters.json"
    assert filters.main(["--batch", "2", "--runs", "2", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    kept = {candidate["name"]: candidate["kept_bytes"] for candidate in row["candidates"]}
    geometry = small.geometry(filters.parse_band("compression=0.5")[1])
    spectrum = 2 * geometry.kept * small.batch * small.inputs * 4
    filter_spectrum = 2 * geometry.kept * small.inputs * small.outputs * 4
    for method in ("dft", "fft"):
        assert kept[f"{method} recompute"] == spectrum
        assert kept[f"{method} keep"] == spectrum + filter_spectrum
    assert all(candidate["seconds"]["median"] > 0 for candidate in row["candidates"])
    shown = capsys.readouterr().out
    assert "dft keep" in shown
    assert "small" in shown


def test_bad_options(capsys):
    assert filters.main(["--band", "half"]) == 2
    assert "error: unknown band 'half'" in capsys.readouterr().err
    assert filters.main(["--batch", "0"]) == 2
    assert "--batch must be >= 1" in capsys.readouterr().err
    assert filters.main(["--runs", "0"]) == 2
    assert "need --runs >= 1" in capsys.readouterr().err
