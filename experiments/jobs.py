"""A job: the runs of one command, in one folder."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import UserError
from experiments.records import Record, differing_setting, write_json

FILE = "job.json"


@contextmanager
def open_job(out: Path, options: Record, settings: Record) -> Iterator[None]:
    """Make the folder, or find that the same job has been there; no other may while it lasts.

    Args:
        out: the folder.
        options: of the command line.
        settings: that follow from them.

    Raises:
        UserError: it cannot be made, is in use, or a job with other settings began there.
    """
    path = out / FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, {"options": options, "settings": settings})
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise UserError(f"output folder {str(out)!r}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training into {out}") from error
        differing = differing_setting(_read(path, "settings"), settings)
        if differing:
            name, was, now = differing
            raise UserError(f"{path} began with {name} {was}, not {now}: choose another --out")
        yield


def read_options(folder: Path, names: set[str]) -> Record:
    """The options of a job that began in ``folder``.

    Raises:
        UserError: none did, its file is damaged, or it has an option that is not in ``names``.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"nothing to resume: {folder} has no {FILE}")
    options = _read(folder / FILE, "options")
    unknown = sorted(options.keys() - names)
    if unknown:
        raise UserError(f"{folder / FILE} has the unknown option {unknown[0]!r}")
    return options


def _read(path: Path, part: str) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))[part]
        if not isinstance(content, dict):
            raise TypeError(f"{part} is not a table")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the file of a job: {error!r}") from error
    return content
