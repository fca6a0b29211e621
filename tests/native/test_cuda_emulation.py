"""The CUDA kernels, run on the CPU in the emulation of ``ffi/cuda/block_emulated.h``.

No GPU and no nvcc: a C++ compiler builds the kernels' own sources, once for a session. Their
results stand against literal sums, in double precision, first in C++ (``ffi/cuda/emulate.cpp``:
every kernel, type, arithmetic and way to cut the work) and then through the XLA FFI handlers, whose
checks of shapes and types run here as they do on a GPU. What only a GPU can show is its own
arithmetic, its speed, and that the launches and streams work: with ``BANDJAX_CUDA_LIBRARY`` naming
a library that nvcc has built of the same sources, the tests through the handlers run on the GPU
(``experiments/checks/gpu_check.sh`` does so).
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from choices import thinned

SOURCES = Path(__file__).parents[2] / "ffi" / "cuda"
KERNELS = ("transform", "multiply", "filter_product", "paper", "handlers")
# Of the handlers for a GPU; without it, they are emulated.
LIBRARY = os.environ.get("BANDJAX_CUDA_LIBRARY")
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
FLAGS = ("-std=c++17", "-O0", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-x", "c++")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        COMPILER is None and LIBRARY is None,
        reason="no C++ compiler, so the CUDA kernels cannot be emulated",
    ),
]


def compile_all(folder: Path) -> None:
    """Builds ``folder/emulate`` and ``folder/handlers.so``."""

    def run(*command: str) -> None:
        done = subprocess.run([COMPILER, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)

    def compile_one(name: str) -> str:
        source = SOURCES / (name + (".cpp" if name == "emulate" else ".cu"))
        out = str(folder / f"{name}.o")
        run(*FLAGS, "-c", str(source), "-o", out, "-isystem", jax.ffi.include_dir())
        return out

    names = (*KERNELS, "emulate")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = dict(zip(names, pool.map(compile_one, names), strict=True))
    kernels = [objects[name] for name in KERNELS]
    run("-shared", *kernels, "-o", str(folder / "handlers.so"))
    run(*kernels, objects["emulate"], "-o", str(folder / "emulate"))


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The folder of the built programs, shared by the processes of one test run."""
    root = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent
    folder = root / "cuda_emulation"
    try:
        folder.mkdir()
    except FileExistsError:
        # Another process builds, and says how it went.
        deadline = time.monotonic() + 600
        while not (folder / "outcome").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        outcome = (folder / "outcome").read_text()
    else:
        outcome = "built"
        try:
            compile_all(folder)
        except Exception as error:
            outcome = str(error)
        (folder / "outcome.part").write_text(outcome)
        (folder / "outcome.part").rename(folder / "outcome")
    assert outcome == "built", outcome
    return folder


@pytest.mark.full
@pytest.mark.thin(2)
@pytest.mark.parametrize("kernels", thinned(["multiply", "paper", "transform", "filter"], 2))
def test_kernels_compute_their_sums_in_any_order_of_threads(build, kernels):
    done = subprocess.run(
        [build / "emulate", kernels], capture_output=True, text=True, check=False, timeout=600
    )
    lines = done.stdout.splitlines()
    wrong = [line for line in lines if not line.startswith("ok ")]
    assert done.returncode == 0, "\n".join([*wrong, done.stderr])
    assert len(lines) >= 6
    assert not wrong


# ------------------------------------------------------------------------- through the handlers

NAMES = (
    "analysis",
    "synthesis",
    "multiply_sum",
    "input_product",
    "filter_product",
    "paper_multiply_sum",
    "paper_multiply_sum_planar",
)
F32, BF16 = jnp.float32, jnp.bfloat16


@pytest.fixture(scope="session")
def library(request):
    """The handlers' library, its handlers registered as ``tested_...``."""
    path = LIBRARY or request.getfixturevalue("build") / "handlers.so"
    loaded = ctypes.cdll.LoadLibrary(str(path))
    for name in NAMES:
        handler = jax.ffi.pycapsule(getattr(loaded, f"bandjax_cuda_{name}"))
        platform = "CUDA" if LIBRARY else "cpu"
        jax.ffi.register_ffi_target(f"tested_{name}", handler, platform=platform)
    return loaded


