"""What the handlers of exact convolutions refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import native

pytestmark = native

INFINITE = {"low": np.float64(-np.inf), "high": np.float64(np.inf)}
NO_EPILOGUE = {"bias": False, "residual": False, **INFINITE}


def window_arguments(length=4, **changed):
    """Of a convolution of 9 samples with 3 taps, which is right unless something is changed."""
    half, span = (length + 2) // 2 + 1, length + 2
    sizes = [(2, 9, 4), (3, 4, 6), (2, half, span // 2), (2, half, (length + 1) // 2), (2, half, 3)]
    for place, size in changed.pop("sizes", {}).items():
        sizes[place] = size
    types = changed.pop("types", (jnp.float32,) * 5)
    arrays = [jnp.ones(size, t) for size, t in zip(sizes, types, strict=True)]
    each = {"lengths": [length], "dilation": [1], "first": [-1], "groups": 1, "transposed": False}
    each |= NO_EPILOGUE
    attributes = {
        name: np.array(value, np.int64) if isinstance(value, list) else value
        for name, value in {**each, **changed}.items()
    }
    return arrays, {**attributes, "groups": np.int64(attributes["groups"])}


@pytest.mark.parametrize(
    "changed",
    [
        {},  # the one that is right, lest all be refused
        {"sizes": {0: (2, 9, 1, 4)}},
        {"sizes": {0: (3, 9, 4)}},
        {"sizes": {1: (3, 5, 6)}},
        {"sizes": {1: (2, 4, 6)}},
        {"sizes": {2: (2, 4, 4)}},
        {"sizes": {4: (3, 4, 3)}},
        {"groups": 0},
        {"groups": 4},
        {"transposed": True},
        {"lengths": [0]},
        {"lengths": [4, 4]},
        {"lengths": [5]},
        {"lengths": [2**40]},
        {"dilation": [0]},
        {"dilation": [2]},
        {"first": [2**40]},
        {"types": (jnp.bfloat16, *(jnp.float32,) * 4)},  # not of the result's type
        {"types": (jnp.float32, jnp.bfloat16, *(jnp.float32,) * 3)},
        {"types": (*(jnp.float32,) * 4, jnp.bfloat16)},
    ],
    ids=str,
)
def test_convolutions_by_windows_that_do_not_fit(changed):
    arrays, attributes = window_arguments(**changed)
    run = jax.ffi.ffi_call("bandjax_windows", jax.ShapeDtypeStruct((2, 9, 6), jnp.float32))
    if not changed:
        assert np.isfinite(run(*arrays, **attributes)).all()
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: bandjax: "):
        jax.block_until_ready(run(*arrays, **attributes))


@pytest.mark.parametrize(
    "changed",
    [
        {},  # the one that is right, lest all be refused
        {"x": (2, 9, 1, 4)},
        {"x": (3, 9, 4)},
        {"x": (2, 9, 5)},
        {"x": (2, 0, 4)},
        {"taps": (3, 5, 6)},
        {"taps": (3, 4, 7)},
        {"taps": (0, 4, 6)},
        {"taps": (3, 4, 6), "type": jnp.bfloat16},
        {"groups": 0},
        {"groups": 4},
        {"transposed": True},
        {"strides": [0]},
        {"strides": [2, 2]},
        {"strides": []},
        {"dilation": [0]},
        {"dilation": [2**40]},
        {"first": [2**40]},
        {"first": [0, 0]},
    ],
    ids=str,
)
def test_direct_convolutions_that_do_not_fit(changed):
    attributes = {"strides": [2], "dilation": [1], "first": [-1], "groups": 1, "transposed": False}
    given = {"x": (2, 9, 4), "taps": (3, 4, 6), "type": jnp.float32, **attributes, **changed}
    x, taps = jnp.ones(given.pop("x")), jnp.ones(given.pop("taps"), given.pop("type"))
    named = {
        name: np.array(value, np.int64) if isinstance(value, list) else value
        for name, value in given.items()
    }
    named = {**NO_EPILOGUE, **named, "groups": np.int64(named["groups"])}
    run = jax.ffi.ffi_call("bandjax_direct", jax.ShapeDtypeStruct((2, 5, 6), jnp.float32))
    if not changed:
        assert np.isfinite(run(x, taps, **named)).all()
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: bandjax: "):
        jax.block_until_ready(run(x, taps, **named))


def direct(*operands, **epilogue):
    attributes = {name: np.array([1], np.int64) for name in ("strides", "dilation")}
    attributes |= {"first": np.array([-1], np.int64), "groups": np.int64(1), "transposed": False}
    x, taps = jnp.ones((2, 9, 4)), jnp.ones((3, 4, 6))
    run = jax.ffi.ffi_call("bandjax_direct", jax.ShapeDtypeStruct((2, 9, 6), jnp.float32))
    return jax.block_until_ready(run(x, taps, *operands, **attributes, **NO_EPILOGUE | epilogue))


def windows(*operands, **epilogue):
    arrays, attributes = window_arguments(**epilogue)
    run = jax.ffi.ffi_call("bandjax_windows", jax.ShapeDtypeStruct((2, 9, 6), jnp.float32))
    return jax.block_until_ready(run(*arrays, *operands, **attributes))


def synthesis(*operands, **epilogue):
    part = jnp.ones((3, 2, 2, 6))
    tables = jnp.ones((3, 3)), jnp.ones((3, 2))
    run = jax.ffi.ffi_call("bandjax_synthesis", jax.ShapeDtypeStruct((2, 5, 4, 6), jnp.float32))
    attributes = NO_EPILOGUE | epilogue
    return jax.block_until_ready(run(part, part, *tables, *operands, **attributes))


@pytest.mark.parametrize(
    ("kernel", "like"), [(direct, (2, 9, 6)), (windows, (2, 9, 6)), (synthesis, (2, 5, 4, 6))]
)
def test_epilogues(kernel, like):
    rng = np.random.default_rng(5)
    bias, residual = rng.normal(size=6), rng.normal(size=like)
    plain = np.asarray(kernel())
    both = {"bias": True, "residual": True}
    given = (jnp.asarray(a, jnp.float32) for a in (bias, residual))
    y = kernel(*given, **both, low=np.float64(-3), high=np.float64(4))
    np.testing.assert_allclose(y, np.clip(plain + bias + residual, -3, 4), rtol=1e-6, atol=1e-5)


REFUSED = [
    ((), {"bias": True}),  # an operand that is not there
    ((jnp.ones(6),), {}),  # or that nothing tells of
    ((jnp.ones(5),), {"bias": True}),
    ((jnp.ones((1, 6)),), {"bias": True}),
    ((jnp.ones(6, jnp.bfloat16),), {"bias": True}),
    ((jnp.ones(6),), {"residual": True}),
    ((jnp.ones((2, 9, 4, 6), jnp.bfloat16),), {"residual": True}),
    ((), {"low": np.float64(1), "high": np.float64(0)}),
    ((), {"low": np.float64(np.nan)}),
]


@pytest.mark.parametrize("kernel", [direct, windows, synthesis])
@pytest.mark.parametrize(("operands", "epilogue"), REFUSED, ids=range(len(REFUSED)))
def test_epilogues_that_do_not_fit(kernel, operands, epilogue):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: bandjax: "):
        kernel(*operands, **epilogue)


def test_attributes_of_an_epilogue_come_together():
    part, tables = jnp.ones((3, 2, 2, 6)), (jnp.ones((3, 3)), jnp.ones((3, 2)))
    run = jax.ffi.ffi_call("bandjax_synthesis", jax.ShapeDtypeStruct((2, 5, 4, 6), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: bandjax: "):
        jax.block_until_ready(run(part, part, *tables, low=np.float64(0)))
