"""The two kinds of files that the UCR archive comes in: tables, and ``.ts``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.settings.errors import UserError


class Series(NamedTuple):
    """What one file holds.

    Attributes:
        labels: one for each series; all whole numbers, or all text.
        values: float64, ``(series, length)``.
    """

    labels: list[int] | list[str]
    values: np.ndarray


def read_series(path: Path) -> Series:
    """Read a file: ``.ts``, ``.tsv`` (tab-separated), or without extension (comma-separated).

    Raises:
        UserError: the file is missing, malformed or cut short, or holds anything but complete
            univariate series of equal length, each with a label.
    """
    try:
        text = path.read_text(encoding="utf-8" if path.suffix == ".ts" else "ascii")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return _read_ts(path, text) if path.suffix == ".ts" else _read_table(path, text)


def _read_table(path: Path, text: str) -> Series:
    """Each line a label, then the values of a series."""
    separator = "\t" if path.suffix == ".tsv" else ","
    labels: list[int] = []
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        label, *row = _numbers(path, number, line.split(separator))
        _check_length(path, number, row, rows, offset=1)
        if not label.is_integer():
            raise UserError(f"{path}, line {number}: label {label} is not a whole number")
        labels.append(int(label))
        rows.append(row)
    if not text.endswith("\n"):
        raise UserError(
            f"{path}, line {len(rows)}: the file is cut short, its last line has no end"
        )
    return Series(labels, np.array(rows))


def _read_ts(path: Path, text: str) -> Series:
    """A header of lines that begin with ``@``, then series, each with ``:`` and its label."""
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and line.lstrip()[0] not in "#%"
    ]
    header, classes = _read_ts_header(path, lines)
    labels: list[str] = []
    rows: list[list[float]] = []
    for number, line in lines[header:]:
        series, *rest = line.split(":")
        if "(" in series:
            raise UserError(f"{path}, line {number}: {_UNSUPPORTED['@timestamps']}")
        if len(rest) > 1:
            raise UserError(f"{path}, line {number}: {_UNSUPPORTED['@univariate']}")
        label = rest[0].strip() if rest else ""
        if not label:
            raise UserError(
                f"{path}, line {number}: no label after the series; the line is cut short"
            )
        if label not in classes:
            raise UserError(f"{path}, line {number}: label {label!r} is not in @classLabel")
        row = _numbers(path, number, series.split(","))
        _check_length(path, number, row, rows, offset=0)
        labels.append(label)
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no series after @data")
    last = labels[-1]
    longer = any(label != last and label.startswith(last) for label in classes)
    if longer and not text.endswith("\n"):
        raise UserError(
            f"{path}, line {lines[-1][0]}: the file is cut short, its last line has no end"
        )
    numbers = [_whole(label) for label in labels]
    whole = [number for number in numbers if number is not None]
    return Series(whole if len(whole) == len(labels) else labels, np.array(rows))


_UNSUPPORTED = {
    "@timestamps": "series with time stamps are not read, only values at equal distances",
    "@univariate": "multivariate series are not read, only univariate ones",
    "@equallength": "series of unequal length are not read",
    "@missing": "series with missing values are not read",
    "@targetlabel": "the file is not of a classification task (@targetLabel)",
    "@classlabel": "the file has no class labels (@classLabel)",
}
# What a tag must not say.
_REFUSED = {
    "@timestamps": "true",
    "@univariate": "false",
    "@equallength": "false",
    "@missing": "true",
    "@targetlabel": "true",
    "@classlabel": "false",
}


def _read_ts_header(path: Path, lines: list[tuple[int, str]]) -> tuple[int, list[str]]:
    """How many of the lines are header, and the labels that it announces."""
    classes: list[str] = []
    for index, (number, line) in enumerate(lines):
        tag, *values = line.split()
        tag = tag.lower()
        if tag == "@data":
            if not classes:
                raise UserError(f"{path}: {_UNSUPPORTED['@classlabel']}")
            return index + 1, classes
        if not tag.startswith("@"):
            raise UserError(f"{path}, line {number}: a series before @data")
        if values and values[0].lower() == _REFUSED.get(tag):
            raise UserError(f"{path}, line {number}: {_UNSUPPORTED[tag]}")
        if tag in ("@dimension", "@dimensions") and values != ["1"]:
            raise UserError(f"{path}, line {number}: {_UNSUPPORTED['@univariate']}")
        if tag == "@classlabel":
            classes = values[1:]
    raise UserError(f"{path}: no @data line; the file is cut short, or no .ts file")


def _numbers(path: Path, number: int, fields: list[str]) -> list[float]:
    if "?" in (field.strip() for field in fields):
        raise UserError(f"{path}, line {number}: a value is missing (?)")
    try:
        row = [float(field) for field in fields]
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {error}") from error
    if not all(map(math.isfinite, row)):
        raise UserError(f"{path}, line {number}: a value is missing (NaN) or infinite")
    return row


def _check_length(
    path: Path, number: int, row: list[float], rows: list[list[float]], offset: int
) -> None:
    """Raise unless the row is as long as the first one; ``offset`` is the fields before it."""
    if not row or len(row) != len(rows[0] if rows else row):
        expected = f"{len(rows[0]) + offset} as on line 1" if rows else "a label and a series"
        if rows and not offset:
            expected = f"{len(rows[0])} as in the first series"
        raise UserError(f"{path}, line {number}: {len(row) + offset} fields, expected {expected}")


def _whole(text: str) -> int | None:
    """The whole number that a text is, ``1`` or ``1.0``, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
