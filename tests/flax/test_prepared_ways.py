"""How prepared layers are computed: every way is one operator; types, files and errors."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from choices import thinned
from flax import nnx
from rich.console import Console

import bandjax
from bandjax import Compression, Energy, Modes
from bandjax._flax import prepared as ways
from bandjax._flax.fold import Statistics

HALF = Compression(0.5)
NUMBERS = np.random.default_rng(3)
X = NUMBERS.normal(size=(2, 9, 8, 4)).astype(np.float32)

LAYERS = [
    {},
    {"strides": (2, 1), "padding": ((1, 0), (2, 1)), "modes": (3, 2)},
    {"strides": (2, 2), "groups": 2, "modes": (2, 4)},
    {"padding": "CIRCULAR", "taps": (2, 4), "modes": (2, 1)},
    {"input_dilation": (2, 1), "kernel_dilation": (1, 2), "padding": ((1, 2), (2, 2))},
]


@pytest.mark.thin(8)
@pytest.mark.parametrize("domain", ["spatial", "spectral"])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_all_ways_are_one_layer(options, domain, x64):
    taps, modes = options.get("taps", (3, 3)), options.get("modes")
    groups = options.get("groups", 1)
    one = (1, 1)
    geometry = {"strides": one, "padding": "SAME", "input_dilation": one, "kernel_dilation": one}
    geometry |= {name: options[name] for name in geometry if name in options}
    band = None if modes is None else Modes(*modes)
    layer = bandjax.BandConv(
        4,
        6,
        taps,
        band=band,
        feature_group_count=groups,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
        **geometry,
    )
    kernel = NUMBERS.normal(size=(*taps, 4 // groups, 6))
    layer.kernel[...], layer.bias[...] = jnp.asarray(kernel), jnp.asarray(NUMBERS.normal(size=6))
    x = jnp.asarray(X, jnp.float64)
    wanted = oracle.convolve(X, kernel, oracle.axes((9, 8), taps, modes=modes, **geometry), groups)
    wanted = wanted + np.asarray(layer.bias[...])
    if domain == "spectral":
        bandjax.nnx.to_spectral(layer, x)
    filter_ = (layer.kernel if domain == "spatial" else layer.kernel_spectrum)[...]
    whole = ways.Prepared.of(layer, filter_, [(9, 8)], jnp.float64)
    filter_ = ways.own_kernel(layer, filter_, [(9, 8)])
    found = []
    for name, way in unpruned(whole, x.shape, filter_.shape).items():
        got = way(x, whole.filter(way, filter_, x.shape, None), layer.bias[...])
        assert oracle.relative_gap(got, wanted) < 1e-12, name
        found.append(name)
    assert {name.partition(",")[0] for name in found} >= {"spectrum"}
    assert ("taps, direct" in found) == (domain == "spatial")


@pytest.mark.thin(3)
@pytest.mark.parametrize("examples", [2, 15])
@pytest.mark.parametrize(
    ("size", "modes"), [((9,), (4,)), ((9, 8), (4, 3)), ((8, 6), (4, 3)), ((5, 4, 7), (2, 2, 3))]
)
def test_a_spectrum_of_no_real_filter(size, modes, examples, x64):
    rank = len(size)
    options = {"band": Modes(*modes), "param_domain": "spectral", "spatial_shape": size}
    options |= {"implementation": "xla", "padding": "CIRCULAR", "param_dtype": jnp.float64}
    layer = bandjax.BandConv(4, 20, (3,) * rank, rngs=nnx.Rngs(0), **options)
    spectrum = NUMBERS.normal(size=layer.kernel_spectrum.shape)
    layer.kernel_spectrum[...] = jnp.asarray(spectrum)
    x = jnp.asarray(NUMBERS.normal(size=(examples, *size, 4)))
    wanted, back = jax.vjp(layer, x)
    (gradient,) = back(wanted)
    layer.implementation = None
    whole = ways.Prepared.of(layer, layer.kernel_spectrum[...], [size], jnp.float64)
    for name, way in unpruned(whole, x.shape, spectrum.shape).items():
        filter_ = whole.filter(way, layer.kernel_spectrum[...], x.shape, None)
        found, back = jax.vjp(lambda x, way=way, w=filter_: way(x, w, layer.bias[...]), x)
        assert oracle.relative_gap(found, wanted) < 1e-12, name
        assert oracle.relative_gap(back(wanted)[0], gradient) < 1e-12, name


def unpruned(layer, *shapes):
    """All ways, those too that are estimated to be slow."""
    before = ways._HOPELESS
    ways._HOPELESS = float("inf")
    try:
        return layer.ways(*shapes)
    finally:
        ways._HOPELESS = before


def model_of(band=HALF, *, seed=5, **options):
    layers = [
        bandjax.BandConv(4, 8, (3, 3), band=band, rngs=nnx.Rngs(seed), **options),
        nnx.BatchNorm(8, rngs=nnx.Rngs(0)),
        nnx.relu,
        bandjax.BandConv(8, 5, (3, 3), 2, band=band, rngs=nnx.Rngs(seed), **options),
    ]
    model = nnx.Sequential(*layers)
    model.layers[1].mean[...] = jnp.linspace(-1, 1, 8)
    model.layers[1].var[...] = jnp.linspace(0.5, 2, 8)
    return model


def always(way):
    """Has every layer computed in the way whose name begins so."""

    def timed(found, *_):
        return {name: float(not name.startswith(way)) for name in found}

    return timed


@pytest.mark.parametrize("way", thinned(["spectrum", "taps, direct", "taps, dft"]))
def test_the_fastest_way_is_taken(monkeypatch, way):
    monkeypatch.setattr(ways, "timed", always(way))
    monkeypatch.setattr(ways, "_HOPELESS", float("inf"))
    model = model_of()
    prepared, report = bandjax.nnx.prepare(model, X)
    model.eval()
    assert oracle.relative_gap(prepared(X), np.asarray(model(X))) < 1e-5
    for path, layer in report.layers.items():
        assert layer.way.startswith(way)
        assert min(layer.seconds, key=layer.seconds.get) == layer.way
        module = prepared.layers[int(path.rpartition(".")[2])]
        kept = module.kernel if way.startswith("taps") else module.kernel_spectrum
        assert layer.filter_bytes == kept[...].nbytes
        assert hasattr(module, "kernel") != hasattr(module, "kernel_spectrum")


def test_ways_are_measured():
    model = model_of()
    _, report = bandjax.nnx.prepare(model, X)
    assert all(len(layer.seconds) > 1 for layer in report.layers.values())
    assert all(0 < t < 1 for layer in report.layers.values() for t in layer.seconds.values())
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(report.table())
    table = console.export_text()
    for text in (table, str(report)):
        assert "2 prepared, 0 left alone; batch norms: 1 folded, 0 not" in text
        for part in ("layers.0", "with layers.1", "done by layers.0", " ms"):
            assert part in text


@pytest.mark.full
@pytest.mark.parametrize("dtype", [jnp.bfloat16, None])
def test_spectra_in_half_the_memory(monkeypatch, dtype):
    monkeypatch.setattr(ways, "timed", always("spectrum"))
    model = model_of()
    prepared, _ = bandjax.nnx.prepare(model, X, dtype=dtype)
    model.eval()
    kept = prepared.layers[0].kernel_spectrum[...]
    assert kept.dtype == (dtype or jnp.float32)
    for x in (X, np.tile(X, (7, 1, 1, 1))):  # few examples, and many
        gap = oracle.relative_gap(prepared(x), np.asarray(model(x)))
        assert gap < 1e-5 if dtype is None else 1e-4 < gap < 1e-2
        assert prepared(x).dtype == jnp.float32


@pytest.mark.thin(9)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("examples", [1, 12, 13])
def test_kernels_read_spectra_in_bfloat16(groups, examples):
    """To float32's rounding they are those of the same numbers in float32."""
    layer = bandjax.BandConv(
        4, 4 if groups == 4 else 22, (3, 3), band=HALF, feature_group_count=groups, rngs=nnx.Rngs(0)
    )
    x = jnp.asarray(NUMBERS.normal(size=(examples, 9, 8, 4)), jnp.float32)
    whole = ways.Prepared.of(layer, layer.kernel, [(9, 8)], jnp.float32)
    found = unpruned(whole, x.shape, layer.kernel.shape)
    for way in (way for way in found.values() if way.domain == "prepared"):
        half = whole.filter(way, layer.kernel[...], x.shape, jnp.bfloat16)
        got, wanted = (way(x, kernel, None) for kernel in (half, half.astype(jnp.float32)))
        assert half.dtype == jnp.bfloat16
        assert oracle.relative_gap(got, np.asarray(wanted)) < 1e-5
    filters = half, half.astype(jnp.float32)
    ours, theirs = (jax.grad(lambda w: (way(x, w, None) ** 2).sum())(w) for w in filters)
    assert ours.dtype == jnp.bfloat16
    assert oracle.relative_gap(ours, np.asarray(theirs)) < 1e-2


