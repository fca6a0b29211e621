"""The operator by the native kernels: what is special about it.

That they compute the operator, its derivatives and its residuals, and that they pass every
transformation of JAX, the other files test as they do for every method.
"""

from __future__ import annotations

import re

import effort
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import HERE, chosen, export_checks, native
from choices import FULL, crossed, thinned
from processes import in_a_new_process

import bandjax
from bandjax._native import call as native_call
from bandjax._native import extension, product, transform

HALF = bandjax.Compression(0.5)


@native
def test_the_sweeps_of_other_files_meet_the_kernels():
    assert "native" in HERE


# ------------------------------------------------------------------------------- the whole operator


def step(band, options, **arguments):
    """Output and both gradients, all of them used."""

    def run(x, kernel, g):
        f = lambda x, w: bandjax.band_conv(x, w, band, **options, **arguments)  # noqa: E731
        y, back = jax.vjp(f, x, kernel)
        return y, *back(g if g is not None else y)

    return run


def normal(seed, *sizes, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng((seed, *sizes)).normal(size=sizes), dtype)


SIZES = [
    pytest.param((3, 32, 32, 64), (3, 3, 64, 64), HALF, {}, id="ResNet-18, stage 1"),
    pytest.param((3, 4, 4, 512), (3, 3, 512, 512), HALF, {}, id="ResNet-18, stage 4"),
    pytest.param((3, 32, 32, 3), (3, 3, 3, 64), HALF, {}, id="ResNet-18, stem"),
    pytest.param((1, 1024, 1), (8, 1, 128), HALF, {}, id="FCN, one channel"),
    pytest.param(
        (1, 56, 56, 64), (31, 31, 1, 64), HALF, {"feature_group_count": 64}, id="depthwise 31x31"
    ),
    pytest.param(
        (1, 32, 32, 16),
        (32, 32, 16, 16),
        bandjax.Modes(6, 6),
        {"padding": "CIRCULAR"},
        id="FNO-like",
    ),
    pytest.param((1, 16, 16, 16, 8), (3, 3, 3, 8, 8), HALF, {}, id="3-D"),
    pytest.param((3, 32, 32, 64), (3, 3, 64, 128), HALF, {"strides": 2}, id="between stages"),
    pytest.param((3, 16, 16, 128), (3, 3, 128, 128), HALF, {}, id="ResNet-18, stage 2"),
    pytest.param((3, 8, 8, 256), (3, 3, 256, 256), None, {}, id="ResNet-18, stage 3"),
    pytest.param((2, 270, 128), (5, 128, 256), HALF, {}, id="FCN, 270"),
    pytest.param(
        (1, 56, 56, 64), (7, 7, 1, 64), HALF, {"feature_group_count": 64}, id="depthwise 7x7"
    ),
]


@pytest.mark.thin(8)
@native
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("x_shape", "kernel_shape", "band", "arguments"), thinned(SIZES, 7))
def test_float32_at_the_sizes_of_networks(x_shape, kernel_shape, band, arguments):
    x, kernel = normal(1, *x_shape), normal(2, *kernel_shape)
    y = jax.eval_shape(step(band, {}, **arguments), x, kernel, None)[0]
    g = normal(3, *y.shape)
    # The method that the other tests hold to the oracle, in double precision.
    both = jax.jit(
        lambda x, kernel, g, wide: (
            step(band, chosen("native"), **arguments)(x, kernel, g),
            step(band, chosen("fft"), **arguments)(*wide),
        )
    )
    actual, expected = both(x, kernel, g, [a.astype(jnp.float64) for a in (x, kernel, g)])
    for value, wanted in zip(actual, expected, strict=True):
        assert value.dtype == jnp.float32
        assert oracle.relative_gap(value, wanted) <= 1e-5