@pytest.fixture
def call(library):
    """Calls a handler: ``call(name, results, *arguments, **attributes)``."""

    def call(name, results, *arguments, **attributes):
        out = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
        return jax.ffi.ffi_call(f"tested_{name}", out)(*arguments, **attributes)

    return call


def random(seed, *shape):
    return np.random.default_rng(seed).normal(0.2, 1.0, shape)


def f32(*arrays):
    return [jnp.asarray(a, F32) for a in arrays]


def axis_table(n, modes, grid):
    """Cosines and sines of one axis, and the complex matrix (u, j) that they stand for."""
    u = np.arange(modes + 1)[:, None]
    angles = 2 * np.pi * u * (np.arange(n) - (n - 1) / 2) / grid
    weights = 1 + 0.5 * (u % 3)
    half = (n + 1) // 2
    table = np.concatenate([weights * np.cos(angles), (weights * np.sin(angles))[1:]])[:, :half]
    return table, weights * np.exp(-1j * angles)


@pytest.mark.parametrize("nyquist_once", [False, True])
@pytest.mark.parametrize(("samples", "spectra"), [(F32, F32), (BF16, F32), (F32, BF16)])
def test_transform_handlers(call, nyquist_once, samples, spectra):
    shape, modes = (3, 6, 9, 5), (3, 4)
    grid = 2 * modes[0] if nyquist_once else 9
    table0, matrix0 = axis_table(shape[1], modes[0], grid)
    table1, matrix1 = axis_table(shape[2], modes[1], 11)
    negative = matrix0[1:].conj()[::-1]
    matrix0 = np.concatenate([matrix0, negative[1:] if nyquist_once else negative])
    box = (len(matrix0), modes[1] + 1, shape[0], shape[3])
    tables = f32(table0, table1)
    x = jnp.asarray(random(0, *shape), samples)
    expected = np.einsum("uh,vw,nhwc->uvnc", matrix0, matrix1, np.asarray(x, np.float64))
    re, im = call("analysis", [(box, spectra)] * 2, x, *tables)
    close = {"atol": 2e-5} if spectra == F32 else {"atol": 1e-3, "rtol": 2**-7}
    np.testing.assert_allclose(np.asarray(re, np.float64), expected.real, **close)
    np.testing.assert_allclose(np.asarray(im, np.float64), expected.imag, **close)

    re, im = (jnp.asarray(random(seed, *box), spectra) for seed in (1, 2))
    both = np.asarray(re, np.float64) + 1j * np.asarray(im, np.float64)
    expected = np.einsum("uh,vw,uvnc->nhwc", matrix0.conj(), matrix1.conj(), both).real
    (y,) = call("synthesis", [(shape, samples)], re, im, *tables)
    close = {"atol": 5e-5} if samples == F32 else {"atol": 1e-3, "rtol": 2**-7}
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, **close)