@pytest.mark.parametrize("way", ["spectrum", "taps"])
def test_layers_that_compute_in_bfloat16(monkeypatch, way):
    monkeypatch.setattr(ways, "timed", always(way))
    model = model_of(dtype=jnp.bfloat16, residual_dtype=jnp.bfloat16)
    model.layers[1].dtype = jnp.bfloat16
    prepared, _ = bandjax.nnx.prepare(model, X)
    exact = model_of()
    exact.eval()
    y = prepared(X)
    assert y.dtype == jnp.bfloat16
    assert oracle.relative_gap(y, np.asarray(exact(X))) < 0.02


def test_the_types_of_parameters_stay():
    model = model_of(param_dtype=jnp.bfloat16, dtype=jnp.float32)
    prepared, _ = bandjax.nnx.prepare(model, X, measure=False)
    assert prepared.layers[0].bias[...].dtype == jnp.bfloat16


@pytest.mark.parametrize("way", thinned(["spectrum", "taps"]))
def test_a_prepared_model_in_a_file(monkeypatch, way):
    monkeypatch.setattr(ways, "timed", always(way))
    prepared, _ = bandjax.nnx.prepare(model_of(), X)
    graph, state = nnx.split(prepared)
    parameters, tree = jax.tree.flatten(state)

    @jax.jit
    def predict(parameters, x):
        return nnx.merge(graph, jax.tree.unflatten(tree, parameters))(x)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), parameters)
    images = jax.ShapeDtypeStruct((batch, *X.shape[1:]), jnp.float32)
    names = map(jax.export.DisabledSafetyCheck.custom_call, bandjax.NATIVE_TARGETS)
    exported = jax.export.export(predict, disabled_checks=list(names))(shapes, images)
    serve = jax.export.deserialize(exported.serialize()).call
    for x in (X, X[:1]):
        assert oracle.relative_gap(serve(parameters, x), np.asarray(prepared(x))) < 1e-5


