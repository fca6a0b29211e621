"""The paper's figures: names, keys, pages from records, and verdicts, on records made up here."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy import stats

from experiments.jobs.options import Options as TrainOptions
from experiments.paper import items, ranks, spectra, train_test
from experiments.paper.__main__ import RESULTS, main
from experiments.paper.item import BUDGETS, energy_band
from experiments.paper.page import best_record, page, read_record, record_path
from experiments.paper.store import Job, as_entry, late
from experiments.settings.errors import UserError
from experiments.settings.variants import parse_variant

PAPERS = [*map(str, range(1, 21)), "table1", "2.12"]


# ------------------------------------------------------------------------------------------ names


def test_every_figure_and_table_of_the_paper_is_there_once():
    for figure in PAPERS:
        assert len(items.find([figure])) == 1, figure
    assert len({item.name for item in items.ITEMS}) == len(items.ITEMS)


def test_names_of_figures():
    (lenet,) = items.find(["13"])
    assert items.find(["fig12"]) == items.find(["Figure12"]) == items.find(["lenet"]) == [lenet]
    assert items.find(["20", "13", "12"])[0] is lenet  # each once, in the paper's order
    assert items.find(["all"]) == list(items.ITEMS)
    assert (lenet.heading, items.find(["17"])[0].heading) == (
        "Figures 12, 13",
        "Figures 17, 18; Table 1",
    )
    with pytest.raises(UserError, match=r"no figure '21'; there are 1, 2, "):
        items.find(["21"])


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_jobs_of_a_budget_can_be_trained(budget):
    keys = {}
    for item in items.ITEMS:
        assert budget in item.costs
        for job in item.jobs(budget):
            settings = job.options().settings()
            assert [parse_variant(text).label for text in job.bands] == list(job.bands)
            assert keys.setdefault(job.key, settings) == settings
    assert len(keys) > 3


def test_figures_that_need_the_same_networks_share_them():
    for budget in ("full", "cpu"):
        precision, resources, robust = (
            items.find([name])[0].jobs(budget) for name in ["3", "5", "20"]
        )
        (key,) = {job.key for job in (*precision, *resources, *robust)}
        assert key.startswith("resnet18-pool-cifar10-")
    (fcn,), (layers,) = (items.find([name])[0].jobs("cpu") for name in ("17", "2.12"))
    assert fcn.key == layers.key
    assert set(layers.bands) < set(fcn.bands)


# ------------------------------------------------------------------------------------------- keys


def test_the_key_is_of_the_settings_alone():
    job = Job("fcn", "ucr:Coffee", ("none",))
    assert re.fullmatch(r"fcn-ucr-Coffee-[0-9a-f]{8}", job.key)
    assert Job("fcn", "ucr:Coffee", ("energy=0.9",), (1, 2)).key == job.key
    assert Job("fcn", "ucr:Coffee", ("none",), (0,), {"epochs": 300}).key == job.key  # the default
    assert Job("fcn", "ucr:Coffee", ("none",), (0,), {"epochs": 301}).key != job.key
    assert isinstance(job.options(), TrainOptions)


def test_a_setting_at_its_default_changes_no_key(monkeypatch):
    """Such as one that is new."""
    job = Job("fcn", "ucr:Coffee", ("none",))
    before, settings = job.key, job.options().settings()
    more = {**settings.as_dict(), "label_smoothing": 0.0}
    monkeypatch.setattr(
        type(settings),
        "as_dict",
        lambda _: {k: v for k, v in more.items() if k != "label_smoothing"},
    )
    assert job.key == before
    monkeypatch.setattr(type(settings), "as_dict", lambda _: {**more, "label_smoothing": 0.1})
    assert job.key != before


# ---------------------------------------------------------------------------------------- records


def test_the_page_in_the_repository_is_that_of_its_records():
    """``python -m experiments.paper report`` writes it anew."""
    assert (RESULTS / "README.md").read_text("utf-8") == page(RESULTS, items.ITEMS)


@pytest.mark.parametrize("item", items.ITEMS, ids=lambda item: item.name)
def test_a_record_in_the_repository_tells_how_it_was_made(item):
    record = best_record(RESULTS, item)
    if record is None:
        return  # The page says so.
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["jax"]
    assert record_path(RESULTS, record["budget"], item).with_suffix(".png").is_file()
    for job in record.get("jobs", []):
        assert all({"seed", "date", "versions", "machine"} <= run.keys() for run in job["runs"])
    item.judge(record)


def test_report_needs_records_and_draws_from_them_alone(tmp_path, capsys):
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert "no records in" in capsys.readouterr().err
    item = items.find(["12"])[0]
    path = record_path(tmp_path, "cpu", item)
    path.parent.mkdir()
    path.write_text(json.dumps(lenet_record()))
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "README.md").read_text()
    made, missing = text.split("Not run yet")
    assert re.search(
        r"^\| Figures 12, 13 \| .* \| \*\*agrees\*\* \| cpu \| `lenet` \|$", made, re.MULTILINE
    )
    assert "| `fcn` |" in missing.split("\n## ")[0]
    assert "62.00 ± 1.41 % at 0 % dropped" in text  # 61 and 63
    path.write_text(json.dumps({**lenet_record(), "item": "fcn"}))
    with pytest.raises(UserError, match=r"lenet.json: not a record of lenet: .*it is of 'fcn'"):
        read_record(path, item)


def test_the_list_tells_cost_and_state(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    words = ["--out", str(tmp_path), "--models", str(tmp_path), "--list", "12", "6"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "0 of 12" in shown
    assert "none needed" in shown
    assert list(tmp_path.iterdir()) == []


def test_without_a_figure_nothing_is_done(capsys):
    assert main([]) == 2
    assert "name a figure, all or report" in capsys.readouterr().err


def run_of(band, seed, accuracy, dropped=0.0, length=10):
    curve = np.linspace(0.1, accuracy, length).tolist()
    return {
        "config": {"band": band, "seed": seed},
        **{"date": "2026-01-02T00:00:00", "machine": {"cpu": "x", "cores": 2}},
        **{"versions": {"jax": "0.10.2", "bandjax": "0.1.0"}, "git_revision": "abc"},
        "result": {
            "test_accuracy": accuracy,
            "compression": {"total": dropped},
            "seconds_per_epoch": 1.0,
            "saved_bytes": 100,
        },
        "curves": dict.fromkeys(
            ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "compression"), curve
        ),
    }


def lenet_record():
    (job,) = items.find(["12"])[0].jobs("cpu")
    accuracies = {"none": (0.61, 0.63), "energy=0.95": (0.58, 0.6), "energy=0.9": (0.55, 0.56)}
    runs = {
        (band, seed): run_of(band, seed, value)
        for band, values in accuracies.items()
        for seed, value in enumerate(values)
    }
    run = next(iter(runs.values()))
    told = {name: run[name] for name in ("date", "versions", "machine", "git_revision")}
    return {
        "item": "lenet",
        "figures": ["12"],
        "budget": "cpu",
        **told,
        "jobs": [as_entry(job, runs)],
    }


def test_an_entry_keeps_the_late_mean():
    assert late([0, 0, 0, 0, 1, 2, 6]) == 3  # at least three epochs
    assert late(list(range(50))) == np.mean(range(45, 50))  # the last tenth
    (entry,) = lenet_record()["jobs"]
    run = entry["runs"][1]
    assert run["late_test_accuracy"] == pytest.approx(
        np.mean(np.linspace(0.1, 0.63, 10)[-3:]), abs=1e-6
    )


# --------------------------------------------------------------------------------------- verdicts


def sets_of(means):
    """Accuracies of one seed by set, energy of training and energy of testing."""
    return {
        f"set{number}": {
            band: {str(energy): [float(row[i])] for i, energy in enumerate(ranks.TESTED)}
            for band in ranks.BANDS
        }
        for number, row in enumerate(means)
    }


def test_ranks_and_their_tests():
    """Against SciPy's Friedman test, and Nemenyi's by its formula."""
    means = np.random.default_rng(3).uniform(0.5, 1, (12, 3))
    means[:, 1] += 0.4  # tested at 90 %
    found = ranks.compare(sets_of(means))["compared"]["90"]
    order = stats.rankdata(-means, axis=1)
    np.testing.assert_allclose(found["mean_rank"], order.mean(0), atol=1e-4)
    _statistic, p = stats.friedmanchisquare(*means.T)
    assert found["friedman"]["p"] == pytest.approx(p, rel=1e-3)
    # Demsar (2006): the difference of mean ranks over its standard error, times the square root of
    # two, is studentised range with infinitely many degrees of freedom.
    q = abs(order.mean(0)[1] - order.mean(0)[0]) / np.sqrt(3 * 4 / (6 * 12)) * np.sqrt(2)
    expected = stats.studentized_range.sf(q, 3, np.inf)
    assert found["nemenyi_p"][1][0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("lift", "answers"), [([0, 1, 0], ("yes", "no")), ([0, 0, 0], ("not told apart",) * 2)]
)
def test_the_energy_of_training_ranks_first_or_not(lift, answers):
    means = np.full((15, 3), 0.5) + np.random.default_rng(0).normal(size=(15, 3)) * 1e-3
    means += np.array(lift)
    if not any(lift):
        means[:] = 0.5
        means[0] = (0.4, 0.5, 0.4)
        means[1] = (0.4, 0.4, 0.5)
        means[2] = (0.4, 0.5, 0.5)
    record = {"accuracy": sets_of(means), **ranks.compare(sets_of(means))}
    claims = ranks.judge(record).claims
    assert tuple(claim.answer for claim in claims) == answers


def test_best_at_its_own_energy_or_elsewhere():
    energies = list(train_test.TESTED)
    peaked = [[1 - abs(energy - own) / 100 for energy in energies] for own in (90, 99, 100)]
    labels = [energy_band(own) for own in (90, 99, 100)]
    record = {
        "tested_percent": energies,
        "accuracy": {k: [v] for k, v in zip(labels, peaked, strict=True)},
    }
    verdict = train_test.judge(record)
    assert [claim.answer for claim in verdict.claims] == ["yes"] * 4
    assert verdict.word == "agrees"
    record["accuracy"][labels[0]] = [[0.2] * 12 + [0.9]]
    verdict = train_test.judge(record)
    assert [claim.answer for claim in verdict.claims] == ["no", "yes", "yes", "no"]
    assert verdict.word == "agrees in part"


# ---------------------------------------------------------------------------------------- spectra


@pytest.mark.parametrize("shape", [(32, 32), (7, 10), (8, 5)])
def test_magnitudes_are_those_of_the_whole_spectrum(shape):
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = np.abs(np.fft.fft2(image.astype(np.float64)))
    np.testing.assert_allclose(spectra.magnitudes(image), expected, atol=2e-5 * expected.max())


def test_what_is_left_of_half_a_spectrum():
    image = np.random.default_rng(2).normal(size=(16, 16)).astype(np.float32)
    left, modes, dropped = spectra.compressed(image)
    whole = np.abs(np.fft.fft2(image.astype(np.float64)))
    frequency = np.abs(np.fft.fftfreq(16, 1 / 16))
    box = np.logical_and.outer(frequency <= modes[0], frequency <= modes[1])
    np.testing.assert_allclose(left, whole * box, atol=1e-4)
    assert dropped == pytest.approx(0.5, abs=0.1)
