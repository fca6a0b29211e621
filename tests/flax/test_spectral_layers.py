"""Layers whose parameters are spectra."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bandjax
from bandjax._flax import spectral_layer


def layers(**options):
    return bandjax.BandConv(3, 4, (3, 3), rngs=nnx.Rngs(0), **options)


HALF = bandjax.Compression(0.5)
LAYERS = [
    {},
    {"band": HALF, "strides": 2, "use_bias": False},
    {"band": bandjax.Modes(3, 2), "padding": "CIRCULAR", "residual_dtype": jnp.bfloat16},
    {"kernel_dilation": 2, "dtype": jnp.bfloat16},
]


@pytest.mark.thin(4)
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_layers_begin_as_spatial_ones(options):
    x = jnp.asarray(np.random.default_rng(8).normal(size=(2, 10, 9, 3)), jnp.float32)
    bound = {"residual_dtype": 0.05, "dtype": 0.05}
    tolerance = next((bound[name] for name in bound if name in options), 1e-5)
    spatial = layers(**options)
    spectral = layers(**options, param_domain="spectral", spatial_shape=(10, 9))
    assert not hasattr(spectral, "kernel")
    y = spatial(x)
    assert spectral(x).dtype == y.dtype
    assert np.abs(spectral(x) - y).max() <= tolerance * np.abs(y).max()
    assert spectral.geometry(x.shape) == spatial.geometry(x.shape)
    assert spectral(x[0]).shape == y.shape[1:]
    # linen's initial kernel is that of its own spatial layer.
    options = dict(options)
    size = options.pop("strides", 1)
    dense = bandjax.linen.BandConv(4, (3, 3), size, **options)
    low = bandjax.linen.BandConv(4, (3, 3), size, **options, param_domain="spectral")
    variables = low.init(jax.random.key(0), x)
    assert set(variables["params"]) == {"kernel_spectrum"} | (
        {"bias"} if options.get("use_bias", True) else set()
    )
    wanted = dense.apply(dense.init(jax.random.key(0), x), x)
    assert np.abs(low.apply(variables, x) - wanted).max() <= tolerance * np.abs(wanted).max()


def test_layers_at_another_resolution():
    x = jnp.asarray(np.random.default_rng(9).normal(size=(1, 16, 16, 3)), jnp.float32)
    options = {"band": bandjax.Modes(3, 3), "padding": "CIRCULAR", "param_domain": "spectral"}
    layer = layers(**options, spatial_shape=(8, 8))
    geometry = layer.geometry(x.shape)
    assert (geometry.grid, geometry.modes) == ((16, 16), (3, 3))
    y = layer(x)
    wanted = bandjax.spectral_conv(
        x, layer.kernel_spectrum[...], (3, 3), kernel_grid=(8, 8), padding="CIRCULAR"
    )
    assert np.abs(y - wanted).max() <= 1e-5
    linen = bandjax.linen.BandConv(4, (3, 3), **options, spatial_shape=(8, 8))
    variables = {"params": {"kernel_spectrum": layer.kernel_spectrum[...], "bias": jnp.zeros(4)}}
    assert np.abs(linen.apply(variables, x) - wanted).max() <= 1e-5


@pytest.mark.full
def test_padded_layers_at_another_resolution():
    """A bump, sampled coarse and fine: the circles keep their proportion, padding and all."""

    def sampled(n):
        t = np.arange(n) / n
        bump = np.exp(-((t[:, None] - 0.4) ** 2 + (t - 0.55) ** 2) / 0.005)
        return jnp.asarray(np.stack([bump, bump * t, bump * t[:, None]], -1)[None], jnp.float32)

    options = {"param_domain": "spectral", "spatial_shape": (32, 32)}
    layer = layers(**options)
    grids = [layer.geometry(sampled(n).shape).grid for n in (16, 32, 48, 64)]
    assert grids == [(17, 17), (33, 33), (50, 50), (66, 66)]
    y = layer(sampled(32))
    assert np.abs(layer(sampled(64))[:, ::2, ::2] - y).max() <= 1e-5 * np.abs(y).max()
    linen = bandjax.linen.BandConv(4, (3, 3), **options)
    variables = {"params": {"kernel_spectrum": layer.kernel_spectrum[...], "bias": jnp.zeros(4)}}
    assert np.abs(linen.apply(variables, sampled(64))[:, ::2, ::2] - y).max() <= 1e-5
    assert linen.geometry((1, 64, 64, 3)) == layer.geometry((1, 64, 64, 3))
    # A grid that is set is another choice: the same periods a point.
    fixed = layers(**options, grid=80)
    assert fixed.geometry((1, 64, 64, 3)).grid == (80, 80)
    more = jnp.pad(sampled(32), ((0, 0), (0, 32), (0, 32), (0, 0)))
    assert np.abs(fixed(more)[:, :32, :32] - fixed(sampled(32))).max() <= 1e-5


def test_a_sharding_names_the_axes_of_the_spectrum():
    names = (None, None, None, "features")
    mesh = jax.make_mesh((2,), ("features",), axis_types=(jax.sharding.AxisType.Auto,))
    options = {"param_domain": "spectral", "spatial_shape": (8, 8), "use_bias": False}
    for spec in (names, P(*names)):
        with jax.set_mesh(mesh):
            layer = layers(**options, kernel_metadata={"out_sharding": spec})
            spectrum = layer.kernel_spectrum
            assert tuple(spectrum.get_metadata()["out_sharding"]) == (None, *names)
            assert spectrum[...].sharding.spec == P(None, *names)
            bandjax.nnx.to_spatial(layer)
            assert layer.kernel.get_metadata()["out_sharding"] == spec
            assert layer.kernel[...].sharding.spec == P(*names)
    spec = NamedSharding(mesh, P(*names))
    there = spectral_layer.metadata_with_planes({"out_sharding": spec, "a": 1}, planes=True)
    assert there == {"out_sharding": NamedSharding(mesh, P(None, *names)), "a": 1}
    init = flax.linen.with_partitioning(flax.linen.initializers.lecun_normal(), names)
    boxed = bandjax.linen.BandConv(4, (3, 3), param_domain="spectral", kernel_init=init)
    plain = bandjax.linen.BandConv(4, (3, 3), param_domain="spectral")
    x = jnp.ones((1, 8, 8, 3))
    variables = boxed.init(jax.random.key(0), x)
    assert variables["params"]["kernel_spectrum"].names == (None, *names)
    wanted = plain.apply(plain.init(jax.random.key(0), x), x)
    assert np.abs(boxed.apply(variables, x) - wanted).max() <= 1e-6


def test_damped_high_frequencies():
    options = {"param_domain": "spectral", "spatial_shape": (8, 8)}
    plain, damped = layers(**options), layers(**options, spectral_decay=2)
    u = np.array([0, 1, 2, 3, 4, -4, -3, -2, -1])
    expected = (1 + np.hypot(u[:, None], np.arange(5)[None])) ** -2.0
    wanted = plain.kernel_spectrum[...] * expected[..., None, None].astype(np.float32)[None]
    assert np.allclose(damped.kernel_spectrum[...], wanted, atol=1e-6)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List(
            [bandjax.BandConv(c, 4, (3, 3), s, band=HALF, rngs=rngs) for c, s in ((3, 1), (4, 2))]
        )
        self.dense = nnx.Conv(4, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.dense(x)


@pytest.mark.full
def test_models_there_and_back():
    x = jnp.asarray(np.random.default_rng(10).normal(size=(2, 12, 11, 3)), jnp.float32)
    model = Net(nnx.Rngs(0))
    y, kernels = model(x), [conv.kernel[...] for conv in model.convs]
    assert bandjax.nnx.to_spectral(model, x) == ["convs.0", "convs.1"]
    assert [conv.kernel_spectrum.shape[-2:] for conv in model.convs] == [(3, 4), (4, 4)]
    assert np.abs(model(x) - y).max() <= 1e-5
    with pytest.raises(ValueError, match=r"layer 'convs.0' are spectral already"):
        bandjax.nnx.to_spectral(model, x)

    @nnx.jit
    def step(model, x):
        return nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)

    gradient = step(model, x)
    assert np.abs(gradient.convs[0].kernel_spectrum[...]).max() > 0
    assert bandjax.nnx.to_spatial(model) == ["convs.0", "convs.1"]
    assert bandjax.nnx.to_spatial(model) == []
    for conv, kernel in zip(model.convs, kernels, strict=True):
        assert np.abs(conv.kernel[...] - kernel).max() <= 1e-5
    assert np.abs(model(x) - y).max() <= 1e-5
    model.convs[0].band = bandjax.Energy(0.9)
    with pytest.raises(ValueError, match="a band of Energy"):
        bandjax.nnx.to_spectral(model, x)
    assert model.convs[0].param_domain == "spatial"

    class Unused(Net):
        def __call__(self, x):
            return self.convs[0](x)

    with pytest.raises(ValueError, match=r"'convs.1' is not called"):
        bandjax.nnx.to_spectral(Unused(nnx.Rngs(0)), x)


@pytest.mark.parametrize(
    ("kind", "part", "options"),
    [
        (ValueError, "param_domain must be one of", {"param_domain": "fourier"}),
        (ValueError, "spatial_shape", {"spatial_shape": None}),
        (ValueError, "spatial_shape", {"param_domain": "spatial"}),
        (ValueError, "one size for each of the 2", {"spatial_shape": (8,)}),
        (ValueError, "band of Energy", {"band": bandjax.Energy(0.9)}),
        (ValueError, "mask does not go", {"mask": jnp.ones((3, 3, 3, 4))}),
        (ValueError, "recompute_filter does not go", {"recompute_filter": False}),
        (ValueError, "'jax' does not go with param_domain", {"implementation": "jax"}),
        (ValueError, "preferred_element_type", {"preferred_element_type": jnp.float32}),
        (ValueError, "REFLECT", {"padding": "REFLECT"}),
        (ValueError, "spectral_decay must be >= 0", {"spectral_decay": -1}),
        (TypeError, "spectral_decay must be a real", {"spectral_decay": "2"}),
        (
            ValueError,
            "spectral_decay is for",
            {"spectral_decay": 1, "param_domain": "spatial", "spatial_shape": None},
        ),
    ],
)
def test_wrong_options_of_layers(kind, part, options):
    with pytest.raises(kind, match=part):
        layers(**{"param_domain": "spectral", "spatial_shape": (8, 8)} | options)


def test_linen_parameters_of_another_resolution():
    layer = bandjax.linen.BandConv(4, (3, 3), band=HALF, param_domain="spectral")
    variables = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    wrong = bandjax.linen.BandConv(4, (3, 3), param_domain="spectral", spatial_shape=(8,))
    with pytest.raises(ValueError, match="one size for each of the 2 spatial axes"):
        wrong.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"has the box .* set spatial_shape to the one"):
        layer.apply(variables, jnp.ones((1, 16, 16, 3)))
