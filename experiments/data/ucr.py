"""Time series of the UCR archive (2018), read from its official tab-separated files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from experiments.data._dataset import Dataset
from experiments.errors import UserError


def load_ucr(name: str, data_dir: Path) -> Dataset:
    """Load ``NAME_TRAIN.tsv`` and ``NAME_TEST.tsv``.

    The files lie in ``data_dir/UCRArchive_2018/NAME/`` or ``data_dir/NAME/``. Each line is a
    label followed by the values of one series. Labels are mapped to 0 .. classes - 1 in the order
    of their numbers. Most sets of the archive are stored z-normalised, and are taken as they are;
    where the training series are not (mean 0, standard deviation 1), every series of the set is
    z-normalised here.

    Returns:
        Series of shape ``(length, 1)``.

    Raises:
        UserError: a file is missing or malformed, holds a missing value or series of unequal
            length, or the test labels are not among the training labels.
    """
    if not re.fullmatch(r"\w+", name):  # the name becomes part of a path
        raise UserError(f"UCR set {name!r}: a name consists of letters and digits")
    roots = [data_dir / "UCRArchive_2018" / name, data_dir / name]
    root = next((r for r in roots if r.is_dir()), None)
    if root is None:
        raise UserError(f"UCR set {name!r} not found: no folder {roots[0]} and no {roots[1]}")
    train_labels, train = _read(root / f"{name}_TRAIN.tsv")
    test_labels, test = _read(root / f"{name}_TEST.tsv")
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"UCR set {name!r}: training series have length {train.shape[1]}, "
            f"test series {test.shape[1]}"
        )
    classes = np.unique(train_labels)
    unseen = np.setdiff1d(test_labels, classes)
    if unseen.size:
        raise UserError(f"UCR set {name!r}: test label {unseen[0]} is not in the training file")
    if not _is_normalised(train):
        train, test = _normalised(train), _normalised(test)
    return Dataset(
        f"ucr:{name}",
        train.astype(np.float32)[..., None],
        np.searchsorted(classes, train_labels).astype(np.int32),
        test.astype(np.float32)[..., None],
        np.searchsorted(classes, test_labels).astype(np.int32),
        classes=len(classes),
    )


def ucr_names(data_dir: Path) -> list[str]:
    """The sets of the archive that lie in ``data_dir``, with both their files.

    Raises:
        UserError: there is none.
    """
    roots = [data_dir / "UCRArchive_2018", data_dir]
    root = next((root for root in roots if root.is_dir()), data_dir)
    found = sorted(
        path.parent.name
        for path in root.glob("*/*_TRAIN.tsv")
        if path.name == f"{path.parent.name}_TRAIN.tsv"
        and path.with_name(f"{path.parent.name}_TEST.tsv").is_file()
    )
    if not found:
        raise UserError(f"no set of the UCR archive (NAME/NAME_TRAIN.tsv and _TEST.tsv) in {root}")
    return found


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Integer labels ``(n,)`` and float64 series ``(n, length)`` of one file."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = [float(field) for field in line.split("\t")]
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        if len(row) < 2 or len(row) != len(rows[0] if rows else row):
            expected = f"{len(rows[0])} as on line 1" if rows else "a label and a series"
            raise UserError(f"{path}, line {number}: {len(row)} fields, expected {expected}")
        if not np.isfinite(row).all():
            raise UserError(f"{path}, line {number}: a value is missing (NaN) or infinite")
        if not row[0].is_integer():
            raise UserError(f"{path}, line {number}: label {row[0]} is not a whole number")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: the file is empty")
    table = np.array(rows)
    return table[:, 0].astype(np.int64), table[:, 1:]


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
