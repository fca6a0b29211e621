"""Command lines: options from words, and one line for what is wrong with them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro
from rich.console import Console

from experiments.settings.errors import UserError

T = TypeVar("T")
_FILE_WIDTH = 120  # columns


def parse_options(
    kind: type[T], arguments: Sequence[str], program: str, default: T | None = None
) -> T:
    """Options from the command line's words.

    Args:
        kind: a dataclass as tyro takes it, or a union of several for sub-commands.
        arguments: the words.
        program: how ``--help`` names the program.
        default: supplies what the words leave out; None for the dataclass's own defaults.

    Raises:
        UserError: tyro refuses them. Its boxed message is shortened to its first sentence. Or one
            is no UTF-8, in which records and tables are written.
    """
    for word in arguments:
        if not word.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(f"not UTF-8: {os.fsencode(word)!r}")
    box = io.StringIO()
    defaults = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, args=arguments, prog=program, **defaults)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    message, *_ = re.split(r"\n\W*\n", re.sub(r"^.*\n", "", box.getvalue(), count=1))
    words = re.sub(r"^[│|]|[│|]$", "", message, flags=re.MULTILINE).split()
    raise UserError(f"{' '.join(words)} (--help lists the options)")


def open_console() -> Console:
    """Standard output: as wide as the terminal, or as ``COLUMNS`` says; a file has 120 columns."""
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if told else _FILE_WIDTH)


def run_command(action: Callable[[], int | None], interrupted: str) -> int:
    """Runs a program; returns its exit status.

    Args:
        action: the program; returns its exit status, None for 0.
        interrupted: what to say when somebody stops it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A character that it lacks is no reason to end.
            stream.reconfigure(errors="replace")
    try:
        return action() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # The disk is full, a folder cannot be written, ...
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            "error: out of memory: choose a smaller --batch-size, with --accumulate for the same "
            "gradients, or --remat spectra",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