@pytest.mark.parametrize("way", thinned(["taps", "spectrum"]))
def test_transformations(monkeypatch, way):
    monkeypatch.setattr(ways, "timed", always(way))
    model = model_of()
    prepared, _ = bandjax.nnx.prepare(model, X)
    model.eval()
    x = jnp.asarray(X)
    assert oracle.relative_gap(jax.vmap(prepared)(x[:, None])[:, 0], np.asarray(model(x))) < 1e-5
    assert oracle.relative_gap(prepared(x[0]), np.asarray(model(x)[0])) < 1e-5
    wanted, got = (jax.grad(lambda x, m=m: (m(x) ** 2).sum())(x) for m in (model, prepared))
    assert oracle.relative_gap(got, np.asarray(wanted)) < 1e-5


def test_pickles_clones_and_prepares_again():
    prepared, _ = bandjax.nnx.prepare(model_of(), X, measure=False)
    again = nnx.clone(prepared)
    assert np.array_equal(again(X), prepared(X))
    with pytest.raises(ValueError, match="is prepared for inference"):
        bandjax.nnx.to_spatial(prepared)
    with pytest.warns(UserWarning, match="it is prepared for inference"):
        bandjax.nnx.band_limit(prepared, None)
    twice, report = bandjax.nnx.prepare(prepared, X, measure=False)
    assert set(report.left.values()) == {"it is prepared already"}
    assert np.array_equal(twice(X), prepared(X))
    geometry = prepared.layers[0].geometry(X.shape)
    assert geometry == model_of().layers[0].geometry(X.shape)


