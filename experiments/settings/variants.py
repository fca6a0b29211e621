"""Variants of a training run as they are written on the command line: a band with its options."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, get_args

from experiments.settings.bands import parse_band
from experiments.settings.codecs import parse_codec
from experiments.settings.config import (
    Method,
    ParamDomain,
    Precision,
    Remat,
    ResidualDtype,
    Settings,
)
from experiments.settings.errors import UserError

# Options that change how a network is computed, and nothing of the task or of its training.
CHOICES: dict[str, tuple[str, ...]] = {
    "remat": get_args(Remat),
    "residual-dtype": get_args(ResidualDtype),
    "precision": get_args(Precision),
    "param-domain": get_args(ParamDomain),
    "method": get_args(Method),
    "saved": (),  # What parse_codec reads.
}
SYNTAX = (
    "Any of them may be followed by options of its own, which else hold for all: "
    + " ".join(f",{name}={'|'.join(values) or 'CODEC'}" for name, values in CHOICES.items())
    + ", as in compression=0.5,remat=spectra,residual-dtype=int8"
)
_LAST_OPTION = re.compile(rf"(.*),\s*({'|'.join(CHOICES)})\s*=\s*([^,=]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Variant:
    """What the runs of a job differ in, but for the seed.

    Attributes:
        label: its canonical text.
        band: what :func:`experiments.settings.bands.parse_band` made of its band.
        changes: its own settings, by their names in ``Settings``.
    """

    label: str
    band: Any
    changes: dict[str, str]

    def settings(self, common: Settings) -> Settings:
        """The settings of its runs, from those of the job."""
        return replace(common, **self.changes)


def parse_variant(text: str) -> Variant:
    """Read one variant.

    Args:
        text: a band, followed by any of ``,remat=...``, ``,residual-dtype=...`` and so on.

    Raises:
        UserError: the band or an option cannot be read, or an option is given twice.
    """
    words, changes = split_variant(text)
    label, band = parse_band(words)
    own = "".join(f",{name}={changes[_field(name)]}" for name in CHOICES if _field(name) in changes)
    return Variant(label + own, band, changes)


def split_variant(text: str) -> tuple[str, dict[str, str]]:
    """The text of a variant's band, and its own settings.

    Raises:
        UserError: an option has a value that it cannot have, or is given twice.
    """
    band, changes = text.strip(), {}
    while match := _LAST_OPTION.fullmatch(band):
        band, name, value = match[1], match[2].lower(), match[3].strip()
        if not CHOICES[name]:
            try:
                parse_codec(value)
            except UserError as error:
                raise UserError(f"band {text!r}: {error}") from error
        elif value not in CHOICES[name]:
            known = ", ".join(CHOICES[name])
            raise UserError(f"band {text!r}: {name} must be one of {known}, got {value!r}")
        if _field(name) in changes:
            raise UserError(f"band {text!r}: {name} is given twice")
        changes[_field(name)] = value
    return band, changes


def _field(name: str) -> str:
    """The setting that an option is."""
    return name.replace("-", "_")
