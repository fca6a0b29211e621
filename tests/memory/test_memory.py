"""What is kept between forward and backward, against sizes computed by hand."""

from __future__ import annotations

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name

import bandjax
from bandjax import memory
from experiments.models.resnet import ResNet

mpl.use("Agg")

F32 = jnp.float32
SAVE_SPECTRA = jax.checkpoint_policies.save_only_these_names("bandjax_spectrum")


def array(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def kept(fun, *args, **options):
    """Operation, shape and type of each tensor."""
    saved = memory.saved_bytes(fun, *args, **options)
    return [(t.operation, t.shape, jnp.dtype(t.dtype).name) for t in saved.tensors]


def test_a_chain_of_sines_keeps_a_cosine_each():
    saved = memory.saved_bytes(lambda x: jnp.sin(jnp.sin(x)), array(5, 7))
    assert [t.operation for t in saved.tensors] == ["cos", "cos"]
    assert {t.shape for t in saved.tensors} == {(5, 7)}
    assert {t.nbytes for t in saved.tensors} == {4 * 5 * 7}
    assert (saved.total, saved.arguments, saved.constants) == (2 * 4 * 5 * 7, 0, 0)
    assert all("test_memory.py" in t.source for t in saved.tensors)


@pytest.mark.parametrize(
    "fun",
    [
        lambda x, w: jnp.tanh(x @ w).sum(),
        lambda x, w: jnp.sin(jnp.cos(x @ w) @ w.T) ** 2,
        lambda x, w: jax.nn.softmax(x @ w),
        jax.jit(lambda x, w: jnp.exp(x @ w)),
    ],
)
def test_the_sizes_are_those_of_the_arrays_that_jax_vjp_returns(fun):
    args = jnp.ones((6, 5)), jnp.ones((5, 3))
    _, pull_back = jax.vjp(fun, *args)
    arrays = {id(a): a for a in jax.tree.leaves(pull_back) if isinstance(a, jax.Array)}
    saved = memory.saved_bytes(fun, *args)
    assert saved.total > 0
    own = sum(a.nbytes for a in arrays.values())
    assert own == saved.total + saved.arguments + saved.constants


def test_average_over_the_tensors_made():
    saved = memory.saved_bytes(lambda x: jnp.exp(jnp.exp(jnp.exp(x)[:50])[:10]), array(100))
    assert [t.nbytes for t in saved.tensors] == [400, 200, 40]
    assert saved.average == pytest.approx((400 + 600 + 640) / 3)
    assert saved.total == 640


def test_nothing_kept():
    saved = memory.saved_bytes(lambda x: 2 * x, array(4))
    assert saved.tensors == ()
    assert (saved.total, saved.average, saved.by_name()) == (0, 0, {})


def test_arguments_are_told_apart():
    saved = memory.saved_bytes(lambda x, w: x @ w, array(3, 5), array(5, 2))
    assert saved.tensors == ()
    assert saved.arguments == 4 * (3 * 5 + 5 * 2)


def test_an_argument_reshaped_or_named_is_the_argument():
    def fun(x):
        flat = x.reshape(-1)
        return jnp.sum(checkpoint_name(flat, "flat") * flat) + jnp.sum(x * x)

    saved = memory.saved_bytes(fun, array(3, 5))
    assert saved.tensors == ()
    assert saved.arguments == 4 * 15


def test_an_array_kept_twice_counts_once_with_its_name():
    def fun(x):
        y = jnp.sqrt(x * 3)
        z = checkpoint_name(y, "root")
        return jnp.sum(y * z) + jnp.sum(y.reshape(-1) * z.reshape(-1))

    policy = jax.checkpoint_policies.everything_saveable
    for f in (fun, jax.jit(fun), jax.checkpoint(fun, policy=policy)):
        saved = memory.saved_bytes(f, array(4, 6))
        assert saved.by_name()["root"] == 4 * 24
        roots = [t for t in saved.tensors if t.operation == "sqrt"]
        assert len(roots) == 1


def test_constants_are_not_counted():
    captured = jnp.asarray(np.random.default_rng(0).normal(size=(6,)), F32)
    saved = memory.saved_bytes(lambda x: x * captured + x * jnp.arange(6, dtype=F32), array(6))
    assert saved.tensors == ()
    assert saved.constants == 2 * 4 * 6


def test_a_constant_of_a_function_under_jit_is_none_of_its_arguments():
    @jax.jit
    def pair(x):
        return x + 1, jnp.arange(6, dtype=F32)

    def fun(x):
        y, numbers = pair(x)
        return y * jnp.exp(numbers)

    saved = memory.saved_bytes(fun, array(6))
    assert saved.tensors == ()
    assert saved.constants == 4 * 6


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_zeros_in_the_derivative_of_relu_are_constants(wrap):
    saved = memory.saved_bytes(wrap(lambda x: jax.nn.relu(x).sum()), array(5, 7))
    assert [(t.operation, t.nbytes) for t in saved.tensors] == [("gt", 35)]
    assert saved.constants == 4 * 35


def test_integer_and_key_arguments():
    def loss(w, labels, key):
        mask = jax.random.bernoulli(key, 0.5, (4, 3))
        logits = jnp.where(mask, w[labels], 0)
        return jnp.sum(jnp.sin(logits))

    saved = memory.saved_bytes(loss, array(9, 3), array(4, dtype=jnp.int32), jax.random.key(1))
    names = [(t.operation, t.nbytes) for t in saved.tensors]
    assert ("cos", 4 * 12) in names
    assert 12 in [t.nbytes for t in saved.tensors if t.dtype == bool]  # the mask of the dropout


def test_argnums_and_has_aux():
    def loss(w, x):
        return jnp.sum(w * jnp.exp(x)), jnp.tan(w)

    args = array(5), array(5)
    assert kept(loss, *args, argnums=0, has_aux=True) == [("exp", (5,), "float32")]
    both = memory.saved_bytes(loss, *args, has_aux=True)
    assert both.arguments == 4 * 5
    aux = memory.saved_bytes(loss, *args, argnums=(0,))
    assert aux.total > 4 * 5
    for wrong in ((), 2, -3):
        with pytest.raises(ValueError, match="argnums must choose among 2 arguments"):
            memory.saved_bytes(loss, *args, argnums=wrong)
    with pytest.raises(TypeError, match="fun must be a function"):
        memory.saved_bytes(3, *args)


# Seven rows of frequencies, -3 to 3, and three columns: of -2 to 2 half is the other's conjugate.
MODES = bandjax.Modes(3, 2)
SPECTRUM = 2 * 4 * (7 * 3) * 2 * 3  # real and imaginary, 4 bytes, (box, N, C)


def band_conv(x, kernel):
    return bandjax.band_conv(x, kernel, MODES, method="dft", implementation="xla")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_band_conv_keeps_spectrum_and_kernel(wrap):
    saved = memory.saved_bytes(wrap(band_conv), array(2, 16, 16, 3), array(3, 3, 3, 4))
    assert saved.by_name() == {"bandjax_spectrum": SPECTRUM}
    assert saved.by_kind() == {"spectrum": SPECTRUM}
    assert saved.arguments == 4 * 3 * 3 * 3 * 4
    assert all("band_conv" in t.source for t in saved.tensors)


def test_band_conv_without_a_band_keeps_input_and_kernel():
    saved = memory.saved_bytes(bandjax.band_conv, array(2, 8, 8, 3), array(3, 3, 3, 4))
    assert saved.total == 0
    assert saved.arguments == 4 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 4)


