"""The programs that draw: what they compute and record, on small inputs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from archives import write_cifar

from experiments.data import load_digits
from experiments.data.cifar10 import DEVIATION, MEAN
from experiments.figures import fft_approximation, layer_spectra


def spectra_error(image, kernel, x_kept, kernel_kept, points):
    """Per cent, by NumPy's FFT on the paper's grid; ``points`` of the circle are compared."""

    def correlated(X, W):
        return np.fft.irfft2((X * W.conj()).sum(0), (59, 59))[np.ix_(points, points)]

    X, W = (np.fft.rfft2(v.transpose(2, 0, 1), (59, 59)) for v in (image, kernel))
    exact = correlated(X, W)
    return (
        100
        * np.abs(correlated(X * x_kept(X), W * kernel_kept(W)) - exact).sum()
        / np.sum(np.abs(exact))
    )


def in_box(dropped):
    limit = 29 - dropped
    kept = np.zeros((59, 30), bool)
    kept[np.ix_([*range(limit + 1), *range(59 - limit, 59)], range(limit + 1))] = True
    return lambda spectrum: kept


def largest(zeroed):
    def kept(spectrum):
        mask = np.ones(spectrum.size, bool)
        # In the library's order, so that equal magnitudes go in the same one.
        size = np.abs(spectrum).transpose(1, 2, 0).ravel()
        mask[np.argsort(size, kind="stable")[:zeroed]] = False
        return mask.reshape(59, 30, 3).transpose(2, 0, 1)

    return kept


@pytest.mark.full
@pytest.mark.parametrize("pixels", ["standardised", "raw"])
def test_fft_approximation(tmp_path, monkeypatch, capsys, pixels):
    raw = write_cifar(tmp_path, monkeypatch)["test_batch"][0]
    made: list[np.ndarray] = []
    glorot = fft_approximation.glorot

    def watched(key):
        made.append(np.asarray(glorot(key))[..., 0].astype(np.float64))
        return made[-1][..., None].astype(np.float32)

    monkeypatch.setattr(fft_approximation, "glorot", watched)
    out = tmp_path / "deep" / "f"
    words = ["--data-dir", str(tmp_path), "--images", "2", "--step", "2000", "--pixels", pixels]
    assert fft_approximation.main([*words, "--out", str(out)]) == 0
    assert "error of one convolution (%), 2 images" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(out.with_suffix(".json").read_text())

    dropped, share = record["dropped"], record["compression_percent"]
    assert dropped["lead"] == list(range(30))
    assert dropped["top"] == [0, 1, 10, 351, 2000, 2655, 4000, 5310]
    assert share["lead"][1] == share["top"][3] == float(f"{100 * 117 / 1770:.6g}")  # 6.61
    assert [round(share["lead"][n], 1) for n in (2, 5, 10, 15, 25)] == [
        13.0,
        30.8,
        55.9,
        75.4,
        97.5,
    ]

    images = raw[:2].reshape(2, 3, 32, 32).transpose(0, 2, 3, 1) / 255
    if pixels == "standardised":
        images = (images - MEAN) / DEVIATION
    assert np.abs(made[0]).max() <= np.sqrt(6 / 100)
    assert not np.array_equal(*made)
    for crop, points in (("28x28", range(28)), ("59x59", range(59))):
        for name, chosen, counts in (
            ("lead", in_box, (0, 1, 29)),
            ("top", largest, (1, 351, 4000)),
        ):
            curve = record["curves"][f"{name} {crop}"]
            for count in counts:
                errors = [
                    spectra_error(x, w, chosen(count), chosen(count), points)
                    for x, w in zip(images, made, strict=True)
                ]
                at = dropped[name].index(count)
                found = [curve[f"{q} %"][at] for q in (10, 50, 90)]
                expected = np.percentile(errors, [10, 50, 90])
                # Conjugate partners are of equal size to rounding: which one goes is chance.
                np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-4)
            first = chosen(1 if name == "lead" else 351)
            errors = [
                spectra_error(x, w, first, first, points) for x, w in zip(images, made, strict=True)
            ]
            np.testing.assert_allclose(curve["at 6.61 %"], errors, rtol=2e-2)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "data set 'cifar10' needs --data-dir"),
        (["--images", "0"], "--images >= 1 and --step >= 1, got 0 and 10"),
        (["--images", "4"], "--images 4: the test set has 3"),
        (["--pixels", "grey"], "grey"),
    ],
)
def test_fft_approximation_of_what_cannot_be(tmp_path, monkeypatch, capsys, words, part):
    write_cifar(tmp_path, monkeypatch)
    folder = ["--data-dir", str(tmp_path)] if words else []
    assert fft_approximation.main([*words, *folder]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert part in error
    assert error.count("\n") == 1


@pytest.mark.full
def test_layer_spectra(tmp_path, monkeypatch, capsys):
    few = load_digits().limited(64)
    few = dataclasses.replace(few, x_test=few.x_test[:8], y_test=few.y_test[:8])
    monkeypatch.setattr(layer_spectra.data, "load", lambda *_: few)
    out = tmp_path / "deep" / "v1.0"
    words = ["--epochs", "2", "--batch", "8", "--layer", "convs.0"]
    assert layer_spectra.main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"{out}.png\n")
    assert (tmp_path / "deep" / "v1.0.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "deep" / "v1.0.json").read_text())
    assert record["settings"]["layer"] == "convs.0"
    shares = record["energy_share_in_band"]
    # The input of the first layer does not learn; the band is |u| <= 3 of a grid of 9 x 9.
    power = np.abs(np.fft.fft2(few.x_train[:8, ..., 0], (9, 9))) ** 2
    inside = np.abs(np.fft.fftfreq(9, 1 / 9)) <= 3
    expected = power[:, inside][:, :, inside].sum() / power.sum()
    assert shares["before"]["input"] == shares["after"]["input"]
    assert shares["before"]["input"] == pytest.approx(expected, abs=1e-4)
    assert shares["before"]["kernel"] != shares["after"]["kernel"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--model", "vgg"], "unknown model 'vgg'; known: cnn"),
        (["--batch", "0"], "--batch >= 1 and --decibels > 0, got 0 and 40"),
        (["--layer", "convs.7"], "unknown layer 'convs.7'; known: convs.0, convs.1"),
        (["--band", "half"], "unknown band 'half'"),
    ],
)
def test_layer_spectra_of_what_cannot_be(capsys, words, part):
    assert layer_spectra.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert part in error
