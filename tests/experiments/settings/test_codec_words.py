"""Codecs as they are written on the command line."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from bandjax import FittedDct
from bandjax.codecs import Average, Cast, Dct, Offload, Uniform
from experiments.settings.codecs import parse_codec
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("none", None),
        ("dct:2.5bits", Dct(bits=2.5)),
        (" DCT:4bits", Dct(bits=4)),
        ("dct:0.25@8bits", Dct(bits=8, share=0.25)),
        ("average:2bits", Average()),
        ("average:3bits@4", Average(4, 3)),
        ("uniform:1bit@64", Uniform(1, 64)),
        ("cast:bfloat16", Cast(jnp.bfloat16)),
        ("offload", Offload()),
    ],
)
def test_parse_codec(text, codec):
    assert parse_codec(text) == codec


def test_a_fitted_codec_is_read_from_its_file(tmp_path):
    FittedDct(3, ()).save(tmp_path / "c.json")
    assert parse_codec(f"fitted:{tmp_path / 'c.json'}") == FittedDct(3, ())
    with pytest.raises(UserError, match="No such file"):
        parse_codec("fitted:nothing.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zip", "unknown codec 'zip': write none, dct:BITSbits"),
        ("dct", "unknown codec 'dct'"),
        ("dct:4", "unknown codec 'dct:4'"),
        ("dct:99bits", "0.5 <= bits <= 12, got 99"),
        ("dct:4bits@8", "a cosine transform takes no size"),
        ("uniform:2.5bits", "bits must be an integer, got 2.5"),
        ("average:0.5@2bits", "a share is for dct alone"),
        ("cast:int8", "dtype must be a floating-point type, got int8"),
        ("offload:all", "unknown codec 'offload:all'"),
    ],
)
def test_parse_codec_refuses(text, message):
    with pytest.raises(UserError, match=message):
        parse_codec(text)


def test_spectra_have_a_format_of_their_own():
    with pytest.raises(UserError, match="goes with remat none or inputs"):
        settings_for("cnn", "digits", saved="dct:4bits", remat="spectra")
