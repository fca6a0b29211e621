"""What the forward pass keeps for the backward pass."""

from __future__ import annotations

import math
import re

import configs
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import METHODS, band_of, chosen, convolution
from choices import crossed, thinned
from flax import nnx
from residuals import data, printed, residuals, without_kernel

import bandjax

pytestmark = pytest.mark.thin(5)

NAME = "bandjax_spectrum"
HALVES = [None, bandjax.Compression(0.5)]
RESIDUAL_DTYPES = [None, jnp.bfloat16, jnp.int8]
BANDS = [None, bandjax.Compression(0.5), bandjax.Compression(0.75), bandjax.Modes(4, 9)]


@pytest.mark.parametrize(("band", "method"), crossed(BANDS, METHODS, strength=1))
def test_they_are_the_spectrum_and_the_kernel(band, method):
    x, kernel = data()

    def f(x, kernel):
        return bandjax.band_conv(x, kernel, band, **chosen(method))

    rest = without_kernel(residuals(f, x, kernel), kernel)
    if band is None:
        assert len(rest) == 1
        assert np.array_equal(rest[0], x)
    else:
        geometry = bandjax.conv_geometry(x.shape, kernel.shape, band)
        assert all(leaf.dtype == x.dtype for leaf in rest)
        reals = sum(leaf.size for leaf in rest)
        # A real and an imaginary part for each kept coefficient; a purely real one may be halved.
        assert reals <= 2 * geometry.kept * 2 * 6
        assert reals >= np.prod([2 * u + 1 for u in geometry.modes]) * 2 * 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("band", BANDS, ids=str)
def test_every_one_is_an_argument_or_bears_the_name(band, method):
    x, kernel = data()

    def f(x, kernel):
        return bandjax.band_conv(x, kernel, band, **chosen(method))

    lines = printed(f, x, kernel)
    arguments = [line for line in lines if "from the argument" in line]
    named = [line for line in lines if NAME in line]
    assert [line for line in lines if line not in arguments + named] == []
    assert any("kernel" in line for line in arguments)
    # The input is kept in place of a spectrum where nothing is dropped, and nowhere else.
    assert any("argument x" in line for line in arguments) <= (band is None)
    assert (band is None) or named


@pytest.mark.parametrize(
    ("dtype", "share", "method"),
    crossed(
        [
            pytest.param(None, 0.60),
            pytest.param(jnp.bfloat16, 0.30),
            pytest.param(jnp.int8, 0.25 * 0.60 * 1.05),
        ],
        METHODS,
        strength=1,
    ),
)
def test_bytes_of_a_layer_at_fifty_percent(method, dtype, share):
    x, kernel = data((16, 32, 32, 6))

    def f(x, kernel):
        band = bandjax.Compression(0.5)
        return bandjax.band_conv(x, kernel, band, **chosen(method), residual_dtype=dtype)

    kept = sum(leaf.nbytes for leaf in without_kernel(residuals(f, x, kernel), kernel))
    assert 0.4 * share * x.nbytes <= kept <= share * x.nbytes


@pytest.mark.parametrize("index", thinned(range(24), 12))
def test_never_more_than_the_input(index):
    config = configs.random_config(6, index, banded=True)
    x, kernel = (array.astype(np.float32) for array in config.arrays())
    f = convolution(config, band_of(config), "auto")
    axes = config.geometry
    spectrum = 2 * oracle.kept([a.grid for a in axes], [a.modes for a in axes])
    spectrum *= math.prod(config.batch) * config.channels
    reals = sum(leaf.size for leaf in residuals(f, x, kernel))
    assert reals <= min(spectrum, x.size) + kernel.size, config