@pytest.fixture
def fallbacks():
    """A way to call a function with the kernels' equals in XLA in the kernels' place."""
    caches = [
        value
        for module in (product, transform)
        for value in vars(module).values()
        if hasattr(value, "cache_clear")
    ]

    def by_fallbacks(f, *args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(extension, "available", lambda platform: False)
            patch.setattr(native_call, "require", lambda platform: None)
            patch.setattr(native_call, "supports", lambda dtype, platform: True)
            for cache in caches:
                cache.cache_clear()
            compiled = jax.jit(f).lower(*args).compile()
        for cache in caches:
            cache.cache_clear()
        assert "bandjax_" not in "".join(
            line for line in compiled.as_text().splitlines() if "custom_call_target" in line
        )
        return compiled(*args)

    return by_fallbacks


@pytest.mark.no_cover
@native
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "band", "arguments", "dtype"),
    crossed(
        [
            pytest.param((2, 9, 3), (3, 3, 4), bandjax.Modes(3), {}),
            pytest.param((2, 9, 8, 3), (3, 2, 3, 5), bandjax.Modes(3, 4), {"strides": (1, 2)}),
            pytest.param((2, 9, 7, 6), (3, 2, 2, 9), HALF, {"feature_group_count": 3}),
            pytest.param((2, 9, 7, 6), (3, 2, 1, 6), None, {"feature_group_count": 6}),
            pytest.param((2, 8, 8, 3), (3, 3, 3, 5), bandjax.Modes(4, 4), {"padding": "CIRCULAR"}),
            pytest.param((2, 5, 4, 6, 3), (2, 3, 2, 3, 2), HALF, {"input_dilation": 2}),
        ],
        [jnp.float64, jnp.float32, jnp.bfloat16],
        strength=1,
    ),
)
def test_the_kernels_equal_their_fallbacks(
    fallbacks, x_shape, kernel_shape, band, arguments, dtype
):
    x, kernel = normal(4, *x_shape, dtype=dtype), normal(5, *kernel_shape, dtype=dtype)
    run = step(band, chosen("native"), **arguments)
    expected = fallbacks(lambda x, kernel: run(x, kernel, None), x, kernel)
    compiled = jax.jit(lambda x, kernel: run(x, kernel, None)).lower(x, kernel).compile()
    for target in ("analysis", "synthesis", "multiply_sum", "input_product", "filter_product"):
        assert f'custom_call_target="bandjax_{target}"' in compiled.as_text()
    bound = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 2.0**-7}[jnp.dtype(dtype).name]
    for value, wanted in zip(compiled(x, kernel), expected, strict=True):
        assert value.dtype == dtype
        wide = (np.asarray(a).astype(np.float64) for a in (value, wanted))
        assert oracle.relative_gap(*wide) <= bound


@native
def test_float16_whose_spectrum_would_overflow():
    # The coefficient at DC is a million; float16 ends at 65504.
    x = (normal(6, 2, 32, 32, 3) + 1000).astype(jnp.float16)
    kernel, g = (0.1 * normal(7, 3, 3, 3, 4), 0.1 * normal(8, 2, 32, 32, 4))
    arguments = (x, kernel.astype(jnp.float16), g.astype(jnp.float16))
    actual = jax.jit(step(HALF, chosen("native")))(*arguments)
    wide = (a.astype(jnp.float32) for a in arguments)
    expected = jax.jit(step(HALF, chosen("fft")))(*wide)
    for value, wanted in zip(actual, expected, strict=True):
        assert value.dtype == jnp.float16
        # Eleven significant bits, of the spectrum that is kept and of the result.
        assert oracle.relative_gap(value.astype(jnp.float32), wanted) <= 2.0**-10


