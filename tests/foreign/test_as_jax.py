"""What users of ``jax.lax.conv_general_dilated`` do, on the stand-in for it.

With every frequency kept it must give what ``lax`` gives, and its derivatives, under every
transformation. The arguments are those that JAX's own tests go through. Few cases run by default;
``make foreign`` runs all.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import METHODS, chosen
from choices import covering

import bandjax

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.thin(48)]

SHAPES = {  # input (N, C, *spatial) and kernel (O, I, *taps), and groups
    "2-D": ((2, 3, 9, 10), (4, 3, 3, 2), 1),
    "2-D of one example": ((1, 4, 7, 7), (6, 4, 1, 1), 1),
    "2-D groups": ((2, 6, 8, 9), (4, 3, 3, 3), 2),
    "2-D depthwise": ((2, 4, 8, 9), (8, 1, 3, 3), 4),
    "1-D": ((3, 2, 12), (4, 2, 5), 1),
    "3-D": ((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), 1),
    "larger kernel than map": ((2, 3, 4, 3), (2, 3, 6, 5), 1),
    "no examples": ((0, 3, 9, 10), (4, 3, 3, 2), 1),
}
PADDINGS = ("SAME", "VALID", "same_lower", "more", "uneven", "negative")
STRIDES, LHS, RHS = ("one", "two", "mixed"), ("none", "dilated"), ("none", "dilated")
LAYOUTS = {
    "NC": lambda s: ("NC" + s, "OI" + s, "NC" + s),
    "N-C": lambda s: ("N" + s + "C", s + "IO", "N" + s + "C"),
    "C-N": lambda s: ("C" + s + "N", "I" + s + "O", "CN" + s),
    "mixed": lambda s: (s + "NC", "O" + s + "I", "N" + s + "C"),
}


def case_of(shape, padding, stride, lhs, rhs, layout):
    """Operands and the arguments of ``lax``."""
    x, w, groups = SHAPES[shape]
    rank = len(x) - 2
    mixed = tuple((1, 2, 3)[i % 3] for i in range(rank))
    options = {
        "window_strides": {"one": (1,) * rank, "two": (2,) * rank, "mixed": mixed}[stride],
        "padding": {
            "more": [(5, 4)] * rank,
            "uneven": [(i, 2) for i in range(rank)],
            "negative": [(-1, 2), (2, -1), (1, 0)][:rank],
        }.get(padding, padding),
        "rhs_dilation": (1,) * rank if rhs == "none" else mixed[::-1],
        "feature_group_count": groups,
    }
    if lhs == "dilated":
        options["lhs_dilation"] = mixed
    numbers = LAYOUTS[layout]("DHW"[3 - rank :])
    plain = LAYOUTS["NC"]("DHW"[3 - rank :])
    options["dimension_numbers"] = numbers
    rng = np.random.default_rng((len(shape), rank))
    operands = []
    for size, given, wanted in zip((x, w), plain, numbers, strict=False):
        a = rng.normal(size=size)
        operands.append(jnp.asarray(np.transpose(a, [given.index(letter) for letter in wanted])))
    return operands, options


def both(method, options):
    ours = bandjax.conv_general_dilated(bandjax.Compression(0.0), **chosen(method))
    return [functools.partial(f, **options) for f in (ours, jax.lax.conv_general_dilated)]


def assert_equal(got, expected, bound=1e-11):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert oracle.gap(np.asarray(one), np.asarray(other)) <= bound


CASES = covering(SHAPES, PADDINGS, STRIDES, LHS, RHS, LAYOUTS, METHODS)


@pytest.mark.parametrize(("shape", "padding", "stride", "lhs", "rhs", "layout", "method"), CASES)
def test_values_and_transposes(shape, padding, stride, lhs, rhs, layout, method):
    operands, options = case_of(shape, padding, stride, lhs, rhs, layout)
    if lhs == "dilated" and isinstance(options["padding"], str):
        options["padding"] = [(2, 1)] * len(options["window_strides"])  # By name lax refuses it.
    ours, dense = both(method, options)

    def run(f):
        y, back = jax.vjp(f, *operands)
        return y, back(jnp.cos(y))

    got, expected = jax.jit(lambda: (run(ours), run(dense)))()
    assert_equal(got, expected)


AXES = ((0, None), (None, 0), (0, 0), (1, None), (2, 1), (None, 3), (3, 2))


@pytest.mark.parametrize(
    ("axes", "shape", "layout", "method"),
    covering(AXES, ["2-D", "2-D groups", "2-D depthwise"], LAYOUTS, METHODS),
)
def test_batching(axes, shape, layout, method):
    operands, options = case_of(shape, "uneven", "mixed", "none", "none", layout)
    operands = [
        a if axis is None else jnp.stack([a, 2 * a, -a], axis)
        for a, axis in zip(operands, axes, strict=True)
    ]
    ours, dense = both(method, options)

    def run(f):
        mapped = jax.vmap(f, axes)
        y, back = jax.vjp(mapped, *operands)
        # Under a second map too, of size one.
        again = jax.vmap(lambda x: mapped(x, operands[1]), 0)(operands[0][None])
        return y, back(jnp.cos(y)), again

    got, expected = jax.jit(lambda: (run(ours), run(dense)))()
    assert_equal(got, expected)


@pytest.mark.parametrize(
    ("padding", "strides", "flip", "method"),
    covering(["SAME", "VALID", "explicit"], [(1, 1), (2, 3)], [False, True], METHODS),
)
def test_transposed_convolutions(padding, strides, flip, method):
    """``jax.lax.conv_transpose``, and the stand-in given the arguments that it comes to."""
    rng = np.random.default_rng(3)
    x, w = (jnp.asarray(rng.normal(size=s)) for s in ((2, 5, 6, 3), (3, 4, 3, 2)))
    given = [(1, 2), (2, 1)] if padding == "explicit" else padding
    kernel = jnp.swapaxes(w, 2, 3) if flip else w
    expected = jax.lax.conv_transpose(x, kernel, strides, given, transpose_kernel=flip)
    pads = []
    for taps, stride in zip((3, 4), strides, strict=True):
        total = taps + stride - 2 + max(taps - stride, 0) * (padding == "VALID")
        low = taps - 1 if stride > taps - 1 else -(-total // 2)
        low = taps - 1 if padding == "VALID" else low
        pads.append((low, total - low))
    if padding == "explicit":
        pads = given
    used = w[::-1, ::-1] if flip else w
    ours = bandjax.conv_general_dilated(bandjax.Compression(0.0), **chosen(method))
    got = ours(
        x, used, (1, 1), pads, lhs_dilation=strides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert_equal(got, expected)


@pytest.mark.parametrize(
    ("dtype", "preferred", "method"),
    covering(["float32", "bfloat16", "float16"], [None, "float32", "float64"], METHODS),
)
def test_preferred_element_type(dtype, preferred, method):
    operands, options = case_of("2-D", "SAME", "one", "none", "none", "N-C")
    options["preferred_element_type"] = preferred
    operands = [a.astype(dtype) for a in operands]
    ours, dense = both(method, options)
    bound = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 5e-3}[dtype]
    assert_equal(ours(*operands), dense(*operands), 4 * bound)


def test_what_it_has_not_is_refused_in_words():
    operands, options = case_of("2-D", "SAME", "one", "none", "none", "NC")
    ours, _ = both("auto", options)
    with pytest.raises(ValueError, match="batch_group_count must be 1"):
        ours(*operands, batch_group_count=2)
    with pytest.raises(ValueError, match="feature"):
        ours(operands[0][:, :2], operands[1])
