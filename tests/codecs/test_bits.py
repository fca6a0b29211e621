"""Booleans in bits, and what the packing kernels refuse."""

from __future__ import annotations

import block_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandjax._native import extension
from bandjax.codecs._bits import pack_bits, unpack_bits

pytestmark = pytest.mark.thin(3)


@pytest.mark.parametrize("way", ["native", "xla"])
@pytest.mark.parametrize(
    "shape", [(3, 4, 5, 7), (1, 2048), (2, 31), (5, 33), (2, 1000, 3)], ids=str
)
def test_a_word_is_a_column_of_32_rows(shape, way):
    flags = np.random.default_rng(0).random(shape) < 0.4
    with block_oracle.kernels(way):
        words = np.asarray(pack_bits(jnp.asarray(flags)))
        back = np.asarray(unpack_bits(jnp.asarray(words), shape))
    rows = flags.reshape(shape[0], -1)
    width = -(-rows.shape[1] // 32)
    filled = np.zeros((shape[0], 32 * width), np.uint64)
    filled[:, : rows.shape[1]] = rows
    weights = 2 ** np.arange(32, dtype=np.uint64)
    expected = (filled.reshape(-1, 32, width) * weights[None, :, None]).sum(1)
    np.testing.assert_array_equal(words, expected)
    np.testing.assert_array_equal(back, flags)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("way", ["native", "xla"])
def test_numbers_count_that_are_above_zero(way, dtype):
    values = np.random.default_rng(1).integers(-2, 3, (3, 5, 211)).astype(np.float32)
    if dtype != "int8":
        values[0, 0, :4] = np.nan, -0.0, np.inf, -np.inf
    with block_oracle.kernels(way):
        words = pack_bits(jnp.asarray(values).astype(dtype))
        back = np.asarray(unpack_bits(words, values.shape))
    np.testing.assert_array_equal(back, values > 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": jnp.zeros((2, 1, 8, 8))}, "samples must have 5 axes"),
        ({"x": jnp.zeros((2, 1, 8, 8, 4), jnp.bfloat16)}, "samples must be float32"),
        ({"layout": jnp.zeros((9, 3), jnp.int32)}, "each in the layout"),
        ({"layout": jnp.full((64, 3), 40, jnp.int32)}, "a place for each value"),
        ({"matrix": jnp.zeros((8, 7))}, "a cosine matrix must be square"),
    ],
)
def test_the_kernel_refuses_what_does_not_fit(change, said):
    if not extension.available("cpu"):
        pytest.skip("no native kernels")
    x, matrix = change.get("x", jnp.zeros((2, 1, 8, 8, 4))), change.get("matrix", jnp.eye(8))
    layout = change.get("layout", jnp.zeros((64, 3), jnp.int32))
    shapes = [jax.ShapeDtypeStruct(s, jnp.uint32) for s in ((2, 1, 5, 4), (2,))]
    with pytest.raises(jax.errors.JaxRuntimeError, match=said):
        jax.ffi.ffi_call("bandjax_pack", shapes)(x, jnp.eye(1), matrix, jnp.eye(8), layout)
