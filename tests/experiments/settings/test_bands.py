"""Bands as they are written on the command line."""

from __future__ import annotations

import pytest

import bandjax
from bandjax import Compression, Energy, Modes, Nyquist
from bandjax.schedule import piecewise, ramp
from experiments.settings.bands import LONGEST_NAME, file_stem, parse_band, parse_fixed_band
from experiments.settings.errors import UserError


@pytest.mark.parametrize(
    ("text", "label", "band"),
    [
        ("none", "none", None),
        ("compression=.50", "compression=0.5", Compression(0.5)),
        ("Compression=0", "compression=0", Compression(0.0)),
        ("modes=8, 3", "modes=8,3", Modes(8, 3)),
        ("Nyquist", "nyquist", Nyquist()),
        ("nyquist=compression=.50", "nyquist=compression=0.5", Nyquist(Compression(0.5))),
        ("nyquist=Modes=8, 3", "nyquist=modes=8,3", Nyquist(Modes(8, 3))),
        ("energy=.9,at-most=Nyquist", "energy=0.9,at-most=nyquist", Energy(0.9, Nyquist())),
        ("energy=.950", "energy=0.95", Energy(0.95)),
        ("energy=0.99999990", "energy=0.9999999", Energy(0.9999999)),
        ("compression=0.1234567", "compression=0.1234567", Compression(0.1234567)),
        (
            "energy=0.9, at-most=compression=.50",
            "energy=0.9,at-most=compression=0.5",
            Energy(0.9, Compression(0.5)),
        ),
        ("Energy=1,At-Most=Modes=8,3", "energy=1,at-most=modes=8,3", Energy(1, Modes(8, 3))),
        ("schedule=ramp:0..0.5@10", "schedule=ramp:0..0.5@10", ramp(0, 0.5, 10)),
        ("schedule=ramp:.1...50@9/4", "schedule=ramp:0.1..0.5@9/4", ramp(0.1, 0.5, 9, levels=4)),
        (
            "schedule=ramp:energy=1..0.9@4/3",
            "schedule=ramp:energy=1..0.9@4/3",
            ramp(Energy(1), Energy(0.9), 4, levels=3),
        ),
        (
            "schedule=ramp:modes=9,9..3,4@8",
            "schedule=ramp:modes=9,9..3,4@8",
            ramp(Modes(9, 9), Modes(3, 4), 8),
        ),
        (
            "schedule=ramp:Nyquist=Compression=.9..0.1@8/3",
            "schedule=ramp:nyquist=compression=0.9..0.1@8/3",
            ramp(Nyquist(Compression(0.9)), Nyquist(Compression(0.1)), 8, levels=3),
        ),
        (
            "schedule=ramp:.8..0@8/3+none@07+modes=3@9",
            "schedule=ramp:0.8..0@8/3+none@7+modes=3@9",
            piecewise({0: Compression(0.8), 4: Compression(0.4), 7: None, 9: Modes(3)}),
        ),
        (
            "schedule=piecewise:none@0+Modes=8,3@5+energy=0.9,at-most=modes=8,3@07",
            "schedule=piecewise:none@0+modes=8,3@5+energy=0.9,at-most=modes=8,3@7",
            piecewise({0: None, 5: Modes(8, 3), 7: Energy(0.9, Modes(8, 3))}),
        ),
    ],
)
def test_parse_band(text, label, band):
    assert parse_band(text) == (label, band)
    assert parse_band(label) == (label, band)
    assert set(file_stem(label)) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")


def test_a_stateful_schedule():
    label, changing = parse_band("schedule=recalibrated:.95@2x3,at-most=modes=8")
    assert label == "schedule=recalibrated:0.95@2x3,at-most=modes=8"
    assert changing.energy == Energy(0.95, Modes(8))
    assert (changing.every, changing.times, changing.dynamic) == (2, 3, 2)
    assert parse_band("schedule=recalibrated:1@1x1")[1].energy == Energy(1)
    assert parse_band(label)[1] is not changing