def workspace_bytes(frequencies, c, o, groups, taps):
    """The filter product's workspace, as ffi/cuda/README.md has it."""
    if min(frequencies, c, o, taps) == 0:
        return 0
    of_block = 3 if taps <= 3 else 9
    tiles = groups * -(-(c // groups) // 32) * -(-(o // groups) // 64) * -(-taps // of_block)
    most = min(-(-264 // tiles), frequencies)
    splits = -(-frequencies // -(-frequencies // most))
    return 0 if splits == 1 else 4 * splits * taps * (c // groups) * o


def test_workspace_formula_in_python_and_in_c(library):
    function = library.bandjax_cuda_filter_workspace_bytes
    function.restype = ctypes.c_int64
    rng = np.random.default_rng(0)
    for _ in range(500):
        groups = int(rng.integers(1, 5))
        sizes = [int(s) for s in (2.0 ** rng.uniform(0, 9, 4)).astype(int)]
        sizes = [sizes[0], sizes[1] * groups, sizes[2] * groups, groups, sizes[3]]
        assert function(*map(ctypes.c_int64, sizes)) == workspace_bytes(*sizes)


class Contraction:
    """Random operands of the three contractions, and their results as literal sums."""

    def __init__(self, box, n, c, o, groups, taps, spectra=F32):
        (K0, K1), (k0, k1) = box, taps
        self.box, self.n, self.c, self.o, self.groups, self.taps = box, n, c, o, groups, taps
        self.x = [jnp.asarray(random(s, K0, K1, n, c), spectra) for s in (0, 1)]
        self.y = f32(random(2, K0, K1, n, o), random(3, K0, K1, n, o))
        self.w = f32(random(4, k0, k1, c // groups, o))[0]
        self.outer, self.inner = f32(random(5, 2, K0, k0), random(6, 2, K1, k1))

    def results(self):
        """``multiply_sum(x, w)``, ``input_product(y, w)`` and ``filter_product(x, y)``."""
        x, y = (np.asarray(p[0], float) + 1j * np.asarray(p[1], float) for p in (self.x, self.y))
        outer, inner = (p[0] + 1j * p[1] for p in (np.asarray(self.outer), np.asarray(self.inner)))
        q = self.groups
        x, y = (a.reshape(*a.shape[:-1], q, -1) for a in (x, y))
        w = np.asarray(self.w, float)
        w = w.reshape(*w.shape[:-1], q, -1)
        spectrum = np.einsum("us,vt,stcqo->uvcqo", outer, inner, w)
        forward = np.einsum("uvnqc,uvcqo->uvnqo", x, spectrum.conj())
        back = np.einsum("uvnqo,uvcqo->uvnqc", y, spectrum)
        gradient = np.einsum(
            "us,vt,uvnqc,uvnqo->stcqo", outer.conj(), inner.conj(), x, y.conj()
        ).real
        return tuple(a.reshape(*a.shape[:-2], -1) for a in (forward, back, gradient))

    def attributes(self, precision="tf32x3", **changes):
        return {
            "groups": np.int64(self.groups),
            "variant": "tiled",
            "precision": precision,
        } | changes

    def call(self, call, **attributes):
        attributes = self.attributes(**attributes)
        tables = self.outer, self.inner
        shapes = [(self.y[0].shape, F32)] * 2
        forward = call("multiply_sum", shapes, *self.x, self.w, *tables, **attributes)
        shapes = [(self.x[0].shape, F32)] * 2
        back = call("input_product", shapes, *self.y, self.w, *tables, **attributes)
        size = workspace_bytes(
            self.box[0] * self.box[1], self.c, self.o, self.groups, self.taps[0] * self.taps[1]
        )
        shapes = [(self.w.shape, F32), ((size,), jnp.uint8)]
        gradient, _ = call("filter_product", shapes, *self.x, *self.y, *tables, **attributes)
        join = [np.asarray(p[0]) + 1j * np.asarray(p[1]) for p in (forward, back)]
        return *join, np.asarray(gradient)


CONTRACTIONS = [
    {"box": (3, 2), "n": 5, "c": 6, "o": 10, "groups": 2, "taps": (3, 2)},
    {"box": (2, 2), "n": 33, "c": 20, "o": 12, "groups": 1, "taps": (1, 3)},
    {"box": (1, 5), "n": 3, "c": 4, "o": 8, "groups": 4, "taps": (1, 1), "spectra": BF16},
]


@pytest.mark.parametrize("case", CONTRACTIONS)
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("tf32x3", 1e-5), ("tf32", 6e-3), ("bf16", 5e-2)]
)
def test_product_handlers(call, case, precision, tolerance):
    operands = Contraction(**case)
    for got, expected in zip(
        operands.call(call, precision=precision), operands.results(), strict=True
    ):
        scale = np.sqrt(np.mean(np.abs(expected) ** 2))
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def test_products_are_the_derivatives_of_multiply_sum(call):
    operands = Contraction(**CONTRACTIONS[0])
    forward, back, gradient = operands.call(call)
    y, x = (np.asarray(p[0]) + 1j * np.asarray(p[1]) for p in (operands.y, operands.x))
    loss = np.sum((forward * y.conj()).real)
    np.testing.assert_allclose(np.sum(gradient * np.asarray(operands.w)), loss, rtol=1e-4)
    np.testing.assert_allclose(np.sum((back * x.conj()).real), loss, rtol=1e-4)


@pytest.mark.parametrize("planar", [False, True])
def test_paper_handlers(call, planar):
    x, w = random(0, 2, 3, 2, 4, 5), random(1, 2, 3, 2, 5, 6)
    expected = np.einsum("uvnc,uvco->uvno", x[0] + 1j * x[1], w[0] - 1j * w[1])
    if planar:
        x, w = x.transpose(0, 3, 4, 1, 2), w.transpose(0, 4, 3, 1, 2)
        expected = expected.transpose(2, 3, 0, 1)
    name = "paper_multiply_sum_planar" if planar else "paper_multiply_sum"
    re, im = call(name, [(expected.shape, F32)] * 2, *f32(*x, *w))
    np.testing.assert_allclose(np.asarray(re) + 1j * np.asarray(im), expected, atol=1e-5)


@pytest.mark.parametrize("empty", ["n", "c", "o"])
def test_empty_dimensions_give_zeros(call, empty):
    operands = Contraction((2, 3), *(0 if empty == d else 4 for d in "nco"), 1, (3, 1))
    for result in operands.call(call):
        assert not result.any()


@pytest.mark.parametrize("shape", [(0, 4, 4, 2), (2, 0, 4, 2), (2, 4, 0, 2), (2, 4, 4, 0)])
def test_empty_samples_have_a_spectrum_of_zeros(call, shape):
    tables = f32(np.ones((3, (shape[1] + 1) // 2)), np.ones((5, (shape[2] + 1) // 2)))
    box = (3, 3, shape[0], shape[3])
    x = jnp.ones(shape, F32)
    for part in call("analysis", [(box, F32)] * 2, x, *tables):
        assert not np.asarray(part).any()
    (y,) = call("synthesis", [(shape, F32)], *[jnp.ones(box, F32)] * 2, *tables)
    assert y.shape == shape


def test_transform_handler_refuses_wrong_arguments(call):
    x = jnp.ones((2, 4, 6, 3), F32)
    tables = f32(np.ones((3, 2)), np.ones((5, 3)))
    box = [((3, 3, 2, 3), F32)] * 2

    def refuses(message, results, *arguments):
        with pytest.raises(Exception, match=message):
            jax.block_until_ready(call("analysis", results, *arguments))

    refuses("must have the shape.*3, 2.*got.*3, 3", box, x, jnp.ones((3, 3), F32), tables[1])
    refuses(r"2 U \+ 1 rows, got 4", box, x, jnp.ones((4, 2), F32), tables[1])
    refuses("rows of frequencies", [((4, 3, 2, 3), F32)] * 2, x, *tables)
    refuses("re must have the shape", [((3, 4, 2, 3), F32)] * 2, x, *tables)
    refuses("float32 or bfloat16", box, x.astype(jnp.float16), *tables)
    refuses("type of the other part", [box[0], (box[0][0], BF16)], x, *tables)
    refuses("table1 must be float32", box, x, tables[0], tables[1].astype(BF16))
    refuses("samples must have 4 dimensions", box, x[0], *tables)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("groups must divide the channels, got 4", {"groups": np.int64(4)}),
        ("groups must be >= 1, got 0", {"groups": np.int64(0)}),
        ('precision must be "tf32", "tf32x3" or "bf16", got "f32"', {"precision": "f32"}),
        ("call bandjax_paper_multiply_sum", {"variant": "paper"}),
        ('variant must be "tiled", got "fast"', {"variant": "fast"}),
    ],
)
def test_product_handlers_refuse_wrong_attributes(call, message, changes):
    operands = Contraction(**CONTRACTIONS[0])
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(operands.call(call, **changes))


def test_filter_product_refuses_a_small_workspace(call):
    operands = Contraction(**CONTRACTIONS[0])
    size = workspace_bytes(6, 6, 10, 2, 6)
    shapes = [(operands.w.shape, F32), ((size - 1,), jnp.uint8)]
    arguments = *operands.x, *operands.y, operands.outer, operands.inner
    with pytest.raises(Exception, match=f"must have {size} bytes, got {size - 1}"):
        jax.block_until_ready(call("filter_product", shapes, *arguments, **operands.attributes()))
