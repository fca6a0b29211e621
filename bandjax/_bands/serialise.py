"""Bands as JSON, and as keys of a dictionary."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from bandjax._bands.band import Compression, Energy, Modes, Nyquist


def band_to_json(band: Any) -> Any:
    """Returns a band, or a plan, ready for JSON.

    Raises:
      TypeError: it is neither.
    """
    match band:
        case None:
            return None
        case Compression():
            # A float is read back as it is printed; a fraction is kept exactly.
            rate = band.rate
            return {"compression": str(rate) if isinstance(rate, Fraction) else rate}
        case Energy():
            return {"energy": band.share, "at_most": band_to_json(band.at_most)}
        case Modes():
            return {"modes": list(band.limits)}
        case Nyquist():
            return {"nyquist": band_to_json(band.band)}
    if not hasattr(band, "as_dict"):
        raise TypeError(f"no band or plan that can be written as JSON: {band!r}")
    return {"plan": band.as_dict()}


def band_from_json(content: Any) -> Any:
    """Returns the band of :func:`band_to_json`; plans are read by :mod:`bandjax._bands.plan`.

    Raises:
      TypeError, ValueError: no band is written so.
    """
    match content:
        case None:
            return None
        case {"compression": str(rate)}:
            return Compression(Fraction(rate))
        case {"compression": rate}:
            return Compression(rate)
        case {"energy": share, "at_most": at_most}:
            return Energy(share, band_from_json(at_most))
        case {"modes": limits}:
            return Modes(*limits)
        case {"nyquist": band}:
            return Nyquist(band_from_json(band))
    raise ValueError(f"no band is written as {content!r}")


def band_key(band: Any) -> Any:
    """Returns what tells bands apart; of one that has no hash, such as a plan, its JSON."""
    try:
        hash(band)
    except TypeError:
        return json.dumps(band_to_json(band), sort_keys=True)
    return band


def distinct(bands: Iterable[Any]) -> tuple[Any, ...]:
    """Returns each band once, in the order given."""
    return tuple({band_key(band): band for band in bands}.values())
