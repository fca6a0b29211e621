"""Bands as they are written on the command line: ``none``, ``compression=0.5``, ``modes=8,8``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import bandjax
from bandjax.schedule import Schedule, piecewise, ramp, recalibrated
from experiments.settings.errors import UserError

SYNTAX = """none: every frequency, an exact convolution;
compression=RATE: drop this share of each layer's half spectrum;
modes=U[,U..]: keep the frequencies up to U, per spatial axis;
nyquist[=BAND]: keep of BAND (compression or modes, else all) what each layer's output can carry, so
that no stride aliases;
energy=SHARE[,at-most=BAND]: keep the smallest box with this share of the input's energy, found anew
in every step, within the box of BAND (compression, modes or nyquist);
plan=FILE: a box for each layer, from bandjax.calibrate or bandjax.allocate;
schedule=...: bands that change from epoch to epoch, as one of
ramp:START..STOP@EPOCHS[/LEVELS][+BAND@EPOCH..] (compression rates, or energy=1..0.9, or
modes=9,9..3,3, or nyquist=compression=0.9..0.2; the ramp takes EPOCHS epochs, in LEVELS steps, 8 by
default; ramp:0.9..0.2@27+none@27 goes from coarse to fine, and is dense from epoch 27 on),
piecewise:BAND@0+BAND@EPOCH.. (each from the epoch on, counted from 0),
recalibrated:SHARE@EVERYxTIMES[,at-most=BAND] (energy=SHARE for EVERY epochs, then a plan that is
calibrated anew every EVERY epochs, TIMES times)."""

LONGEST_NAME = 120  # bytes of a band in a file name: file systems allow 255 for the whole
_KINDS = (
    "write none, compression=RATE, modes=U[,U..], nyquist[=BAND], energy=SHARE[,at-most=BAND], "
    "plan=FILE or schedule=... (--help tells)"
)
_RAMP = re.compile(
    r"ramp:(?:(?P<kind>compression|energy|modes|nyquist=compression|nyquist=modes)=)?"
    r"(?P<start>.+?)\.\.(?P<stop>.+?)@(?P<epochs>\d+)(?:/(?P<levels>\d+))?(?P<then>\+.+)?",
    re.IGNORECASE,
)
_RECALIBRATED = re.compile(
    r"recalibrated:(?P<share>[^@]+)@(?P<every>\d+)x(?P<times>\d+)(?P<bound>,.*)?", re.IGNORECASE
)


def parse_band(text: str) -> tuple[str, Any]:
    """Read one band.

    Args:
        text: as :data:`SYNTAX` tells.

    Returns:
        The band's canonical text (the same for ``compression=0.5`` and ``compression=.50``; that of
        a plan has the file's name and a digest of what is in it), and the band: a
        ``bandjax.Band``, a ``bandjax.Plan`` or a ``bandjax.schedule.Schedule`` over epochs. A
        schedule may have a state: parse the text anew for each run.

    Raises:
        UserError: the text is none of these, its numbers are out of range, or the plan's file
            cannot be read.
    """
    kind, _, value = text.strip().partition("=")
    kind = kind.lower()
    try:
        if kind == "plan":
            return _plan(Path(value))
        if kind == "schedule":
            label, schedule = _schedule(value)
            return f"schedule={label}", schedule
        if kind == "none" and not value:
            return "none", None
        if kind == "compression":
            rate = float(value)
            return f"compression={_number(rate)}", bandjax.Compression(rate)
        if kind == "nyquist":
            if not text.strip().endswith("="):
                label, band = parse_band(value) if value else ("", None)
                return "nyquist" + (f"={label}" if label else ""), bandjax.Nyquist(band)
            raise ValueError("nyquist takes a band behind =, or none without it")
        if kind == "modes":
            modes = tuple(int(part) for part in value.split(","))
            return "modes=" + ",".join(map(str, modes)), bandjax.Modes(*modes)
        if kind == "energy":
            share, comma, rest = value.partition(",")
            suffix, bound = _bound(comma + rest)
            return f"energy={_number(float(share))}{suffix}", bandjax.Energy(float(share), bound)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"band {text!r}: {' '.join(str(error).split())}") from error
    raise UserError(f"unknown band {text!r}: {_KINDS}")


def parse_fixed_band(text: str) -> tuple[str, bandjax.Band]:
    """Read a band that neither depends on the layer nor changes: neither plan nor schedule.

    Raises:
        UserError: it does, or as :func:`parse_band`.
    """
    label, band = parse_band(text)
    if label.startswith(("plan=", "schedule=")):
        raise UserError(f"band {text!r}: a plan or a schedule is for training alone")
    return label, band


def _number(value: float) -> str:
    """The shortest text that is read as this number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _bound(text: str) -> tuple[str, Any]:
    """The ``,at-most=BAND`` of an energy band; empty text for none."""
    if not text:
        return "", None
    name, _, value = text.removeprefix(",").strip().partition("=")
    if name.lower() != "at-most":
        raise ValueError(f"after the share only ,at-most=BAND may follow, got {text!r}")
    label, band = parse_band(value)
    if not isinstance(band, bandjax.Compression | bandjax.Modes | bandjax.Nyquist):
        raise ValueError(
            f"at-most takes compression=RATE, modes=U[,U..] or nyquist[=BAND], got {value!r}"
        )
    return f",at-most={label}", band