@native
def test_second_derivatives_through_a_spectrum_in_bfloat16():
    x, kernel = normal(1, 2, 9, 8, 3), normal(2, 3, 2, 3, 4)

    def gradients(dtype):
        run = step(HALF, {**chosen("native"), "residual_dtype": dtype})

        def loss(x, kernel):
            return sum(jnp.sum(a**2) for a in run(x, kernel, None))

        return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    for value, wanted in zip(gradients(jnp.bfloat16), gradients(None), strict=True):
        assert value.dtype == jnp.float32
        assert oracle.relative_gap(value, wanted) <= 2.0**-6


@native
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=["input", "kernel", "both"])
def test_vmap_with_many_taps_and_groups(axes):
    x = normal(8, 3, 2, 6, 7, 4, dtype=jnp.float64)
    kernel = normal(9, 3, 9, 8, 2, 6, dtype=jnp.float64)
    arguments = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)]

    def both(method):
        run = step(bandjax.Modes(2, 3), chosen(method), feature_group_count=2)
        return jax.jit(jax.vmap(lambda x, w: run(x, w, None), axes))(*arguments)

    for value, wanted in zip(both("native"), both("fft"), strict=True):
        assert oracle.gap(value, wanted) <= 1e-12


# ------------------------------------------------------------------------------------- determinism

# Size of a batch, sides, channels in and out, taps of a side, and options: few examples and many,
# a single axis and three, all frequencies by taps and by windows, groups, strides, half types.
DIGEST = """
    import hashlib, os, sys
    if os.environ.get("ONE_CORE"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax, numpy as np, bandjax
    half, exact = bandjax.Compression(0.5), bandjax.Compression(0)
    cases = [
        (5, (17, 17), 33, 70, 3, half, {}),
        (3, (4, 4), 130, 130, 3, half, {}),
        (2, (9, 9), 3, 5, 3, half, {}),
        (20, (16, 16), 40, 24, 3, half, {}),
        (3, (24, 20), 20, 36, 5, half, {"feature_group_count": 2}),
        (2, (20, 20), 36, 20, 2, half, {}),
        (1, (96, 96), 17, 33, 3, half, {}),
        (2, (200,), 19, 37, 9, half, {}),
        (1, (12, 12, 12), 9, 17, 3, half, {}),
        (2, (16, 16), 33, 70, 3, half, {"strides": 2}),
        (1, (4, 4), 70, 130, 3, exact, {"method": "direct"}),
        (3, (24, 24), 33, 70, 3, exact, {"method": "direct", "strides": 2}),
        (2, (65, 65), 33, 20, 3, exact, {"method": "tiles"}),
        (1, (20, 20, 20), 5, 17, 3, exact, {"method": "tiles"}),
    ]
    def run(x, w, band, options):
        f = lambda x, w: bandjax.band_conv(x, w, band, implementation="native", **options)
        y, back = jax.vjp(f, x, w)
        return y, *back(y)
    for dtype, cases in ((np.float32, cases), (jax.numpy.bfloat16, cases[::3])):
        for n, sizes, c, o, taps, band, options in cases:
            rng = np.random.default_rng((n, *sizes))
            x = rng.normal(size=(n, *sizes, c)).astype(dtype)
            c = c // options.get("feature_group_count", 1)
            w = rng.normal(size=(*(taps for _ in sizes), c, o)).astype(dtype)
            step = jax.jit(lambda x, w: run(x, w, band, options))
            digest = lambda: hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in step(x, w)))
            print(*{digest().hexdigest() for _ in range(3)})
"""


