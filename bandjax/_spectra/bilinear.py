"""Three contractions that are each other's derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Contraction: TypeAlias = Callable[[Any, Any, Any], Any]


def contractions(
    forward: Contraction, input_gradient: Contraction, filter_gradient: Contraction
) -> tuple[Contraction, Contraction, Contraction]:
    """Returns the three with rules for derivatives, each rule made of the two others.

    For a map ``y = forward(how, x, w)``, linear in ``x`` and in ``w``:

        x' = input_gradient(how, y, w)     its transpose in x, at y
        w' = filter_gradient(how, x, y)    its transpose in w, at y

    so that derivatives of any order stay within the three. ``how`` is static, and hashable.
    """

    def differentiable(f: Contraction) -> Any:
        @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
        @functools.wraps(f)
        def call(spec: Any, a: Any, b: Any) -> Any:
            return f(spec, a, b)

        return call

    y_of, x_of, w_of = map(differentiable, (forward, input_gradient, filter_gradient))

    def forward_bwd(spec: Any, res: Any, ct: Any) -> Any:
        x, w = res
        return _typed_like(x, x_of(spec, ct, w)), _typed_like(w, w_of(spec, x, ct))

    def input_gradient_bwd(spec: Any, res: Any, ct: Any) -> Any:
        y, w = res
        return _typed_like(y, y_of(spec, ct, w)), _typed_like(w, w_of(spec, ct, y))

    def filter_gradient_bwd(spec: Any, res: Any, ct: Any) -> Any:
        x, y = res
        return _typed_like(x, x_of(spec, y, ct)), _typed_like(y, y_of(spec, x, ct))

    y_of.defvjp(lambda spec, x, w: (y_of(spec, x, w), (x, w)), forward_bwd)
    x_of.defvjp(lambda spec, y, w: (x_of(spec, y, w), (y, w)), input_gradient_bwd)
    w_of.defvjp(lambda spec, x, y: (w_of(spec, x, y), (x, y)), filter_gradient_bwd)
    return y_of, x_of, w_of


def _typed_like(primal: Any, gradient: Any) -> Any:
    """Operands may be stored in a narrower type than results are; a gradient has its operand's."""
    return jax.tree.map(lambda p, g: g.astype(p.dtype), primal, gradient)