@pytest.mark.parametrize(("jitted", "method"), crossed([True, False], METHODS, strength=1))
def test_backward_does_not_need_the_input(method, jitted):
    # The gradient of the kernel through the saved values alone, after the input is gone.
    x, kernel = data((1, 9, 7, 2), 3)

    def f(x, kernel):
        return bandjax.band_conv(x, kernel, bandjax.Modes(2, 2), **chosen(method))

    y, back = jax.vjp(jax.jit(f) if jitted else f, jnp.asarray(x), kernel)
    assert not any(leaf.shape == x.shape for leaf in jax.tree.leaves(back))
    _, dkernel = back(y)
    geometry = oracle.axes(
        (9, 7),
        (3, 3),
        strides=(1, 1),
        padding="SAME",
        input_dilation=(1, 1),
        kernel_dilation=(1, 1),
        modes=(2, 2),
    )
    by_kernel = oracle.kernel_jacobian(x, kernel.shape, geometry)
    expected = np.tensordot(np.asarray(y, np.float64), by_kernel, ((0, 1, 2, 3),) * 2)
    assert oracle.relative_gap(dkernel, expected) <= 1e-5


# ------------------------------------------------------------------------------------- the filter


@pytest.mark.parametrize(
    ("band", "method"),
    crossed([None, bandjax.Compression(0.5)], ["fft", "dft", "direct"], strength=1),
)
def test_the_filter_s_spectrum_is_kept_where_asked_for(band, method):
    x, kernel = data((2, 12, 9, 4), 5)
    options = chosen(method)

    def f(x, kernel, *, again):
        return bandjax.band_conv(x, kernel, band, **options, recompute_filter=again)

    def run(again):
        y, back = jax.vjp(lambda *args: f(*args, again=again), x, kernel)
        return y, *back(jnp.sin(y)), jax.tree.leaves(back)

    *expected, derived = jax.jit(lambda: run(True))()
    *actual, kept = jax.jit(lambda: run(False))()
    for value, wanted in zip(actual, expected, strict=True):
        assert oracle.relative_gap(value, wanted) <= 1e-5
    geometry = bandjax.conv_geometry(x.shape, kernel.shape, band)
    reals = sum(leaf.size for leaf in kept) - sum(leaf.size for leaf in derived)
    parts = 0 if method == "direct" else 2 * geometry.kept * 4 * 5
    # The product may hold of the two columns that are real on their own one half.
    assert 0.8 * parts <= reals <= parts
    if method != "direct":
        lines = printed(lambda x, kernel: f(x, kernel, again=False), x, kernel)
        assert any("bandjax_filter_spectrum" in line for line in lines)


@pytest.mark.parametrize(
    "options", [{"residual_dtype": jnp.int8}, {"recompute_filter": False}], ids=str
)
def test_layers_pass_on_what_they_are_to_keep(options):
    x, kernel = data((2, 12, 9, 4), 5)
    options = {"band": bandjax.Compression(0.5), "method": "fft", **options}
    layer = bandjax.nnx.BandConv(4, 5, (3, 3), use_bias=False, **options, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(layer)
    linen = bandjax.linen.BandConv(5, (3, 3), use_bias=False, **options)
    hook = bandjax.conv_general_dilated(**options)

    def kept(f):
        leaves = residuals(f, x, kernel)
        return sorted((leaf.shape, str(leaf.dtype)) for leaf in leaves)

    wanted = kept(lambda x, kernel: bandjax.band_conv(x, kernel, **options))
    state = nnx.state(layer)
    assert wanted == kept(lambda x, w: linen.apply({"params": {"kernel": w}}, x))
    assert wanted == kept(
        lambda x, w: nnx.merge(graph, jax.tree.map(lambda _: w, state))(jnp.asarray(x))
    )
    numbers = ("NHWC", "HWIO", "NHWC")
    assert wanted == kept(lambda x, w: hook(x, w, (1, 1), "SAME", dimension_numbers=numbers))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["fft", "dft"])
def test_second_derivatives_with_the_filter_kept(method):
    x, kernel = data((1, 6, 5, 2), 2, dtype=np.float64)

    def slope(again):
        def loss(x, kernel):
            y = bandjax.band_conv(
                x, kernel, bandjax.Modes(2, 2), **chosen(method), recompute_filter=again
            )
            return jnp.sum(y**3)

        return jax.grad(lambda *args: jnp.sum(jax.grad(loss, 1)(*args) ** 2), (0, 1))

    both = jax.jit(lambda *args: (slope(True)(*args), slope(False)(*args)))(x, kernel)
    for wanted, actual in zip(*both, strict=True):
        assert oracle.relative_gap(actual, wanted) <= 1e-12