@native
@pytest.mark.parametrize(
    ("isa", "threads"),
    [
        pytest.param("", (1, 7), id="this processor's own"),
        pytest.param("", (2, 3, 16), id="many threads", marks=FULL),
        *(pytest.param(isa, (2, 7), id=isa, marks=FULL) for isa in ("avx512", "avx2", "portable")),
    ],
)
def test_results_do_not_depend_on_time_or_threads(isa, threads):
    given = {"XLA_FLAGS": " ".join(effort.flags())}  # One device, with all of the threads.
    if isa:
        given["BANDJAX_CPU_ISA"] = isa
        status = in_a_new_process("import bandjax; print(bandjax.native_status())", **given)
        if refusal := re.search(r"BANDJAX_CPU_ISA must be one of .*", status):
            pytest.skip(refusal[0])
    settings = [{"ONE_CORE": "1"}, *({"NPROC": str(number)} for number in threads)]
    lines = [in_a_new_process(DIGEST, **given, **setting).splitlines() for setting in settings]
    assert len(lines[0]) == 19
    differing = [number for number, same in enumerate(zip(*lines, strict=True)) if len({*same}) > 1]
    assert not differing
    assert {len(line.split()) for line in lines[0]} == {1}


# ------------------------------------------------------------------------------------------ memory


@native
@pytest.mark.parametrize("narrow", ["input", "residual"])
def test_a_spectrum_kept_in_bfloat16_is_never_widened(narrow):
    dtype = jnp.bfloat16 if narrow == "input" else jnp.float32
    x, kernel = normal(1, 2, 16, 16, 6, dtype=dtype), normal(2, 3, 3, 6, 8, dtype=dtype)
    run = step(HALF, {**chosen("native"), "residual_dtype": jnp.bfloat16})
    program = jax.jit(lambda x, kernel: run(x, kernel, None)).lower(x, kernel).as_text()
    geometry = bandjax.conv_geometry(x.shape, kernel.shape, HALF)
    spectrum = "x".join(map(str, (*geometry.box, 2, 6)))
    assert f"tensor<{spectrum}xbf16>" in program
    widened = [line for line in program.splitlines() if "stablehlo.convert" in line]
    assert [line for line in widened if f"tensor<{spectrum}x" in line] == []
    # The gradient's, which is not kept, is as wide as the arrays.
    assert (f"tensor<{spectrum}xf32>" in program) == (narrow == "residual")


@native
@pytest.mark.thin(2)
@pytest.mark.parametrize("band", [None, HALF])
@pytest.mark.parametrize("n", [2, 20])
def test_products_in_half_precision(n, band):
    x, kernel = normal(3, n, 12, 11, 20, dtype=jnp.bfloat16), normal(4, 3, 3, 20, 18) / 13
    g = normal(5, n, 12, 11, 18, dtype=jnp.bfloat16)
    arguments = x, kernel.astype(jnp.bfloat16), g
    with jax.enable_x64(True):
        wide = [np.asarray(a).astype(np.float64) for a in arguments]
        expected = jax.jit(step(band, chosen("fft")))(*wide)
    for precision, bound in ((None, 1e-2), ("highest", 2.0**-8)):
        run = jax.jit(step(band, chosen("native"), precision=precision))
        program = run.lower(*arguments).as_text()
        box = bandjax.conv_geometry(x.shape, kernel.shape, band).box
        spectrum = "x".join(map(str, (*box, n, 18)))
        assert (f"tensor<{spectrum}xbf16>" in program) == (precision is None)
        for value, wanted in zip(run(*arguments), expected, strict=True):
            assert value.dtype == jnp.bfloat16
            assert oracle.relative_gap(value.astype(jnp.float32), wanted) <= bound


# ------------------------------------------------------------------------------------------ export

LOADING = """
    import sys, jax, numpy as np, {imported}
    {prepare}
    loaded = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
    try:
        print(float(loaded.call(np.load(sys.argv[2]))))
    except jax.errors.JaxRuntimeError as error:
        print(error)
"""


