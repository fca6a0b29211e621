"""Codecs that are fitted to what a function keeps."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bandjax
from bandjax import FittedDct, calibrate_codec, compress_saved
from bandjax.codecs import Dct

W = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8), np.float32)) / 2


def striped(seed):
    """Maps whose energy is at the highest frequency, where the prior expects none."""
    x = np.random.default_rng(seed).standard_normal((4, 1, 1, 8)).astype(np.float32)
    sign = (-1.0) ** np.add.outer(np.arange(16), np.arange(16))
    noise = 0.02 * np.random.default_rng(seed + 1).standard_normal((4, 16, 16, 8))
    return jnp.asarray(x * sign[None, :, :, None] + noise, jnp.float32)


def f(w, x):
    return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)


def error(codec):
    x = striped(5)
    exact, near = jax.grad(f)(W, x), jax.grad(compress_saved(f, codec))(W, x)
    return float(jnp.linalg.norm(exact - near) / jnp.linalg.norm(exact))


def test_fitted_bits_go_where_the_energy_is(tmp_path):
    fitted = calibrate_codec(f, [(W, striped(0)), (W, striped(1))], bits=2)
    assert error(fitted) < error(Dct(bits=2)) / 3
    for entry in fitted.maps:
        assert np.argmax(entry.strengths) == 63
    fitted.save(tmp_path / "codec.json")
    assert FittedDct.load(tmp_path / "codec.json") == fitted
    kept = bandjax.memory.saved_bytes(compress_saved(f, fitted), W, striped(0), argnums=0)
    assert kept.by_codec() == {"FittedDct(bits=2)": 2 * Dct(bits=2).nbytes((4, 16, 16, 8))}


def test_another_batch_size_is_no_matter_but_another_model_is():
    fitted = calibrate_codec(f, [(W, striped(0))])
    jax.grad(compress_saved(f, fitted))(W, striped(0)[:2])
    with pytest.raises(ValueError, match="calibrated for another model: it is for 2 maps, here"):
        jax.grad(compress_saved(lambda w, x: jnp.sum(jnp.tanh(x @ w)), fitted))(W, striped(0))
    with pytest.raises(ValueError, match=r"map 0 is \(16, 16, 8\) there and \(8, 16, 8\) here"):
        jax.grad(compress_saved(f, fitted))(W, striped(0)[:, :8])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: calibrate_codec(f, []), "batches must hold the arguments of at least one call"),
        (lambda: calibrate_codec(f, [(W, striped(0))], bits=99), "0.5 <= bits <= 12, got 99"),
        (lambda: calibrate_codec(f, [(W, W[:1])]), "it has no large maps"),
        (lambda: FittedDct.from_dict({"format": "other"}), "no calibrated codec"),
        (
            lambda: FittedDct.from_dict(
                json.loads(
                    '{"format": "bandjax codec 1", "bits": 4,'
                    ' "maps": [{"shape": [8, 8, 3], "strengths": [1]}]}'
                )
            ),
            "needs 64 strengths",
        ),
        (lambda: FittedDct(4, ()).pack(jnp.ones((2, 9))), "for compress_saved alone"),
    ],
)
def test_wrong_arguments_raise_one_clear_line(call, said):
    with pytest.raises(ValueError, match=said):
        call()