# ------------------------------------------------------------------------------------ checkpoints


def block(band, method, residual_dtype=None):
    """A convolution between two nonlinearities that leave a trace in the gradient's program.

    The derivative of ``cos`` is a ``sin``: a ``cos`` in a backward pass is the input of the
    convolution computed once more.
    """

    def f(x, kernel):
        y = bandjax.band_conv(
            jnp.cos(x), kernel, band, **chosen(method), residual_dtype=residual_dtype
        )
        return jnp.tanh(y)

    return f


def primitives(jaxpr) -> list[str]:
    """The names of all primitives, with those inside calls."""
    names = []
    for equation in jaxpr.eqns:
        names.append(equation.primitive.name)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                program = getattr(inner, "jaxpr", inner)
                if hasattr(program, "eqns"):
                    names += primitives(program)
    return names


def recomputed(f, *args) -> list[str]:
    """What the backward pass of a checkpointed function does."""
    grad = jax.grad(lambda *args: jnp.sum(f(*args) ** 2), argnums=(0, 1))
    jaxpr = jax.make_jaxpr(grad)(*args).jaxpr
    remat = [e for e in jaxpr.eqns if e.primitive.name in ("remat2", "checkpoint", "remat")]
    assert len(remat) == 1
    return primitives(remat[0].params["jaxpr"])


@pytest.mark.parametrize(
    ("band", "residual_dtype", "method"), crossed(HALVES, RESIDUAL_DTYPES, METHODS)
)
def test_a_checkpoint_policy_keeps_the_spectrum_alone(band, residual_dtype, method):
    x, kernel = data((2, 16, 16, 4))
    f = block(band, method, residual_dtype)
    by_name = jax.checkpoint_policies.save_only_these_names(NAME)
    kept = jax.checkpoint(f, policy=by_name)
    lines = printed(kept, x, kernel)
    assert [n for n in lines if NAME not in n and "from the argument" not in n] == []
    named = [line for line in lines if NAME in line]
    assert named
    scales = 0
    if residual_dtype == jnp.int8:
        scales = 2
        assert [line.startswith("i8") for line in named].count(False) == scales
    elif residual_dtype is not None:
        assert all(line.startswith("bf16") for line in named)
    sizes = sorted(
        math.prod(map(int, re.match(r"\w+\[([\d,]*)\]", line)[1].split(","))) for line in named
    )
    reals = sum(sizes[scales:])
    geometry = bandjax.conv_geometry(x.shape, kernel.shape, band)
    assert reals <= min(x.size, 2 * geometry.kept * 2 * 4)


@pytest.mark.parametrize(
    ("band", "residual_dtype", "method"), crossed(HALVES, RESIDUAL_DTYPES, METHODS)
)
def test_a_kept_spectrum_is_not_analysed_again(band, residual_dtype, method):
    x, kernel = data((2, 16, 16, 4))
    f = block(band, method, residual_dtype)
    by_name = jax.checkpoint_policies.save_only_these_names(NAME)
    nothing = jax.checkpoint_policies.nothing_saveable
    assert "cos" not in recomputed(jax.checkpoint(f, policy=by_name), x, kernel)
    assert "cos" in recomputed(jax.checkpoint(f, policy=nothing), x, kernel)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("residual_dtype", "method"), crossed(RESIDUAL_DTYPES, METHODS, strength=1)
)
def test_a_checkpoint_changes_no_gradient(residual_dtype, method):
    x, kernel = data((2, 8, 9, 3), 4, dtype=np.float64)
    f = block(bandjax.Modes(2, 3), method, residual_dtype)
    by_name = jax.checkpoint_policies.save_only_these_names(NAME)

    @jax.jit
    def run(x, kernel):
        return [
            jax.grad(lambda *args, g=g: jnp.sum(g(*args) ** 2), argnums=(0, 1))(x, kernel)
            for g in (f, jax.checkpoint(f), jax.checkpoint(f, policy=by_name))
        ]

    plain, *others = run(x, kernel)
    for other in others:
        for expected, actual in zip(plain, other, strict=True):
            assert oracle.gap(actual, expected) <= 1e-12
