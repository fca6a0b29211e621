"""The layouts of the UCR archive: the same numbers from each, truncation and all else refused."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import data
from experiments.data import _ucr_archive
from experiments.data.ucr import ucr_names
from experiments.settings.errors import UserError

HEADER = "@problemName Tiny\n@timeStamps false\n@classLabel true 1 2\n@data\n"


def _write(folder, name, train, test, suffix):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_TRAIN{suffix}").write_text(train)
    (folder / f"{name}_TEST{suffix}").write_text(test)


def _tables(labels, series, separator):
    rows = zip(labels, series, strict=True)
    return "".join(separator.join(map(repr, [label, *row])) + "\n" for label, row in rows)


def _ts(labels, series):
    rows = zip(labels, series, strict=True)
    lines = (f"{','.join(map(repr, row))}:{label}\n" for label, row in rows)
    head = "# A comment.\n\n@problemName x\n@missing false\n@univariate true\n@equalLength true\n"
    return head + "@classLabel true 10 2 -3\n@data\n" + "".join(lines)


@pytest.mark.parametrize(
    ("folder", "suffix", "asked"),
    [
        ("UCRArchive_2018/SyntheticControl", ".tsv", "synthetic_control"),
        ("UCR_TS_Archive_2015/synthetic_control", "", "SyntheticControl"),
        ("Univariate_ts/SyntheticControl", ".ts", "SyntheticControl"),
        ("synthetic_control", ".ts", "SyntheticControl"),
    ],
)
def test_every_layout_has_the_same_numbers(tmp_path, monkeypatch, folder, suffix, asked):
    """By both names, labels in the order of their numbers: -3, 2, 10."""
    monkeypatch.setitem(_ucr_archive.SIZES, "SyntheticControl", (4, 2, 5))
    rng = np.random.default_rng(1)
    series = rng.normal(size=(6, 5)).round(6)
    labels = [10, -3, 2, 10, 2, -3]
    parts = (labels[:4], series[:4].tolist()), (labels[4:], series[4:].tolist())
    if suffix == ".ts":
        train, test = (_ts(*part) for part in parts)
    else:
        train, test = (_tables(*part, "\t" if suffix else ",") for part in parts)
    path = tmp_path / folder
    _write(path, path.name, train, test, suffix)
    dataset = data.load(f"ucr:{asked}", tmp_path)
    assert dataset.name == f"ucr:{asked}"
    assert dataset.classes == 3
    assert dataset.y_train.tolist() == [2, 0, 1, 2]
    assert dataset.y_test.tolist() == [1, 0]
    each = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
    np.testing.assert_allclose(dataset.x_train[..., 0], each[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.x_test[..., 0], each[4:], rtol=1e-5, atol=1e-6)
    assert ucr_names(tmp_path) == [path.name]


def test_text_labels_are_in_alphabetical_order(tmp_path):
    head = "@classLabel true walking Running\n@data\n"
    _write(tmp_path / "T", "T", head + "1,2:walking\n3,1:Running\n", head + "1,2:walking", ".ts")
    dataset = data.load("ucr:T", tmp_path)
    assert dataset.y_train.tolist() == [1, 0]
    assert dataset.y_test.tolist() == [1]


def test_a_set_that_lies_there_twice_is_named_once(tmp_path):
    for folder in ("UCR_TS_Archive_2015/50words", "UCRArchive_2018/FiftyWords", "Other"):
        path = tmp_path / folder
        _write(path, path.name, "", "", "" if "2015" in folder else ".tsv")
    (tmp_path / "Half").mkdir()
    (tmp_path / "Half/Half_TRAIN.tsv").write_text("")
    assert ucr_names(tmp_path) == ["FiftyWords", "Other"]
    # The newer archive comes first, by whichever name.
    with pytest.raises(UserError, match=r"UCRArchive_2018/FiftyWords/FiftyWords_TRAIN.tsv: the fi"):
        data.load("ucr:50words", tmp_path)


def test_published_sizes():
    """Of 2015 either part's: several sets' parts were exchanged for the archive of 2018."""
    assert len(_ucr_archive.SIZES) == 128 - 15
    sizes = _ucr_archive.published_sizes
    assert sizes("Lighting2", "TEST", of_2015=True) == {(61, 637), (60, 637)}
    assert sizes("Earthquakes", "TRAIN", of_2015=False) == {(322, 512)}
    assert sizes("Earthquakes", "TEST", of_2015=False) == {(139, 512)}
    assert sizes("Unheard", "TEST", of_2015=False) == set()
    assert set(_ucr_archive.NAMES_OF_2015.values()) <= set(_ucr_archive.SIZES)


@pytest.mark.parametrize("root", ["UCRArchive_2018", "."])
def test_the_repaired_copy_of_a_set_is_read(tmp_path, root):
    """The archive has its sets that miss values twice: as they are, and repaired."""
    repaired = (
        tmp_path / root / "Missing_value_and_variable_length_datasets_adjusted/DodgerLoopGame"
    )
    for place, value in ((tmp_path / root / "DodgerLoopGame", "NaN"), (repaired, "0.5")):
        table = f"1\t1\t{value}\t2\n2\t1\t2\t3\n"
        _write(place, "DodgerLoopGame", table, table, ".tsv")
    assert ucr_names(tmp_path) == ["DodgerLoopGame"]
    assert data.load("ucr:DodgerLoopGame", tmp_path).x_train.shape == (2, 3, 1)
    for path in repaired.iterdir():
        path.unlink()
    repaired.rmdir()
    with pytest.raises(UserError, match="line 1: a value is missing"):
        data.load("ucr:DodgerLoopGame", tmp_path)


@pytest.mark.parametrize("suffix", [".tsv", ".ts", ""])
def test_a_file_that_is_cut_at_any_byte_is_named(tmp_path, suffix):
    """Within a number, a field, a line, and at the end of one, for a set of known size."""
    rng = np.random.default_rng(2)
    labels, series = [1, 2] * 14, rng.normal(size=(28, 286)).round(2).tolist()
    if suffix == ".ts":
        whole = HEADER + "".join(
            f"{','.join(map(str, row))}:{label}\n"
            for label, row in zip(labels, series, strict=True)
        )
    else:
        whole = _tables(labels, series, "\t" if suffix else ",")
    _write(tmp_path / "Coffee", "Coffee", whole, whole, suffix)
    assert data.load("ucr:Coffee", tmp_path).x_train.shape == (28, 286, 1)
    path = tmp_path / f"Coffee/Coffee_TRAIN{suffix}"
    line = len(whole) - whole.rstrip("\n").rindex("\n")
    cuts = [*range(1, 9), line - 1, line, line + 1, line + 4, len(whole) - 3, len(whole)]
    for cut in cuts:
        path.write_text(whole[:-cut])
        if suffix == ".ts" and cut == 1:  # the end of the last line alone, nothing lost
            continue
        with pytest.raises(UserError, match=f"Coffee_TRAIN{suffix}") as caught:
            data.load("ucr:Coffee", tmp_path)
        assert "\n" not in str(caught.value)


def test_a_line_more_or_a_point_less_than_published(tmp_path):
    table = _tables([1, 2] * 14, [[0.5] * 285] * 28, ",")
    _write(tmp_path / "Coffee", "Coffee", table, table, "")
    message = r"Coffee_TRAIN: 28 series of length 285, in the archive 28 series of length 286: the"
    with pytest.raises(UserError, match=message):
        data.load("ucr:Coffee", tmp_path)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", "T_TRAIN.ts: the file is empty"),
        ("1,2:1\n", "line 1: a series before @data"),
        ("@classLabel true 1 2\n", "no @data line; the file is cut short, or no .ts file"),
        ("@problemName x\n@data\n1,2:1\n", "the file has no class labels"),
        ("@classLabel false\n@data\n1,2\n", "line 1: the file has no class labels"),
        ("@targetLabel true\n@data\n1,2:0.5\n", "not of a classification task"),
        (HEADER, "no series after @data"),
        (HEADER + "1,2:3\n", "line 5: label '3' is not in @classLabel"),
        (HEADER + "1,2\n", "line 5: no label after the series; the line is cut short"),
        (HEADER + "1,2:\n", "line 5: no label after the series; the line is cut short"),
        (HEADER + "1,2:3,4:1\n", "line 5: multivariate series are not read"),
        (HEADER + "(0,1),(1,2):1\n", "line 5: series with time stamps are not read"),
        (HEADER + "1,2:1\n1,2,3:2\n", "line 6: 3 fields, expected 2 as in the first series"),
        (HEADER + "1,?:1\n", r"line 5: a value is missing (?)"),
        (HEADER + "1,NaN:1\n", "line 5: a value is missing (NaN) or infinite"),
        (HEADER + "1,x:1\n", "line 5: could not convert string to float: 'x'"),
        (HEADER.replace("1 2", "1 12") + "1,2:12\n1,2:1", "line 6: the file is cut short"),
        ("@timestamps true\n" + HEADER, "line 1: series with time stamps are not read"),
        ("@univariate false\n" + HEADER, "line 1: multivariate series are not read"),
        ("@dimensions 3\n" + HEADER, "line 1: multivariate series are not read"),
        ("@equalLength false\n" + HEADER, "line 1: series of unequal length are not read"),
        ("@missing true\n" + HEADER, "line 1: series with missing values are not read"),
    ],
)
def test_ts_files_that_are_refused(tmp_path, train, message):
    _write(tmp_path / "T", "T", train, HEADER + "1,2:1\n", ".ts")
    with pytest.raises(UserError) as caught:
        data.load("ucr:T", tmp_path)
    assert message in str(caught.value)
    assert "T_TRAIN.ts" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("1,0.5,2\n2,0.5", "T_TRAIN, line 2: 2 fields, expected 3 as on line 1"),
        ("1,0.5,2\n2,0.5,1", "T_TRAIN, line 2: the file is cut short, its last line has no end"),
        ("1,0.5,NaN\n", "T_TRAIN, line 1: a value is missing"),
        ("1\t0.5\t2\n", "T_TRAIN, line 1: could not convert"),
        ("1\n", "T_TRAIN, line 1: 1 fields, expected a label and a series"),
    ],
)
def test_tables_of_2015_that_are_refused(tmp_path, train, message):
    _write(tmp_path / "UCR_TS_Archive_2015/T", "T", train, "1,0.5,2\n", "")
    with pytest.raises(UserError) as caught:
        data.load("ucr:T", tmp_path)
    assert message in str(caught.value)


def test_an_empty_folder_and_none(tmp_path):
    (tmp_path / "UCR_TS_Archive_2015/50words").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no 50words_TRAIN.tsv in .*50words"):
        data.load("ucr:FiftyWords", tmp_path)
    with pytest.raises(UserError, match=r"no folder FISH or Fish in .* or its UCRArchive_2018, "):
        data.load("ucr:FISH", tmp_path)
