"""Bands as they are written on the command line: ``none``, ``compression=0.5``, ``modes=8,8``."""

from __future__ import annotations

import bandjax
from experiments.errors import UserError


def parse_band(text: str) -> tuple[str, bandjax.Band]:
    """Read one band.

    Args:
        text: ``none`` (every frequency, an exact convolution), ``compression=RATE`` (drop that
            share of each layer's half spectrum, ``0 <= RATE < 1``) or ``modes=U[,U..]`` (keep
            the frequencies ``|u| <= U``, one number per spatial axis).

    Returns:
        The band's canonical text (the same for ``compression=0.5`` and ``compression=.50``) and
        the band itself.

    Raises:
        UserError: the text is none of the three, or its numbers are out of range.
    """
    kind, _, value = text.strip().lower().partition("=")
    try:
        if kind == "none" and not value:
            return "none", None
        if kind == "compression":
            rate = float(value)
            return f"compression={rate:g}", bandjax.Compression(rate)
        if kind == "modes":
            modes = tuple(int(part) for part in value.split(","))
            return "modes=" + ",".join(map(str, modes)), bandjax.Modes(*modes)
    except (TypeError, ValueError) as error:
        raise UserError(f"band {text!r}: {error}") from error
    raise UserError(f"unknown band {text!r}: write none, compression=RATE or modes=U[,U..]")


def file_stem(label: str) -> str:
    """The band's canonical text as a part of a file name: ``modes=8,8`` gives ``modes-8-8``."""
    return label.replace("=", "-").replace(",", "-")