def test_checkpoint_keeps_what_its_policy_names():
    def block(x, kernel):
        return jnp.sum(jax.nn.relu(jnp.sin(band_conv(x, kernel))))

    args = array(2, 16, 16, 3), array(3, 3, 3, 4)
    plain = memory.saved_bytes(block, *args)
    assert plain.total == SPECTRUM + (4 + 1) * 2 * 16 * 16 * 4  # the cosine and the mask
    again = memory.saved_bytes(jax.checkpoint(block, policy=SAVE_SPECTRA), *args)
    assert again.by_kind() == {"spectrum": SPECTRUM}
    nothing = memory.saved_bytes(jax.checkpoint(block), *args)
    assert nothing.total == 0
    assert nothing.arguments == 4 * (2 * 16 * 16 * 3 + 3 * 3 * 3 * 4)


def test_scan_keeps_every_step():
    saved = memory.saved_bytes(
        lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0], array(5)
    )
    assert [(t.operation, t.shape, t.nbytes) for t in saved.tensors] == [("cos", (3, 5), 60)]


def test_scan_passes_names_and_arguments_on():
    def fun(x, rows):
        def step(c, row):
            return checkpoint_name(jnp.exp(c), "grown") * row, None

        return jax.lax.scan(step, x, rows)[0]

    saved = memory.saved_bytes(fun, array(5), array(7, 5))
    assert saved.by_name() == {"grown": 4 * 35}
    assert {t.operation for t in saved.tensors} == {"exp"}
    assert saved.arguments == 4 * 35


