"""Bands with options of their own, as they are written on the command line."""

from __future__ import annotations

import pytest

from bandjax import Compression, Energy, Modes
from bandjax.schedule import piecewise
from experiments.settings.bands import file_stem
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.settings.variants import parse_variant, split_variant


@pytest.mark.parametrize(
    ("text", "label", "band", "changes"),
    [
        ("none", "none", None, {}),
        ("modes=8, 3", "modes=8,3", Modes(8, 3), {}),
        ("none,remat=spectra", "none,remat=spectra", None, {"remat": "spectra"}),
        (
            " Compression=.50, Residual-Dtype=int8 ,remat=blocks",
            "compression=0.5,remat=blocks,residual-dtype=int8",
            Compression(0.5),
            {"remat": "blocks", "residual_dtype": "int8"},
        ),
        ("none,saved=dct:2.5bits", "none,saved=dct:2.5bits", None, {"saved": "dct:2.5bits"}),
        (
            "energy=0.9,at-most=modes=8,3,method=fft",
            "energy=0.9,at-most=modes=8,3,method=fft",
            Energy(0.9, Modes(8, 3)),
            {"method": "fft"},
        ),
        (
            "schedule=piecewise:none@0+modes=8,3@5,precision=bf16,param-domain=spatial",
            "schedule=piecewise:none@0+modes=8,3@5,precision=bf16,param-domain=spatial",
            piecewise({0: None, 5: Modes(8, 3)}),
            {"precision": "bf16", "param_domain": "spatial"},
        ),
    ],
)
def test_parse_variant(text, label, band, changes):
    for each in (text, label):
        found = parse_variant(each)
        assert (found.label, found.band, found.changes) == (label, band, changes)
    assert split_variant(label)[1] == changes
    assert set(file_stem(label)) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    common = settings_for("cnn", "digits", residual_dtype="bfloat16")
    assert found.settings(common).as_dict() == {**common.as_dict(), **changes}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none,remat=some", "remat must be one of none, spectra, blocks, inputs, got 'some'"),
        ("none,remat=", "remat must be one of .*, got ''"),
        ("modes=3,residual-dtype=float64", "residual-dtype must be one of float32, bfloat16, int8"),
        ("none,remat=none,remat=spectra", "remat is given twice"),
        ("compression=0.5,epochs=3", "could not convert string to float: '0.5,epochs=3'"),
        ("energy=0.9,remat=none,at-most=modes=3", "only ,at-most=BAND may follow"),
        ("none,saved=zip", "band 'none,saved=zip': unknown codec 'zip'"),
        ("remat=none", "unknown band 'remat=none'"),
        (",remat=none", "unknown band ''"),
    ],
)
def test_parse_variant_refuses(text, message):
    with pytest.raises(UserError, match=message) as raised:
        parse_variant(text)
    assert "band" in str(raised.value)
