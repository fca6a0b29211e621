"""What the handlers of exact convolutions refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import native

pytestmark = native


def window_arguments(length=4, **changed):
    """Of a convolution of 9 samples with 3 taps, which is right unless something is changed."""
    half, span = (length + 2) // 2 + 1, length + 2
    sizes = [(2, 9, 4), (3, 4, 6), (2, half, span // 2), (2, half, (length + 1) // 2), (2, half, 3)]
    for place, size in changed.pop("sizes", {}).items():
        sizes[place] = size
    types = changed.pop("types", (jnp.float32,) * 5)
    arrays = [jnp.ones(size, t) for size, t in zip(sizes, types, strict=True)]
    each = {"lengths": [length], "dilation": [1], "first": [-1], "groups": 1, "transposed": False}
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
    named["groups"] = np.int64(named["groups"])
    run = jax.ffi.ffi_call("bandjax_direct", jax.ShapeDtypeStruct((2, 5, 6), jnp.float32))
    if not changed:
        assert np.isfinite(run(x, taps, **named)).all()
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: bandjax: "):
        jax.block_until_ready(run(x, taps, **named))