def test_scan_of_named_rows_keeps_the_argument():
    def fun(x, rows):
        return jax.lax.scan(lambda c, row: (c * checkpoint_name(row, "row"), None), x, rows)[0]

    saved = memory.saved_bytes(fun, array(5), array(7, 5), argnums=0)
    assert saved.tensors == ()
    assert saved.arguments == 4 * 35


def test_scan_tells_what_it_carries_from_what_stays():
    def fun(x, w):
        return jax.lax.scan(lambda c, _: (checkpoint_name(c, "c") * c * w, None), x, length=4)[0]

    saved = memory.saved_bytes(fun, array(5), array(5), argnums=0)
    assert saved.by_name()["c"] == 4 * 4 * 5
    assert [t.operation for t in saved.tensors if t.name == "c"] == ["mul"]
    assert saved.arguments == 4 * 5


def test_scan_keeps_what_it_carries():
    saved = memory.saved_bytes(
        lambda x: jax.lax.scan(lambda c, _: (c * c, None), x, None, length=4)[0], array(5)
    )
    assert {t.operation for t in saved.tensors} == {"mul"}
    assert all(t.shape == (4, 5) for t in saved.tensors)


def test_branches_tell_what_they_made():
    def part(x):
        return checkpoint_name(jnp.floor(x), "floor") * x

    def fun(x, flag):
        return jax.lax.cond(flag, part, lambda x: 2 * x, x)

    saved = memory.saved_bytes(fun, array(5), array(dtype=jnp.bool_))
    assert saved.by_name()["floor"] == 4 * 5
    assert [t.operation for t in saved.tensors if t.name == "floor"] == ["floor"]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_an_array_named_once_it_is_kept(wrap):
    # The exponential is its own derivative, and kept before it has the name.
    saved = memory.saved_bytes(wrap(lambda x: checkpoint_name(jnp.exp(x), "grown")), array(5))
    assert saved.by_name() == {"grown": 4 * 5}


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3))(x)
        x = linen.relu(linen.BatchNorm(use_running_average=False)(x))
        return linen.Conv(5, (3, 3))(x)


