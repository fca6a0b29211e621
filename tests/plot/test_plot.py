"""The pictures: what is drawn, where, and what the axes say; not their pixels."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from flax import nnx
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import bandjax
from bandjax import plot

mpl.use("Agg")


def random(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def axes():
    return Figure().subplots()


def levels(values, grid, *, whole):
    """Decibels below the largest, from NumPy's full spectrum."""
    full = np.fft.fftn(values, grid, axes=range(1, values.ndim - 1))
    power = np.fft.fftshift((np.abs(full) ** 2).mean((0, -1)))
    if not whole:  # u >= 0 of the last axis, in the order of an FFT
        power = np.fft.ifftshift(power)[..., : grid[-1] // 2 + 1]
    return 10 * np.log10(power / power.max())


def boxes(ax):
    """Left, right, top and bottom of each rectangle."""
    found = [p.get_bbox() for p in ax.patches]
    return [(b.x0, b.x1, b.y0, b.y1) for b in found]


@pytest.mark.parametrize(("size", "grid"), [((6, 7), (8, 9)), ((5, 6), (5, 6)), ((7, 4), (9, 4))])
def test_heat_map_with_dc_in_the_centre(size, grid):
    x = random(3, *size, 2)
    ax = plot.spectrum(x, grid, band=bandjax.Modes(2, 1), title="some", ax=axes())
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), levels(x, grid, whole=True), atol=1e-9)
    g1, g2 = grid
    # A pixel's middle is its frequency; rows go down.
    low, high = [-(g // 2) for g in grid], [(g - 1) // 2 for g in grid]
    assert image.get_extent() == [low[1] - 0.5, high[1] + 0.5, high[0] + 0.5, low[0] - 0.5]
    assert boxes(ax) == [(-1.5, 1.5, -2.5, 2.5)]
    assert ax.get_ylabel() == f"$u_1$ (cycles on {g1} points)"
    assert ax.get_xlabel() == f"$u_2$ (cycles on {g2} points)"
    assert image.colorbar.ax.get_ylabel() == "magnitude (dB, 0 dB the largest)"
    assert image.get_clim() == (-80, 0)
    dropped = 1 - 5 * 2 / (g1 * (g2 // 2 + 1))
    assert ax.get_title() == f"some\nband |u| <= 2, 1: {100 * dropped:.1f} % dropped"


def test_heat_map_with_dc_in_the_corner():
    x, grid = random(3, 6, 7, 2), (8, 9)
    spectrum = np.fft.rfft2(x, grid, axes=(1, 2))
    ax = plot.spectrum(
        spectrum, grid, dc="corner", band=bandjax.Modes(3, 1), reference=2.0, decibels=20, ax=axes()
    )
    (image,) = ax.images
    absolute = 10 * np.log10((np.abs(spectrum) ** 2).mean((0, -1)) / 4)
    expected = np.maximum(absolute, absolute.max() - 20)
    np.testing.assert_allclose(image.get_array(), expected, atol=1e-5)
    assert image.get_extent() == [-0.5, 4.5, 7.5, -0.5]
    assert boxes(ax) == [(-0.5, 1.5, -0.5, 3.5), (-0.5, 1.5, 4.5, 7.5)]
    told = [ax.yaxis.get_major_formatter()(k, 0) for k in range(8)]
    assert told == ["0", "1", "2", "3", "4", "−3", "−2", "−1"]
    assert image.colorbar.ax.get_ylabel() == "magnitude (dB, 0 dB = 2)"
    assert image.get_clim() == pytest.approx((absolute.max() - 20, absolute.max()), abs=1e-5)


def test_whole_band_and_one_row():
    x = random(1, 4, 4, 1)
    assert boxes(plot.spectrum(x, band=bandjax.Modes(2, 2), ax=axes())) == [(-2.5, 1.5, -2.5, 1.5)]
    flat = plot.spectrum(x, dc="corner", band=bandjax.Modes(0, 2), ax=axes())
    assert boxes(flat) == [(-0.5, 2.5, -0.5, 0.5)]


def test_box_of_a_spectrum_is_drawn_in_the_whole():
    x = random(2, 8, 8, 1)
    box = bandjax.spectral.analysis(jnp.asarray(x, jnp.float32), (8, 8), (1, 2))
    ax = plot.spectrum(box, (8, 8), ax=axes())
    drawn = np.asarray(ax.images[0].get_array())
    kept = np.zeros((8, 8), bool)
    kept[3:6, 2:7] = True
    assert np.all(drawn[~kept] == -80)
    # Beside the largest of what is left.
    expected = levels(x, (8, 8), whole=True)[kept]
    np.testing.assert_allclose(drawn[kept], expected - expected.max(), atol=1e-4)
    assert not ax.patches
    assert ax.get_title() == ""


@pytest.mark.parametrize("dc", ["centre", "corner"])
def test_line(dc):
    x = random(2, 9, 3)
    ax = plot.spectrum(x, (12,), dc=dc, band=bandjax.Modes(2), ax=axes())
    (line,) = ax.lines
    expected = range(-6, 6) if dc == "centre" else range(7)
    assert line.get_xdata().tolist() == list(expected)
    np.testing.assert_allclose(line.get_ydata(), levels(x, (12,), whole=dc == "centre"))
    (patch,) = ax.patches
    assert patch.get_bbox().intervalx.tolist() == [-2.5 if dc == "centre" else -0.5, 2.5]
    assert ax.get_xlabel() == "u (cycles on 12 points)"
    assert ax.get_ylabel() == "magnitude (dB, 0 dB the largest)"
    assert ax.get_title() == "band |u| <= 2: 57.1 % dropped"
    assert ax.get_ylim()[0] == pytest.approx(-80)


@pytest.mark.parametrize("volume", ["slice", "marginal"])
def test_volume(volume):
    x, band = random(2, 4, 5, 6, 1), bandjax.Modes(1, 2, 1)
    ax = plot.spectrum(x, band=band, volume=volume, ax=axes())
    power = (np.abs(np.fft.fftn(x, axes=(1, 2, 3))) ** 2).mean((0, -1))
    plane = np.fft.fftshift(power[0] if volume == "slice" else power.mean(0))
    expected = 10 * np.log10(plane / plane.max())
    np.testing.assert_allclose(ax.images[0].get_array(), expected, atol=1e-9)
    assert boxes(ax) == [(-1.5, 1.5, -2.5, 2.5)]
    first, second = ax.get_title().split("\n")
    assert first == f"band |u| <= 1, 2, 1: {100 * (1 - 30 / 80):.1f} % dropped"
    assert second == {"slice": "slice $u_1 = 0$", "marginal": "root mean square over $u_1$"}[volume]
    assert (ax.get_ylabel()[:5], ax.get_xlabel()[:5]) == ("$u_2$", "$u_3$")


def test_box_of_an_energy_band():
    t = np.arange(16) * 2 * np.pi / 16
    x = (2 * np.cos(t) + np.cos(3 * t))[None, :, None]  # energies 4 and 1
    for share, limit in ((0.75, 1), (0.85, 3), (1e-9, 1)):
        ax = plot.spectrum(x, band=bandjax.Energy(share), ax=axes())
        assert ax.get_title().startswith(f"band |u| <= {limit}:")
    bound = bandjax.Energy(0.85, at_most=bandjax.Modes(2))
    assert plot.spectrum(x, band=bound, ax=axes()).get_title().startswith("band |u| <= 2:")


def test_silence_is_drawn_at_the_end_of_the_range():
    ax = plot.spectrum(np.zeros((1, 4, 4, 1)), decibels=40, ax=axes())
    assert np.all(ax.images[0].get_array() == -40)


def test_own_figure_and_file(tmp_path):
    figures = plt.get_fignums()
    for name, draw in {
        "s.png": lambda path: plot.spectrum(random(1, 4, 4, 1), path=path),
        "c.png": lambda path: plot.compression({"a": 0.5}, path=path),
    }.items():
        assert draw(tmp_path / name).figure is not None
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == figures
    ax = plot.spectrum(random(1, 4, 1))
    assert plt.get_fignums() != figures
    plt.close(ax.figure)


# ------------------------------------------------------------------------------------ compression


class Record(SimpleNamespace):
    pass


@pytest.mark.parametrize(
    "layers",
    [
        [("convs.0", 0.5), (("convs", 1), np.float32(0.25)), ("head", None)],
        {"convs.0": 0.5, "convs.1": 0.25, "head": None},
        {"convs.0": Record(compression=0.5), "convs.1": Record(compression=0.25), "head": None},
        Record(
            layers=[
                Record(path="convs.0", compression=0.5),
                Record(path=("convs", 1), compression=0.25),
                Record(path="head", compression=None),
            ]
        ),
        [("convs.0", 0.5, "more"), ["convs.1", 0.25, 3], ("head", None)],
    ],
)
def test_compression(layers):
    ax = plot.compression(layers, ax=axes())
    assert [bar.get_width() for bar in ax.patches] == [50, 25, 0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["convs.0", "convs.1", "head"]
    assert [text.get_text() for text in ax.texts] == ["50.0 %", "25.0 %", "every frequency"]
    assert ax.get_xlabel() == "coefficients dropped (%)"
    assert ax.yaxis.get_inverted()


def test_compression_of_a_summary():
    shapes = bandjax.summary(Model(nnx.Rngs(0)), (2, 8, 8, 1))
    ax = plot.compression(shapes, ax=axes())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["convs.0", "convs.1"]
    dropped = 1 - 7 * 4 / (9 * 5)  # |u| <= 3 on a grid of 9 x 9
    assert [text.get_text() for text in ax.texts] == [f"{100 * dropped:.1f} %"] * 2


# ---------------------------------------------------------------------------------- layer spectra


class Model(nnx.Module):
    def __init__(self, rngs):
        conv = lambda i, o: bandjax.BandConv(  # noqa: E731
            i, o, (3, 3), band=bandjax.Compression(0.5), rngs=rngs
        )
        self.convs = nnx.List([conv(1, 2), conv(2, 3)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        first, second = self.convs
        return second(jnp.tanh(self.norm(first(x))))


def loss(model, x, y):
    out = model(x)
    return jnp.mean((out - y) ** 2), out


def test_layer_signals():
    model = Model(nnx.Rngs(0))
    x, y = (random(2, 8, 8, c).astype(np.float32) for c in (1, 3))
    before = jax.tree.map(np.array, nnx.state(model))
    found = plot.layer_signals(model, ("convs", 1), loss, x, y)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (before, nnx.state(model))), strict=True)
    )
    assert type(model.convs[1]) is bandjax.BandConv
    copy = nnx.clone(model)
    entered = np.asarray(jnp.tanh(copy.norm(copy.convs[0](x))))
    left = np.asarray(model.convs[1](entered))
    np.testing.assert_allclose(found.input, entered, atol=1e-5)
    np.testing.assert_allclose(found.output, left, atol=1e-5)
    np.testing.assert_allclose(found.gradient, 2 * (left - y) / y.size, atol=1e-6)
    assert np.array_equal(found.kernel, model.convs[1].kernel[...])
    assert (found.grid, found.modes, found.path) == ((9, 9), (3, 3), "convs.1")
    # Text, a layer of Flax without a geometry, a loss that is a scalar.
    dense = nnx.Sequential(nnx.Conv(1, 2, (3,), rngs=nnx.Rngs(0)))
    plain = plot.layer_signals(dense, "layers/0", lambda m, x: m(x).sum(), x[:, 0])
    assert plain.gradient.tolist() == np.ones((2, 8, 2)).tolist()
    assert plain.grid is None


def test_layer_signals_of_no_such_layer():
    model, x = Model(nnx.Rngs(0)), np.zeros((1, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=r"convs\.0, convs\.1; got 'norm'"):
        plot.layer_signals(model, "norm", loss, x, x)
    with pytest.raises(ValueError, match=r"must call layer 'convs\.0' once, got 0 calls"):
        plot.layer_signals(
            model, "convs.0", lambda m, x: jnp.sum(m.convs[1](x)), random(1, 8, 8, 2)
        )


def signals(*sizes, seed=0, grid=None, modes=None, gain=1.0):
    taps = (3,) * len(sizes)
    return plot.LayerSignals(
        random(2, *sizes, 2, seed=seed),
        random(*taps, 2, 4, seed=seed),
        gain * random(2, *sizes, 4, seed=seed + 1),
        random(3, 2, *(n // 2 for n in sizes), 4, seed=seed + 2),
        grid,
        modes,
        "convs.0",
    )


def test_layer_spectra_of_images():
    before = signals(8, 6, grid=(9, 7), modes=(2, 1))
    after = signals(8, 6, seed=5, grid=(9, 7), modes=(2, 1), gain=10)
    figure = plot.layer_spectra(before, after, decibels=300)
    panels = [ax for ax in figure.axes if ax.images]
    titles = [ax.get_title() for ax in panels]
    parts = ("input", "filter", "output", "gradient by the output")
    assert titles == [f"{part}, {when}" for when in ("before", "after") for part in parts]
    values = [
        (s.input, np.moveaxis(s.kernel, -1, 0), s.output, s.gradient.reshape(6, 4, 3, 4))
        for s in (before, after)
    ]
    power = [
        [
            np.fft.fftshift((np.abs(np.fft.fft2(v, (9, 7), axes=(1, 2))) ** 2).mean((0, -1)))
            for v in row
        ]
        for row in values
    ]
    largest = [max(p.max() for p in column) for column in zip(*power, strict=True)]
    for ax, p, scale in zip(panels, power[0] + power[1], 2 * largest, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), 10 * np.log10(p / scale), atol=1e-8)
        assert boxes(ax) == [(-1.5, 1.5, -2.5, 2.5)]
        assert ax.images[0].get_clim() == (-300, 0)
    bars = [ax.get_xlabel() for ax in figure.axes if not ax.images]
    assert bars == ["magnitude (dB)"] * 4
    assert figure.get_suptitle() == (
        "convs.0\n0 dB: the largest of each quantity, before and after; band |u| <= 2, 1 marked"
    )


def test_layer_spectra_of_series_and_volumes():
    before, after = signals(12, grid=(16,), modes=(3,)), signals(12, seed=3)
    file = io.BytesIO()
    figure = plot.layer_spectra(before, after, dc="corner", title="FCN", path=file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert len(figure.axes) == 4
    for ax in figure.axes:
        assert [line.get_xdata().tolist() for line in ax.lines] == [list(range(9))] * 2
        assert max(line.get_ydata().max() for line in ax.lines) == 0
        assert ax.get_ylabel() == "magnitude (dB)"
        assert len(ax.patches) == 1
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["before", "after", "band"]
    assert figure.get_suptitle().startswith("FCN\n")

    alone = plot.layer_spectra(signals(4, 5, 6, grid=(4, 5, 6), modes=(2, 2, 3)))
    plt.close(alone)
    panels = [ax for ax in alone.axes if ax.images]
    assert [ax.get_title() for ax in panels] == [
        "input",
        "filter",
        "output",
        "gradient by the output",
    ]
    assert panels[0].images[0].get_array().shape == (5, 6)
    assert panels[0].get_ylabel() == "$u_2$ (cycles on 5 points)"
    # With every frequency kept there is no band to mark.
    assert alone.get_suptitle() == "convs.0\n0 dB: the largest of each quantity; slice $u_1 = 0$"
    assert not panels[0].patches


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: plot.spectrum(x, dc="middle"), "dc must be 'corner' or 'centre', got 'middle'"),
        (lambda x: plot.spectrum(x, volume="sum"), "'slice' or 'marginal', got 'sum'"),
        (lambda x: plot.spectrum(x[0, 0]), r"1, 2 or 3 spatial axes, got shape \(4, 1\)"),
        (lambda x: plot.spectrum(x + 0j), "grid must be given with a spectrum"),
        (lambda x: plot.spectrum(x, (4,)), r"each of the 2 axes, got \(4,\)"),
        (lambda x: plot.spectrum(x, (4, 3)), r"more than the \(4, 3\) points"),
        (lambda x: plot.spectrum(x + 0j, (4, 4)), r"more than the \(4, 3\) frequencies"),
        (lambda x: plot.spectrum(x, band=bandjax.Modes(3, 1)), "no frequency above 2"),
        (lambda x: plot.spectrum(x, decibels=0), "decibels must be positive, got 0"),
        (lambda x: plot.spectrum(x, reference=0), "reference must be positive, got 0"),
        (lambda x: plot.compression([]), "at least one layer, got none"),
        (lambda x: plot.compression({"a": 1.5}), r"lie in \[0, 1\], got 1.5 for layer 'a'"),
        (lambda x: plot.layer_spectra(signals(4), dc="top"), "dc must be .* got 'top'"),
        (lambda x: plot.layer_spectra(signals(4), signals(4, 4)), r"as many spatial axes, .*1, 2"),
        (lambda x: plot.LayerSignals(x, x[0, 0], x, x), "kernel must have 1, 2 or 3"),
        (lambda x: plot.LayerSignals(x[0, 0], x, x, x), r"input must be .* got shape \(4, 1\)"),
    ],
)
def test_wrong_values(call, message):
    with pytest.raises(ValueError, match=message):
        call(random(1, 4, 4, 1))
    plt.close("all")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.spectrum(random(1, 4, 1), band=0.5), "band must be"),
        (lambda: plot.compression([0.5]), "pairs or records .* got 0.5"),
        (lambda: plot.compression(["ab"]), "pairs or records .* got 'ab'"),
        (lambda: plot.compression({"a": "half"}), "number or None, got 'half' for 'a'"),
    ],
)
def test_wrong_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'bandjax\[report\]', or matplotlib"):
        plot.compression({"a": 0.5})