def test_a_plan_is_known_by_its_content(tmp_path, monkeypatch):
    class Plan:
        @classmethod
        def load(cls, path):
            if path.read_text() != "whole":
                raise ValueError(f"{path}: not a plan:\n damaged")
            return Modes(3)

    monkeypatch.setattr(bandjax, "Plan", Plan, raising=False)
    path = tmp_path / "At 0.9.json"
    path.write_text("whole")
    label, plan = parse_band(f"plan={path}")
    assert plan == Modes(3)
    assert label.startswith("plan=At 0.9@")
    assert file_stem(label) == f"plan-At-0.9-{label[-8:]}"
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    other.write_text("whole")
    assert parse_band(f"plan={other}")[0] == label
    changing = parse_band(f"schedule=Piecewise:none@0+plan={path}@3")
    assert changing == (f"schedule=piecewise:none@0+{label}@3", piecewise({0: None, 3: plan}))

    path.write_text("part")
    with pytest.raises(UserError, match=r"At 0.9.json: not a plan: damaged") as raised:
        parse_band(f"plan={path}")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="No such file"):
        parse_band(f"plan={tmp_path / 'none.json'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown band ''"),
        ("half", "unknown band 'half': write none, .*energy=SHARE"),
        ("none=1", "unknown band"),
        ("compression", "could not convert"),
        ("compression=1", "rate must satisfy"),
        ("compression=x", "could not convert"),
        ("modes=", "invalid literal"),
        ("modes=1.5", "invalid literal"),
        ("energy=0", "share must satisfy"),
        ("energy=x", "could not convert"),
        ("energy=0.9,modes=3", "only ,at-most=BAND may follow, got ',modes=3'"),
        ("energy=0.9,", "only ,at-most=BAND may follow, got ','"),
        ("energy=0.9,at-most=none", "at-most takes compression=RATE, modes.*got 'none'"),
        ("energy=0.9,at-most=energy=0.5", "at-most takes"),
        ("energy=0.9,at-most=compression=2", "rate must satisfy"),
        ("nyquist=", "nyquist takes a band behind =, or none"),
        ("nyquist=0.5", "unknown band '0.5'"),
        ("nyquist=energy=0.5", r"write bandjax.Energy\(0.5, at_most=bandjax.Nyquist"),
        ("schedule=ramp:0..0.5@3+none", "BAND@EPOCH, got 'none'"),
        ("schedule=", "a schedule is ramp:"),
        ("schedule=ramp:0..0.5", "a schedule is ramp:"),
        ("schedule=ramp:0..2@3", "rate must satisfy"),
        ("schedule=ramp:0..0.5@0", "steps must be >= 1, got 0"),
        ("schedule=ramp:0..0.5@3/1", "levels must be >= 2, got 1"),
        ("schedule=ramp:modes=3..3,4@3", "start and stop must be of one kind"),
        ("schedule=ramp:plan=a..b@3", "could not convert"),
        ("schedule=piecewise:none", "BAND@EPOCH, got 'none'"),
        ("schedule=piecewise:none@x", "BAND@EPOCH"),
        ("schedule=piecewise:none@1", "ascend from 0"),
        ("schedule=piecewise:none@0+modes=3@0", "epoch 0 has two bands"),
        ("schedule=piecewise:schedule=ramp:0..1@3@0", "rate must|cannot be a piece"),
        ("schedule=piecewise:schedule=ramp:0..0.5@3@0", "cannot be a piece"),
        ("schedule=recalibrated:0.9@1", "a schedule is"),
        ("schedule=recalibrated:0.9@0x1", "every must be >= 1"),
        ("schedule=recalibrated:0.9@1x1,modes=3", "at-most=BAND may follow"),
    ],
)
def test_parse_band_refuses(text, message):
    with pytest.raises(UserError, match=message) as raised:
        parse_band(text)
    assert "band" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bands_for_benchmarks():
    assert parse_fixed_band("energy=0.9") == ("energy=0.9", Energy(0.9))
    with pytest.raises(UserError, match="is for training alone"):
        parse_fixed_band("schedule=ramp:0..0.5@3")


def test_a_long_band_has_a_file_name_that_file_systems_take(tmp_path):
    pieces = "+".join(f"compression=0.{i:02}@{i}" for i in range(10, 26))
    others = "+".join(f"compression=0.{i:02}@{i}" for i in range(10, 27))
    names = [file_stem(f"schedule=piecewise:{text}") for text in (pieces, others, "é" * 300)]
    assert len(set(names)) == 3
    assert names[0].startswith("schedule-piecewise-compression-0.10-10-compression")
    for name in names:
        assert len(name.encode()) <= LONGEST_NAME
        (tmp_path / f"{name}_seed-2147483647.json").touch()
    assert file_stem("modes=8,8") == "modes-8-8"
