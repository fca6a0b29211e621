"""How the convolution layers of a ``flax.nnx`` model are found, exchanged and observed."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

from bandjax._flax.classes import NnxConv, NnxConvTranspose
from bandjax._flax.nnx_layer import BandConv
from bandjax._flax.pools import replace_pools, restore_pools
from bandjax._flax.select import (
    TRANSPOSED,
    ConvLayer,
    Limit,
    LimitReport,
    Where,
    refusal,
    selector,
    shown,
)


def convolutions(model: nnx.Module) -> Iterator[ConvLayer]:
    """Yields every convolution layer of a model once, by its first path."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, NnxConv | NnxConvTranspose):
            size = module.kernel_size
            size = (size,) if isinstance(size, int) else tuple(size)
            yield ConvLayer(".".join(map(str, path)), size, module)


def limit_model(
    model: nnx.Module, limit: Limit, where: Where, strict: bool, pools: bool
) -> LimitReport:
    """Makes the convolution layers of a model band-limited, in place; see ``nnx.band_limit``."""
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model must be a flax.nnx module, got {model!r}; for flax.linen there is "
            "bandjax.linen.band_limited"
        )
    chosen = selector(where)
    layers = list(convolutions(model))
    report = LimitReport()
    selected: list[ConvLayer] = []
    for layer in layers:
        transposed = isinstance(layer.module, NnxConvTranspose)
        reason = TRANSPOSED if transposed else refusal(layer)
        left = limit.plan is not None and layer.path in limit.plan.left_out
        if not chosen(layer) or (left and where is None and reason is None):
            report.excluded.append(layer.path)
        elif reason is not None:
            report.refused[layer.path] = reason
        else:
            selected.append(layer)
    if limit.plan is not None:
        shapes = {
            layer.path: tuple(layer.module.kernel_shape)
            for layer in layers
            if isinstance(layer.module, NnxConv)
        }
        difference = limit.plan.difference(shapes, [layer.path for layer in selected])
        if difference is not None:
            raise ValueError(f"the plan is for another model: {difference}")
    if not selected and not report.refused:
        found = ", ".join(shown(layer.path) for layer in layers) or "none"
        raise ValueError(
            f"no convolution layer is selected (those of the model: {found}); layers of flax.linen "
            "within nnx.bridge.ToNNX are limited by bandjax.linen.band_limited around the call"
        )
    # Everything that can fail comes before the first change.
    bound = limit.of_pools(pools)
    changes = [limit.attributes(layer) for layer in selected]
    report.tell_refused(report.refused, strict, stacklevel=3)
    if pools:
        replace_pools(model, bound)
    else:
        restore_pools(model)
    for layer, attributes in zip(selected, changes, strict=True):
        module = layer.module
        if not isinstance(module, BandConv):
            module.conv_general_dilated = jax.lax.conv_general_dilated
            kind: Any = type(module)
            object.__setattr__(module, "__class__", _band_limited(kind))
            module.param_domain, module.spectral_decay = "spatial", 0.0
        for name, value in attributes.items():
            setattr(module, name, value)
        report.limited[layer.path] = attributes["band"]
    return report


@functools.cache
def _band_limited(kind: Any) -> Any:
    """Returns the band-limited class of a class of layers.

    A subclass of ``flax.nnx.Conv`` keeps its methods, and has ``BandConv`` where it had ``Conv``.
    If its own ``__call__`` convolves in another way than by ``super().__call__``, calls raise.
    """
    if kind is NnxConv:
        return BandConv
    reached: contextvars.ContextVar[bool] = contextvars.ContextVar("reached")

    def convolve(self: Any, *args: Any, **options: Any) -> Any:
        reached.set(True)
        return BandConv.__call__(self, *args, **options)

    def call(self: Any, *args: Any, **options: Any) -> Any:
        token = reached.set(False)
        try:
            out = super(limited, self).__call__(*args, **options)
            if not reached.get():
                raise TypeError(
                    f"{kind.__name__}.__call__ does not convolve by super().__call__(inputs), so "
                    "that it cannot be band-limited: leave such layers out with where="
                )
            return out
        finally:
            reached.reset(token)

    metaclass: Any = type(BandConv)
    convolution = metaclass("BandConv", (BandConv,), {"__call__": convolve})

    def reduce(self: Any, protocol: Any) -> Any:
        state = super(limited, self).__reduce_ex__(protocol)[2]
        return _empty, (kind,), state

    body = {
        "__call__": call,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": reduce,
    }
    limited: Any = type(kind)(f"Band{kind.__name__}", (kind, convolution), body)
    return limited


def _empty(kind: Any) -> Any:
    """A band-limited layer without its state: the class has no name to be pickled by."""
    limited = _band_limited(kind)
    return object.__new__(limited)


def observed(
    model: nnx.Module, call: Callable[[Any, jax.Array], Any], observer: Any
) -> Callable[[jax.Array], Any]:
    """Returns a compiled call of a copy of the model, in inference mode, that is observed."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, x: jax.Array) -> Any:
        copy = nnx.merge(graph, state)
        copy.eval()
        for layer in list(convolutions(copy)):
            if isinstance(layer.module, NnxConvTranspose):
                observer.refuse(layer, TRANSPOSED)
                continue
            for name, value in observer.changes(layer).items():
                setattr(layer.module, name, value)
        return jax.tree.leaves(call(copy, x))

    return functools.partial(run, state)