def test_what_is_left_as_it_is():
    model = nnx.Sequential(
        bandjax.BandConv(4, 4, (3, 3), band=Energy(0.8), rngs=nnx.Rngs(0)),
        nnx.Conv(4, 4, (3, 3), preferred_element_type=jnp.float32, rngs=nnx.Rngs(0)),
        nnx.ConvTranspose(4, 4, (3, 3), rngs=nnx.Rngs(0)),
        nnx.Conv(4, 4, (3, 3), conv_general_dilated=own_convolution, rngs=nnx.Rngs(0)),
        bandjax.BandConv(4, 4, (3, 3), band=HALF, implementation="xla", rngs=nnx.Rngs(0)),
        bandjax.BandConv(4, 4, (3, 3), implementation="jax", rngs=nnx.Rngs(0)),
    )
    prepared, report = bandjax.nnx.prepare(model, X, measure=False)
    assert list(report.layers) == ["layers.0", "layers.4", "layers.5"]
    assert report.layers["layers.0"].way.startswith("taps")
    assert "native" not in report.layers["layers.4"].way
    assert {path: reason.split(":")[0] for path, reason in report.left.items()} == {
        "layers.1": "it has a preferred_element_type",
        "layers.2": "a transposed convolution",
        "layers.3": "it has a conv_general_dilated of its own",
    }
    assert "layers.3: left alone: it has a conv_general_dilated" in str(report)
    assert oracle.relative_gap(prepared(X), np.asarray(model(X))) < 1e-5


def own_convolution(*arguments, **options):
    options.pop("out_sharding")
    return jax.lax.conv_general_dilated(*arguments, **options)


def test_complex_and_stacked_layers_are_left_alone():
    layer = nnx.Conv(4, 4, (3, 3), param_dtype=jnp.complex64, rngs=nnx.Rngs(0))
    _, report = bandjax.nnx.prepare(layer, jnp.asarray(X, jnp.complex64), measure=False)
    assert "complex64" in report.left[""]

    model = Stacked()
    prepared, report = bandjax.nnx.prepare(model, X, measure=False)
    assert "stacked" in report.left["layers"]
    assert np.array_equal(prepared(X), model(X))


@nnx.vmap(in_axes=0, out_axes=0)
def stacked(key):
    return nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(key))


class Stacked(nnx.Module):
    """Layers under ``scan``."""

    def __init__(self):
        self.first = nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0))
        self.layers = stacked(jax.random.split(jax.random.key(1), 2))

    def __call__(self, x):
        scan = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return scan(self.layers, self.first(x))


def test_statistics_in_float64(x64):
    mean, var, scale, bias = np.random.default_rng(0).uniform(0.5, 2, (4, 3))
    kernel, x = np.random.default_rng(1).normal(size=(5, 3)), np.arange(5.0)
    y = (x @ kernel + bias - mean) / np.sqrt(var + 1e-3) * scale + bias
    folded, shift = Statistics(mean, var, scale, bias, 1e-3).into(jnp.asarray(kernel), bias)
    assert np.abs(x @ np.asarray(folded) + shift - y).max() < 1e-13


# ----------------------------------------------------------------------------------------- errors


def test_errors():
    model = model_of()
    for wrong, error, told in (
        (lambda: bandjax.nnx.prepare(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), X), ValueError, "no conv"),
        (lambda: bandjax.nnx.prepare(model.layers[0].kernel, X), TypeError, "linen.prepare"),
        (lambda: bandjax.nnx.prepare(model, X, measure=3), TypeError, "measure must be True"),
        (lambda: bandjax.nnx.prepare(model, X, dtype="none"), TypeError, "dtype must be a type"),
        (lambda: bandjax.nnx.prepare(model, X, dtype=jnp.int8), ValueError, "bfloat16, float32 or"),
    ):
        with pytest.raises(error, match=told):
            wrong()
    model.unused = nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="layer unused is not called with these inputs"):
        bandjax.nnx.prepare(model, X)


def test_errors_of_a_prepared_model():
    prepared, _ = bandjax.nnx.prepare(model_of(), X, measure=False)
    with pytest.raises(ValueError, match=r"prepared for inputs of size \(9, 8\), got \(8, 8\)"):
        prepared(X[:, 1:])
    prepared.train()
    with pytest.raises(ValueError, match="a prepared model is for inference"):
        prepared(X)
