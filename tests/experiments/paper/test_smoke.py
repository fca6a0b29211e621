"""Every figure at its smoke budget, from nothing, and its values beside stored ones.

``python tests/experiments/paper/test_smoke.py [FIGURE...]`` stores them anew.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.paper import items, page
from experiments.paper.__main__ import main
from experiments.paper.layers import low_share

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("quick_compile", "no_pictures")]

ROOT = Path(__file__).parents[3]
STORED = Path(__file__).with_name("smoke.json")
NAMES = [item.name for item in items.ITEMS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


def make(name, folder):
    """Make a figure; returns its record."""
    words = ["--budget", "smoke", "--out", str(folder / "out"), "--models", str(folder / "models")]
    assert main([name, *words]) == 0
    (item,) = items.find([name])
    return page.read_record(page.record_path(folder / "out", "smoke", item), item)


# Of each kind of value, absolute and relative: training is repeated to rounding alone, which a few
# steps make larger; what is counted is exact.
TOLERANCES = {
    "count": (0, 0),
    "number": (1e-4, 1e-3),
    "loss": (0.02, 0.02),
    "accuracy": (0.06, 0),
    "kept": (3, 0.1),
}


def values_of(record):
    """The values of a record that are compared, by kind and name."""
    found = {}

    def add(kind, name, value):
        found[f"{kind}: {name}"] = np.asarray(value, float).tolist()

    for job in record.get("jobs", []):
        for run in job["runs"]:
            name = f"{job['key']} {run['band']}"
            add("accuracy", f"{name} accuracy", run["test_accuracy"])
            add(
                "number",
                f"{name} dropped",
                run["compression"] if "energy" not in run["band"] else 0,
            )
            if run["saved_bytes"] is not None:
                add("count", f"{name} bytes", run["saved_bytes"])
            if "curves" in run:
                add("loss", f"{name} loss", run["curves"]["train_loss"])
    extra = _EXTRA.get(record["item"])
    if extra is not None:
        extra(record, add)
    assert found
    return found


def _heatmaps(record, add):
    add("number", "magnitudes", record["magnitudes"][0][:4])
    add("count", "for 99 %", record["coefficients_for_99_percent"])
    add("count", "modes", record["photo"]["modes"])
    add("number", "energy kept", record["photo"]["energy_kept"])


def _energy_error(record, add):
    for name, curve in record["curves"].items():
        add("number", f"{name} error", curve["error_percent"][3::4])
        add("number", f"{name} kept", curve["kept"][3::4])


def _top_error(record, add):
    for name, curve in record["curves"].items():
        add("number", f"{name} median", curve["50 %"][1:-1:2])


def _fcn(record, add):
    for label, found in record["measured"].items():
        add("kept", f"{label} coefficients", found["paper_kept"])
        add("count", f"{label} of", found["paper_total"])
        add("count", f"{label} length", found["length"])
    add("count", "dense bytes", list(record["measured"]["none"]["bytes_none"].values()))


def _tested(record, add):
    for label, rows in record["accuracy"].items():
        add("accuracy", f"{label} tested", rows)


def _ranks(record, add):
    for trained, found in record["compared"].items():
        add("accuracy", f"trained at {trained}", found["mean_accuracy"])


def _robustness(record, add):
    for name, attack in record["attacks"].items():
        for label in attack["right"]:
            from experiments.paper.robustness import right

            add("accuracy", f"{name} {label}", right(attack, label).mean(1))


def _spectra(record, add):
    for path, layer in record["layers"].items():
        add("count", f"{path} grid", layer["grid"])
        for part, magnitudes in layer["before"].items():
            add("number", f"{path} {part} before", low_share(magnitudes))


def _kept(record, add):
    for name, by_kind in record["kept"].items():
        for kind, found in by_kind.items():
            add("count", f"{name} {kind}", next(iter(_leaves(found))))


def _leaves(found):
    for value in found.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


_EXTRA = {
    "heatmaps": _heatmaps,
    "energy-error": _energy_error,
    "top-error": _top_error,
    "fcn": _fcn,
    "train-test": _tested,
    "ranks": _ranks,
    "robustness": _robustness,
    "spectra": _spectra,
    "precision": _kept,
    "resources": _kept,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_at_smoke_has_the_stored_values(name, folder):
    found = values_of(make(name, folder))
    stored = json.loads(STORED.read_text())[name]
    assert found.keys() == stored.keys()
    for key, value in found.items():
        absolute, relative = TOLERANCES[key.partition(":")[0]]
        np.testing.assert_allclose(value, stored[key], rtol=relative, atol=absolute, err_msg=key)


def test_what_is_done_is_not_done_again(folder, capsys, monkeypatch):
    record = make("lenet", folder)
    capsys.readouterr()
    monkeypatch.setattr("experiments.paper.store.run_job", lambda *_: pytest.fail("trained again"))
    assert make("lenet", folder) == record
    assert "already done" in capsys.readouterr().out
    # Without the record of the figure its networks are still there.
    (folder / "out/smoke/lenet.json").unlink()
    again = make("lenet", folder)
    assert values_of(again) == values_of(record)
    shutil.rmtree(folder / "out")


def test_killed_and_started_again_it_ends_with_the_same_record(tmp_path):
    """SIGKILL within the first run, and again behind its end, in the second network's."""
    words = [sys.executable, "-m", "experiments.paper", "lenet", "--budget", "smoke"]
    words += ["--out", str(tmp_path / "out"), "--models", str(tmp_path / "models")]
    for pattern in ("*/none_seed-0/metrics.jsonl", "*/none_seed-0.json"):
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            limit = time.monotonic() + 300
            while not list((tmp_path / "models").glob(pattern)):
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.01)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out/smoke/lenet.json").exists()
    (killed,) = (tmp_path / "models").glob("*/none_seed-0.json")
    first = killed.read_bytes()
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert killed.read_bytes() == first  # not trained again
    other = tmp_path / "alone"
    alone = [*words[:-3], str(other / "out"), "--models", str(other / "models")]
    subprocess.run(alone, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    one, two = (
        timeless(json.loads((place / "out/smoke/lenet.json").read_text()))
        for place in (tmp_path, other)
    )
    assert one == two
    assert one["jobs"][0]["runs"][1]["curves"]["test_accuracy"]


def timeless(value):
    """A record without what differs from one moment to the next."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("date", "seconds_per_epoch")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    import tempfile

    from experiments.benchmarks import steps
    from experiments.settings.compiler import quick_jit
    from experiments.training import network

    network._jit = steps._jit = quick_jit  # As the tests do.
    stored = json.loads(STORED.read_text())
    with tempfile.TemporaryDirectory() as place:
        for each in sys.argv[1:] or NAMES:
            stored[each] = values_of(make(each, Path(place)))
            rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in stored.items())
            STORED.write_text(f"{{\n{rows}\n}}\n")