@pytest.mark.full
@native
def test_an_exported_model_runs_in_another_process(tmp_path):
    from flax import nnx

    options = {"band": HALF, "implementation": "native", "rngs": nnx.Rngs(0)}
    model = nnx.Sequential(
        bandjax.nnx.BandConv(2, 4, (3, 3), **options),
        jnp.tanh,
        bandjax.nnx.BandConv(4, 3, (3, 3), strides=2, **options),
    )
    f = jax.jit(lambda x: jnp.sum(model(x) ** 2))
    x = normal(3, 2, 9, 8, 2)
    with pytest.raises(ValueError, match="no compatibility guarantees"):
        jax.export.export(f)(x)
    exported = jax.export.export(f, disabled_checks=export_checks())(x)
    (tmp_path / "model").write_bytes(exported.serialize())
    np.save(tmp_path / "x.npy", x)

    def load(**more):
        files = str(tmp_path / "model"), str(tmp_path / "x.npy")
        return in_a_new_process(LOADING.format(**more), *files)

    # The handlers must be there: the call that tells about them registers them.
    value = load(imported="bandjax", prepare="bandjax.native_status()")
    assert float(value) == pytest.approx(float(f(x)), rel=1e-6)
    assert "bandjax_analysis" in load(imported="os", prepare="")


# ----------------------------------------------------------------------- the forward pass alone


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_not_differentiated_is_computed_by_what_is_fastest_forward(dtype):
    x, kernel = (
        normal(i, *shape).astype(dtype) for i, shape in enumerate([(1, 1024, 64), (16, 64, 64)])
    )

    def loss(x, kernel):
        y = bandjax.band_conv(x, kernel, None)
        return jnp.sum(jnp.sin(y)), y

    forward = jax.jit(loss).lower(x, kernel)
    both = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(x, kernel)
    assert "bandjax_windows" in forward.as_text()
    assert "bandjax_windows" not in both.as_text()
    assert "bandjax_direct" in both.as_text()
    (_, y), ((_, expected), _) = forward.compile()(x, kernel), both.compile()(x, kernel)
    assert y.dtype == expected.dtype == dtype
    bound = 1e-5 if dtype == jnp.float32 else 1e-2
    assert oracle.relative_gap(*(a.astype(jnp.float32) for a in (y, expected))) <= bound


# ------------------------------------------------------------------------------------------ errors


def test_the_fast_transform_of_a_whole_grid_is_not_native():
    x, kernel = normal(1, 2, 8, 3), normal(2, 3, 3, 4)
    told = "'native' computes method 'direct', 'dft', 'tiles', got method='fft'"
    with pytest.raises(ValueError, match=told):
        bandjax.band_conv(x, kernel, method="fft", implementation="native")


@pytest.mark.parametrize("method", ["auto", "dft"])
def test_without_kernels(monkeypatch, method):
    missing = extension._Extension(None, "no compiler at install")
    monkeypatch.setattr(extension, "_load", lambda: missing)
    x, kernel = normal(1, 2, 8, 3), normal(2, 3, 3, 4)
    with pytest.raises(RuntimeError, match=r"'cpu': no compiler at install; pip install .* builds"):
        bandjax.band_conv(x, kernel, HALF, method=method, implementation="native")
    # Nothing asked for: plain JAX.
    f = jax.jit(lambda x, kernel: bandjax.band_conv(x, kernel, HALF, method=method))
    compiled = f.lower(x, kernel).compile()
    assert "bandjax_" not in "".join(
        line for line in compiled.as_text().splitlines() if "custom_call_target" in line
    )
    expected = bandjax.band_conv(x, kernel, HALF, method="fft")
    assert oracle.relative_gap(compiled(x, kernel), expected) <= 1e-5


@native
def test_what_is_picked_where_nothing_is_asked_for():
    x, kernel = normal(1, 2, 8, 3), normal(2, 3, 3, 4)

    def text(**options):
        f = jax.jit(lambda x, kernel: bandjax.band_conv(x, kernel, HALF, **options))
        return f.lower(x, kernel).as_text()

    assert "bandjax_analysis" in text(method="dft")
    assert "bandjax_analysis" in text(implementation="native")
    assert "bandjax_direct" in text(method="direct")
    for options in ({"implementation": "xla"}, {"method": "fft"}):
        assert "bandjax_" not in text(**options)
