"""Spectral pooling in the place of the pools that existing models call.

Flax's ``max_pool``, ``avg_pool`` and ``min_pool`` are functions, which all call one other function
of their module. That one is exchanged, once, for one that looks whether it is called within
:func:`replaced`, and else does what Flax's does.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from flax.linen import pooling

from bandjax._bands.band import Bound, Nyquist
from bandjax._conv.pool import spectral_pool

_flaxs_own: Any = pooling.pool
# The bound of the pools under way, as a tuple of one; None outside of `replaced`.
_BOUND: contextvars.ContextVar[tuple[Any] | None] = contextvars.ContextVar("bound", default=None)


def _pool(
    inputs: jax.Array,
    init: Any,
    reduce_fn: Any,
    window_shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    padding: Any,
) -> jax.Array:
    """Flax's ``pool``, or spectral pooling. A pool without strides loses nothing, and stays."""
    bound = _BOUND.get()
    strided = max(strides or (1,)) > 1 and len(window_shape) <= 3
    if bound is None or not strided:
        y: jax.Array = _flaxs_own(inputs, init, reduce_fn, window_shape, strides, padding)
        return y
    y = spectral_pool(inputs, window_shape, strides, padding, band=bound[0])
    return y * math.prod(window_shape) if reduce_fn is jax.lax.add else y


@contextlib.contextmanager
def replaced(band: Bound) -> Iterator[None]:
    """While it lasts, strided pools of Flax are spectral ones, within ``band`` too."""
    pooling.pool = _pool
    token = _BOUND.set((band.band if isinstance(band, Nyquist) else band,))
    try:
        yield
    finally:
        _BOUND.reset(token)


def replace_pools(model: nnx.Module, band: Bound) -> None:
    """Makes the strided pools that a model's ``__call__`` reaches spectral ones, in place.

    Raises:
      TypeError: the model cannot be called.
    """
    kind: Any = type(model)
    if not any("__call__" in vars(base) for base in kind.__mro__):
        raise TypeError(f"pools=True needs a model with a __call__ method, got {kind.__name__}")
    if hasattr(kind, "_pools_of"):
        kind = kind._pools_of
    object.__setattr__(model, "__class__", _with_pools(kind))
    model.pool_band = band  # type: ignore[attr-defined]


def restore_pools(model: nnx.Module) -> None:
    """Gives a model, and all within it, their own pools back, in place."""
    for _, module in list(nnx.iter_modules(model)):
        kind: Any = type(module)
        if hasattr(kind, "_pools_of"):
            object.__setattr__(module, "__class__", kind._pools_of)
            del module.pool_band  # type: ignore[attr-defined]


@functools.cache
def _with_pools(kind: Any) -> Any:
    """Returns the subclass of a model's class whose calls have spectral pools."""

    def call(self: Any, *args: Any, **options: Any) -> Any:
        with replaced(self.pool_band):
            return kind.__call__(self, *args, **options)

    def reduce(self: Any, protocol: Any) -> Any:
        return _empty, (kind,), kind.__reduce_ex__(self, protocol)[2]

    body = {
        "__call__": call,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": reduce,
        "_pools_of": kind,
    }
    return type(kind)(kind.__name__, (kind,), body)


def _empty(kind: Any) -> Any:
    """A model without its state: its class has no name to be pickled by."""
    return object.__new__(_with_pools(kind))
