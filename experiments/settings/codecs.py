"""Codecs as they are written on the command line: ``dct:2.5bits``, ``uniform:2bits@256``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import bandjax
from bandjax.codecs import Average, Cast, Codec, Dct, Offload, Uniform
from experiments.settings.errors import UserError

NONE = "none"
SYNTAX = """none: as JAX keeps it; dct:BITSbits: cosine transform, so many bits a value on average;
dct:SHARE@BITSbits: the lowest share of its coefficients, with so many bits each; average:BITSbits
[@BLOCK]: means of blocks and what is left; uniform:BITSbits[@GROUP]: even steps within groups;
cast:TYPE, such as cast:bfloat16; offload: to the host's memory; fitted:FILE: what
bandjax.calibrate_codec saved"""
_BITS = re.compile(r"(?:(?P<share>[\d.]+)@)?(?P<bits>[\d.]+)bits?(?:@(?P<size>\d+))?")


def parse_codec(text: str) -> Codec | None:
    """Read one codec; None for ``none``.

    Raises:
        UserError: the text is none of :data:`SYNTAX`, or its numbers are out of range.
    """
    kind, _, value = text.strip().partition(":")
    kind = kind.lower()
    try:
        if kind == "fitted" and value:
            return bandjax.FittedDct.load(value)
        if kind in _PLAIN and bool(value) == (kind == "cast"):
            return _PLAIN[kind](value)
        match = _BITS.fullmatch(value)
        if match and kind in _OF_BITS:
            return _OF_BITS[kind](**match.groupdict())
    except (OSError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"saved {text!r}: {' '.join(str(error).split())}") from error
    raise UserError(
        f"unknown codec {text!r}: write none, dct:BITSbits, dct:SHARE@BITSbits, "
        "average:BITSbits[@BLOCK], uniform:BITSbits[@GROUP], cast:TYPE, offload or fitted:FILE"
    )


def _dct(share: str | None, bits: str, size: str | None) -> Dct:
    if size is not None:
        raise ValueError("a cosine transform takes no size of blocks")
    if share is None:
        return Dct(bits=_number(bits))
    return Dct(bits=_number(bits), share=float(share))


def _of(kind: Callable[..., Codec]) -> Callable[..., Codec]:
    def make(share: str | None, bits: str, size: str | None) -> Codec:
        if share is not None:
            raise ValueError("a share is for dct alone")
        name = "block" if kind is Average else "group"
        return kind(bits=_number(bits), **({} if size is None else {name: int(size)}))

    return make


def _number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


_PLAIN: dict[str, Callable[[str], Any]] = {
    NONE: lambda value: None,
    "offload": lambda value: Offload(),
    "cast": Cast,
}
_OF_BITS: dict[str, Callable[..., Codec]] = {
    "dct": _dct,
    "average": _of(Average),
    "uniform": _of(Uniform),
}