def _plan(path: Path) -> tuple[str, Any]:
    plan = bandjax.Plan.load(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return f"plan={path.stem}@{digest}", plan


def _schedule(text: str) -> tuple[str, Schedule]:
    """The canonical text of a schedule (what follows ``schedule=``), and the schedule."""
    if match := _RAMP.fullmatch(text):
        kind = (match["kind"] or "compression").lower()
        (first, start), (last, stop) = (
            parse_band(f"{kind}={match[end]}") for end in ("start", "stop")
        )
        levels = int(match["levels"] or 8)
        ends = "..".join(label.removeprefix(f"{kind}=") for label in (first, last))
        prefix = "" if kind == "compression" else f"{kind}="
        suffix = "" if levels == 8 else f"/{levels}"
        label = f"ramp:{prefix}{ends}@{int(match['epochs'])}{suffix}"
        schedule = ramp(start, stop, int(match["epochs"]), levels=levels)
        if not match["then"]:
            return label, schedule
        then, bands = _pieces(match["then"][1:])
        late = min(bands)
        before = {step: band for step, band in schedule.pieces if step < late}
        return f"{label}+{then}", piecewise({**before, **bands})
    if match := _RECALIBRATED.fullmatch(text):
        share, every, times = float(match["share"]), int(match["every"]), int(match["times"])
        suffix, bound = _bound(match["bound"] or "")
        label = f"recalibrated:{_number(share)}@{every}x{times}{suffix}"
        return label, recalibrated(share, every, times, at_most=bound)
    kind, _, value = text.partition(":")
    if kind.lower() != "piecewise":
        raise ValueError("a schedule is ramp:..., piecewise:... or recalibrated:..., see --help")
    label, bands = _pieces(value)
    return f"piecewise:{label}", piecewise(bands)


def _pieces(text: str) -> tuple[str, dict[int, Any]]:
    """``BAND@EPOCH+BAND@EPOCH..``: its canonical text, and the bands by their first epochs."""
    bands: dict[int, Any] = {}
    labels = []
    for piece in text.split("+"):
        band, at, epoch = piece.rpartition("@")
        if not at or not epoch.isdecimal():
            raise ValueError(f"a piece of a schedule is BAND@EPOCH, got {piece!r}")
        label, parsed = parse_band(band)
        if isinstance(parsed, Schedule):
            raise ValueError(f"a schedule cannot be a piece of one, got {piece!r}")
        if int(epoch) in bands:
            raise ValueError(f"epoch {int(epoch)} has two bands, got {text!r}")
        bands[int(epoch)] = parsed
        labels.append(f"{label}@{int(epoch)}")
    return "+".join(labels), bands


def file_stem(label: str) -> str:
    """The band's canonical text as a part of a file name: ``modes=8,8`` gives ``modes-8-8``.

    Of a text too long for a name, such as that of a schedule, its beginning and a hash.
    """
    name = re.sub(r"[^\w.-]+", "-", label)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(label.encode()).hexdigest()[:12]
    return f"{name.encode()[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"
