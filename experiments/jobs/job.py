"""A job: the runs of one command, in one folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from experiments.settings.command import parse_options
from experiments.settings.errors import UserError
from experiments.settings.records import Record, differing_setting, write_json
from experiments.settings.variants import split_variant

FILE = "job.json"
# What a job that goes on may be told anew: where it lies, and what it runs on.
PASSING = (
    *("out", "resume", "mesh", "cpu_devices"),
    *("distributed", "coordinator", "processes", "process_id", "tune_allocator"),
)
T = TypeVar("T")


@contextmanager
def open_job(out: Path, program: str, options: Record, settings: Record) -> Iterator[None]:
    """Make the folder, or find that the same job has been there; no other may while it lasts.

    Args:
        out: the folder.
        program: that the job is of, as ``python -m`` takes it.
        options: of the command line.
        settings: that follow from them.

    Raises:
        UserError: it cannot be made, is in use, or a job with other settings began there.
    """
    path = out / FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        # The folder itself is locked: a file in it could be replaced by one that is not.
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"output folder {str(out)!r}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training into {out}") from error
        if not path.exists():
            try:
                write_json(path, {"program": program, "options": options, "settings": settings})
            except OSError as error:
                raise UserError(f"output folder {str(out)!r}: {error.strerror}") from error
        _check_program(path, program)
        differing = differing_setting(_read(path, "settings"), settings)
        if differing:
            name, was, now = differing
            raise UserError(f"{path} began with {name} {was}, not {now}: choose another --out")
        yield
    finally:
        os.close(descriptor)


def parse_job_options(kind: type[T], words: Sequence[str], program: str) -> T:
    """The options of a command line; with ``--resume`` those of the job where it gives none.

    Args:
        kind: a dataclass, with ``out``, ``resume`` and ``data_dir`` among its fields.
        words: the command line's.
        program: how ``--help`` names the program.

    Raises:
        UserError: an option is wrong, or there is no job to resume.
    """
    options: Any = parse_options(kind, words, program)
    if options.resume is None:
        return options
    if options.out is not None and options.out != options.resume:
        raise UserError(f"--resume {options.resume} writes there, not into --out {options.out}")
    _check_program(options.resume / FILE, program.removeprefix("python -m "))
    stored = read_options(options.resume, {field.name for field in fields(options)})
    hints = get_type_hints(kind)
    for name, value in stored.items():
        if not _is_of_kind(value, hints[name]):
            raise UserError(f"{options.resume / FILE}: the option {name!r} cannot be {value!r}")
    folder = stored.pop("data_dir", None)
    default: Any = kind(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()},
        data_dir=None if folder is None else Path(folder),
    )
    return replace(parse_options(kind, words, program, default), out=options.resume)


def options_as_json(options: Any) -> Record:
    """The options as a job's file keeps them: all that its results depend on."""
    folder = options.data_dir and str(options.data_dir.absolute())
    content = {**asdict(options), "data_dir": folder}
    if "band" in content:
        content["band"] = [_absolute_plan(text) for text in content["band"]]
    return {name: value for name, value in content.items() if name not in PASSING}


def _is_of_kind(value: Any, hint: Any) -> bool:
    """Whether an option's value, read from JSON, is of the type that the command line gives it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is tuple:
        return isinstance(value, list) and all(_is_of_kind(part, parts[0]) for part in value)
    if origin is Literal:
        return value in parts
    if parts:
        return any(_is_of_kind(value, part) for part in parts)
    kinds = {float: (float, int), Path: (str,)}
    return type(value) in kinds.get(hint, (hint,))


def _absolute_plan(text: str) -> str:
    """The band with its plan's file as it is found from everywhere."""
    kind, _, rest = text.strip().partition("=")
    if kind.lower() != "plan":
        return text
    path = split_variant(rest)[0]
    return f"plan={Path(path).absolute()}{rest.strip().removeprefix(path)}"


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


def _check_program(path: Path, program: str) -> None:
    """Refuse the job of another program; an older file does not tell which it was.

    Raises:
        UserError: it is of another.
    """
    if not path.is_file():
        return
    try:
        was = json.loads(path.read_text(encoding="utf-8")).get("program", program)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not the file of a job: {error!r}") from error
    if was != program:
        raise UserError(f"{path} is of a job of {was}, not of {program}")


def _read(path: Path, part: str) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))[part]
        if not isinstance(content, dict):
            raise TypeError(f"{part} is not a table")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the file of a job: {error!r}") from error
    return content
