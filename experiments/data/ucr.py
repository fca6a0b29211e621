"""Time series of the UCR archive: of 2018 or 2015, or as ``.ts`` files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from experiments.data._dataset import Dataset
from experiments.data._ucr_archive import ADJUSTED, official_name, published_sizes, spellings
from experiments.data._ucr_files import Series, read_series
from experiments.settings.errors import UserError

# As the archives unpack: 2018's, 2015's, that of timeseriesclassification.com; or one set alone.
# Of 2018's sets that vary in length or miss values, the repaired copy comes before the raw one.
FOLDERS = (
    f"UCRArchive_2018/{ADJUSTED}",
    "UCRArchive_2018",
    "UCR_TS_Archive_2015",
    "Univariate_ts",
    ADJUSTED,
    ".",
)
SUFFIXES = (".tsv", ".ts", "")
HALVES = "halves"


def load_ucr(name: str, data_dir: Path) -> Dataset:
    """Load ``NAME_TRAIN`` and ``NAME_TEST``, with the extension ``.tsv``, ``.ts`` or none.

    The files lie in ``NAME/`` in ``data_dir`` or in one of its folders ``UCRArchive_2018``,
    ``UCR_TS_Archive_2015`` and ``Univariate_ts``; sets that were renamed after 2015 are found by
    both names. Of the sets of 2018 whose series vary in length or miss values, the repaired copy
    that comes with the archive is read.

    In a ``.tsv`` file, or one without extension, each line is a label followed by the values of one
    series, separated by tabs or commas. Labels are mapped to 0 .. classes - 1 in the order of their
    numbers, or of the alphabet. Most sets of the archive are stored z-normalised, and are taken as
    they are; where the training series are not (mean 0, standard deviation 1), every series of the
    set is z-normalised here.

    ``NAME:halves`` reads the training file alone, and tests on every other series of each class,
    in the file's order: for a set whose test file is not at hand. Its accuracies are not those of
    the archive's split.

    Returns:
        Series of shape ``(length, 1)``.

    Raises:
        UserError: a file is missing, malformed or cut short, holds a missing value or series of
            unequal length, is not of the published size where that is known, or the test labels
            are not among the training labels.
    """
    stem_name, _, part_of_it = name.partition(":")
    # The name becomes part of a path.
    if not re.fullmatch(r"\w+", stem_name) or part_of_it not in ("", HALVES):
        raise UserError(
            f"UCR set {name!r}: a name consists of letters and digits, and :{HALVES} may follow"
        )
    stem, suffix = _find(stem_name, data_dir)
    train = _read(stem, "TRAIN", suffix)
    train, test = _halves(train) if part_of_it else (train, _read(stem, "TEST", suffix))
    if train.values.shape[1] != test.values.shape[1]:
        raise UserError(
            f"UCR set {name!r}: training series have length {train.values.shape[1]}, "
            f"test series {test.values.shape[1]}"
        )
    try:
        classes = {label: index for index, label in enumerate(sorted(set(train.labels)))}
        y_train, y_test = ([classes[label] for label in part.labels] for part in (train, test))
    except KeyError as error:
        raise UserError(
            f"UCR set {name!r}: test label {error.args[0]} is not in the training file"
        ) from error
    x_train, x_test = train.values, test.values
    if not _is_normalised(x_train):
        x_train, x_test = _normalised(x_train), _normalised(x_test)
    return Dataset(
        f"ucr:{name}",
        x_train.astype(np.float32)[..., None],
        np.array(y_train, np.int32),
        x_test.astype(np.float32)[..., None],
        np.array(y_test, np.int32),
        classes=len(classes),
    )


def ucr_names(data_dir: Path) -> list[str]:
    """The sets of the archive that lie in ``data_dir``, with both their files.

    A set that lies there several times, under one name or two, is named once, as in the first of
    :data:`FOLDERS`.

    Raises:
        UserError: there is none.
    """
    found: dict[str, str] = {}
    for root in FOLDERS:
        for folder in sorted(path for path in (data_dir / root).glob("*") if path.is_dir()):
            stem = folder / folder.name
            if any(all(path.is_file() for path in _files(stem, suffix)) for suffix in SUFFIXES):
                found.setdefault(official_name(folder.name), folder.name)
    if not found:
        raise UserError(
            f"no set of the UCR archive (NAME/NAME_TRAIN.tsv and _TEST.tsv) in {data_dir}"
        )
    return sorted(found.values())


def _find(name: str, data_dir: Path) -> tuple[Path, str]:
    """The path that a set's files begin with, and their extension.

    Raises:
        UserError: there is no folder for it, or nothing in it.
    """
    folders = [
        data_dir / root / spelling
        for root in FOLDERS
        for spelling in spellings(name)
        if (data_dir / root / spelling).is_dir()
    ]
    for folder in folders:
        for suffix in SUFFIXES:
            if any(path.is_file() for path in _files(folder / folder.name, suffix)):
                return folder / folder.name, suffix
    if folders:
        raise UserError(f"UCR set {name!r}: no {folders[0].name}_TRAIN.tsv in {folders[0]}")
    named = " or ".join(spellings(name))
    places = ", ".join(root for root in FOLDERS if root != "." and ADJUSTED not in root)
    raise UserError(f"UCR set {name!r} not found: no folder {named} in {data_dir} or its {places}")


def _files(stem: Path, suffix: str) -> tuple[Path, Path]:
    return Path(f"{stem}_TRAIN{suffix}"), Path(f"{stem}_TEST{suffix}")


def _read(stem: Path, part: str, suffix: str) -> Series:
    """One file, of the published size if that is known."""
    path = Path(f"{stem}_{part}{suffix}")
    series = read_series(path)
    published = published_sizes(stem.name, part, of_2015=suffix == "")
    if published and series.values.shape not in published:
        told = " or ".join(_told(size) for size in sorted(published))
        raise UserError(
            f"{path}: {_told(series.values.shape)}, in the archive {told}: the file is cut short "
            "or not the official one"
        )
    return series


def _halves(series: Series) -> tuple[Series, Series]:
    """The first, third, ... series of each class, and the second, fourth, ..."""
    labels = np.array(series.labels)
    second = np.zeros(len(labels), bool)
    for label in set(series.labels):
        second[np.flatnonzero(labels == label)[1::2]] = True
    rows = np.flatnonzero(~second), np.flatnonzero(second)
    one, other = (Series([series.labels[i] for i in of], series.values[of]) for of in rows)
    return one, other


def _told(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} series of length {shape[1]}"


def _is_normalised(series: np.ndarray) -> bool:
    """Whether each series has mean 0 and standard deviation 1.

    The tolerance covers both definitions of the deviation (division by n and by n - 1, which
    differ by 3 % for the archive's shortest series) and values stored with few digits.
    """
    return bool(
        (np.abs(series.mean(axis=1)) < 0.01).all() and (np.abs(series.std(axis=1) - 1) < 0.05).all()
    )


def _normalised(series: np.ndarray) -> np.ndarray:
    """Each series with mean 0 and standard deviation 1; a constant one becomes zeros."""
    deviation = series.std(axis=1, keepdims=True)
    deviation[deviation < 1e-12] = 1
    return (series - series.mean(axis=1, keepdims=True)) / deviation