class Nnx(nnx.Module):
    def __init__(self, convolution, rngs):
        self.first = convolution(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = convolution(4, 5, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        x = nnx.relu(self.norm(x))
        return self.second(x)


def check_dense(saved):
    """Convolution, batch norm, ReLU, convolution."""
    size = 2 * 8 * 8 * 4
    large = sorted((t.nbytes, t.kind) for t in saved.tensors if np.prod(t.shape) >= size)
    # Of batch norm the input less its mean, and the double of the input for the square's
    # derivative; of ReLU the mask; of the second convolution the input.
    assert large == [
        (size, "other"),
        (4 * size, "convolution input"),
        (4 * size, "other"),
        (4 * size, "other"),
    ]
    assert saved.total - 13 * size <= 8 * 4 * 4  # vectors of the four channels


def test_linen_model_by_layer():
    model, x = Linen(), jnp.ones((2, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    apply = lambda v, x: model.apply(v, x, mutable=["batch_stats"])[0]  # noqa: E731
    saved = memory.saved_bytes(apply, variables, x)
    check_dense(saved)
    assert set(saved.by_layer()) == {"Linen/BatchNorm_0", "Linen"}
    assert saved.arguments >= 4 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 4 + 3 * 3 * 4 * 5)
    again = memory.saved_bytes(jax.jit(apply), variables, x)
    assert again.by_layer() == saved.by_layer()


def test_nnx_module_and_state():
    x = array(2, 8, 8, 3)
    model = Nnx(nnx.Conv, nnx.Rngs(0))
    whole = memory.saved_bytes(lambda m, x: m(x), model, x)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    parts = memory.saved_bytes(
        lambda p, s, x: nnx.merge(graph, p, s, copy=True)(x), params, rest, x, argnums=0
    )
    batch = memory.saved_bytes(lambda m, x: m(x), model, x, argnums=1)
    for saved in (whole, parts):
        check_dense(saved)
    assert 0 < batch.total <= whole.total
    layers = list(whole.by_layer())
    assert any(layer.startswith("Nnx:") and layer.endswith("/BatchNorm") for layer in layers)
    assert any(t.source.endswith("(Nnx.__call__)") for t in whole.tensors)


def test_layers_of_a_function_that_was_traced_before_by_another():
    model = Nnx(nnx.Conv, nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def apply(p, s, x):
        return nnx.merge(graph, p, s, copy=True)(x)

    args = params, rest, jnp.ones((2, 8, 8, 3))
    jax.block_until_ready(apply(*args))
    layers = memory.saved_bytes(lambda *args: 1 * apply(*args), *args).by_layer()
    assert set(layers) == set(memory.saved_bytes(apply.__wrapped__, *args).by_layer())


def test_layers_of_band_limited_convolutions():
    model = Nnx(
        lambda *a, **k: bandjax.BandConv(*a, band=bandjax.Compression(0.5), **k), nnx.Rngs(0)
    )
    saved = memory.saved_bytes(lambda m, x: m(x), model, array(2, 8, 8, 3))
    spectra = [t for t in saved.tensors if t.name == "bandjax_spectrum"]
    assert len({t.layer for t in spectra}) == 2
    assert all(t.layer.endswith("/BandConv") for t in spectra)


def resnet_loss(**options):
    model = nnx.eval_shape(lambda: ResNet((32, 32, 3), 10, rngs=nnx.Rngs(0), **options))
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, x, y):
        logits = nnx.merge(graph, params, rest, copy=True)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return loss, (params, rest, array(32, 32, 32, 3), array(32, dtype=jnp.int32))


def test_resnet():
    loss, args = resnet_loss(band=None, convolution=nnx.Conv)
    saved = memory.saved_bytes(loss, *args)
    # 18.75 M numbers leave the 20 convolutions and 17 M of them go through ReLU: batch norm keeps
    # the former twice, ReLU a mask, and each convolution but the first reads ReLU's result, of
    # which the last goes to the mean instead. ReLU's zeros are constants.
    conv, relu, last = 18.75 * 2**20, 17 * 2**20, 32 * 4 * 4 * 512
    by_hand = 2 * 4 * conv + relu + 4 * (relu - last)
    assert saved.total == pytest.approx(by_hand, rel=0.01)
    assert saved.by_kind()["convolution input"] == 4 * (relu - last)
    assert saved.constants == pytest.approx(4 * relu, rel=0.01)
    assert saved.total + saved.constants == pytest.approx(302 * 2**20, rel=0.01)
    loss, args = resnet_loss(band=bandjax.Compression(0.5))
    again = memory.saved_bytes(jax.checkpoint(loss, policy=SAVE_SPECTRA), *args)
    assert again.total == pytest.approx(46.6 * 2**20, rel=0.01)
    assert set(again.by_name()) == {"bandjax_spectrum"}


def test_scales_of_eight_bit_spectra():
    @jax.custom_vjp
    def convolve(x):
        return x

    def forward(x):
        pieces = [jnp.abs(x).astype(jnp.int8), x[:1, :1, :1], x[..., :1, :1]]
        return x, [checkpoint_name(piece, "bandjax_spectrum") for piece in pieces]

    convolve.defvjp(forward, lambda _, ct: (ct,))
    saved = memory.saved_bytes(convolve, array(5, 3, 2, 4))
    assert saved.by_kind() == {"spectrum": 5 * 3 * 2 * 4, "scale": 4 * (1 * 1 * 1 * 4 + 5 * 3)}


def test_compiled_bytes():
    x, w = array(64, 32), array(32, 16)
    used = memory.compiled_bytes(lambda x, w: jnp.tanh(x @ w), x, w)
    assert used.argument == 4 * (64 * 32 + 32 * 16)
    assert used.output == 4 * 64 * 16
    assert used.alias == 0
    if jax.default_backend() == "cpu":
        assert used.peak is None
    else:
        assert used.peak >= used.output
    # A matrix product between two others must be stored.
    chain = memory.compiled_bytes(lambda x, w: ((x @ w) @ w.T) @ w, x, w)
    assert chain.temporary >= 4 * 64 * 16
    donated = memory.compiled_bytes(jax.jit(lambda x: x + 1, donate_argnums=0), x)
    assert donated.alias == donated.output == 4 * 64 * 32
    assert donated == memory.compiled_bytes(lambda x: x + 1, x, donate_argnums=0)


def test_compiled_bytes_passes_options_on():
    with pytest.raises(TypeError, match="jit-compiled already, so that donate_argnums cannot"):
        memory.compiled_bytes(jax.jit(jnp.sin), array(3), donate_argnums=0)
    with pytest.raises(Exception, match="no_such_option"):
        memory.compiled_bytes(jnp.sin, array(3), compiler_options={"no_such_option": True})


@pytest.fixture
def reports():
    args = array(2, 16, 16, 3), array(3, 3, 3, 4)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(band_conv(x, kernel)))

    return {
        "plain [a]": memory.saved_bytes(loss, *args),
        "kept": memory.saved_bytes(jax.checkpoint(loss, policy=SAVE_SPECTRA), *args),
    }


def printed(table):
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables(reports):
    plain, checkpointed = reports.values()
    rows = printed(memory.table(reports)).splitlines()
    assert any("plain [a]" in row and "100.0%" in row for row in rows)
    share = checkpointed.total / plain.total
    assert any("kept" in row and f"{share:.1%}" in row for row in rows)
    text = printed(plain.table())
    assert "bandjax_spectrum" in text
    assert "cos (other)" in text
    assert str(plain).startswith(f"{plain.total / 2**20:.4g} MiB kept in {len(plain.tensors)} ")
    with pytest.raises(ValueError, match="reports must hold"):
        memory.table({})


def test_plot(reports, tmp_path):
    axes = memory.plot(reports, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["spectra", "cos"]
    for row, saved in enumerate(reports.values()):
        widths = [bars[row].get_width() for bars in axes.containers]
        assert sum(widths) == pytest.approx(saved.total / 2**20)
        assert widths[0] == pytest.approx(SPECTRUM / 2**20)
    plain, checkpointed = reports.values()
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == f"{plain.total / 2**20:.3g} MiB"
    assert f"({checkpointed.total / plain.total:.0%})" in texts[1]
    assert memory.plot(reports, ax=axes) is axes
    with pytest.raises(ValueError, match="reports must hold"):
        memory.plot({})


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_missing_packages_are_named(monkeypatch, reports, package, tmp_path):
    for module in (f"{package}.table", f"{package}.figure", f"{package}.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    draw = {
        "rich": lambda: memory.table(reports),
        "matplotlib": lambda: memory.plot(reports, tmp_path / "x.png"),
    }
    with pytest.raises(ImportError, match=rf"pip install 'bandjax\[report\]', or {package}"):
        draw[package]()


def test_importing_needs_neither_flax_nor_rich_nor_matplotlib():
    code = (
        "import sys, bandjax; bandjax.memory.saved_bytes;"
        "print(sorted({'flax', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def total_of(fun, *args):
    """Bytes kept when the first argument is differentiated."""
    return memory.saved_bytes(fun, *args, argnums=0).total


def test_saved_bytes_of_a_product():
    """d(sin(p) * x)/dp = cos(p) * x: only cos(p) is new, 40 bytes; x is an input."""
    p, x = jnp.arange(10.0), jnp.arange(10.0) + 1
    assert total_of(lambda p, x: jnp.sum(jnp.sin(p) * x), p, x) == 40


def test_saved_bytes_of_linear_steps_is_nothing():
    """The backward pass of a sum of products with the input reads the input alone."""
    p, x = jnp.ones((3, 4)), jnp.ones((5, 3))
    assert total_of(lambda p, x: jnp.sum(x @ p), p, x) == 0


def test_saved_bytes_of_two_dense_layers():
    """tanh keeps its output h (5 x 4 floats), which the second product's gradient reads too; the
    chain rule of the square keeps 2 * (h @ b), 5 x 2 floats. x, a and b are inputs."""
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    x = jnp.ones((5, 3))

    def loss(params, x):
        h = jnp.tanh(x @ params["a"])
        return jnp.sum((h @ params["b"]) ** 2)

    # tanh's rule keeps h for the product, and 1 - h * h or h for itself.
    assert total_of(loss, params, x) in (4 * (20 + 10), 4 * (40 + 10))


def test_saved_bytes_counts_an_array_once_and_by_its_type():
    p = jnp.ones(6, jnp.bfloat16)

    def loss(p):
        h = jnp.exp(p)  # exp's derivative is its value: one array for both products
        return jnp.sum(h * h)

    assert total_of(loss, p) == 6 * 2


def test_saved_bytes_of_one_band_limited_layer():
    """The layer keeps the compressed spectrum instead of the hidden input: kept complex numbers
    of 8 bytes per image and channel."""
    layer = bandjax.BandConv(
        4, 4, (3, 3), band=bandjax.Compression(0.75), use_bias=False, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 4))

    def loss(pair):
        weight, params = pair  # x * weight is neither a parameter nor an input
        return jnp.sum(nnx.merge(graph, params)(x * weight))

    kept = layer.geometry((2, 16, 16, 4)).kept
    assert total_of(loss, (jnp.float32(2), params)) == 2 * 4 * kept * 8
