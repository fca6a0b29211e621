"""How the convolution layers of a ``flax.linen`` model are met, changed and observed.

Flax calls an interceptor in the place of every module's methods. Ours changes attributes of a
convolution layer, which exists for this call alone, and then calls the method.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
from flax import linen as nn

from bandjax._conv.geometry import ConvGeometry
from bandjax._flax.classes import LinenConv, LinenConvLocal, LinenConvTranspose
from bandjax._flax.layer import AsFlaxSees, found_by_energy, geometry, kind_of, padding_for_flax
from bandjax._flax.linen_layer import BandConv
from bandjax._flax.pools import replaced
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

UNSHARED = "its kernel differs from place to place"
_MARK = "band_limited_already"


class Handler(Protocol):
    """What happens to the convolution layers that are met."""

    def changes(self, layer: ConvLayer) -> dict[str, Any]:
        """Returns the attributes that a ``Conv`` is to have while it is called, or none."""

    def refuse(self, layer: ConvLayer, reason: str) -> None:
        """Notes a layer of another kind."""

    def within(self) -> contextlib.AbstractContextManager[None]:
        """What else is entered with the handler."""


class _Entered(threading.local):
    """The handlers of a thread, the innermost last. As Flax's interceptors are."""

    def __init__(self) -> None:
        self.handlers: list[Handler] = []


_ENTERED = _Entered()


@contextlib.contextmanager
def entered(handler: Handler) -> Iterator[None]:
    """Has the handler meet every convolution layer; of several, the innermost that changes it."""
    handlers = _ENTERED.handlers
    handlers.append(handler)
    first = nn.intercept_methods(_intercept) if len(handlers) == 1 else contextlib.nullcontext()
    try:
        with first, handler.within():
            yield
    finally:
        handlers.remove(handler)


@contextlib.contextmanager
def left() -> Iterator[None]:
    """Leaves every context for a while: no handler meets a layer."""
    handlers, _ENTERED.handlers = _ENTERED.handlers, []
    try:
        yield
    finally:
        _ENTERED.handlers = handlers


def _intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Calls a method of a module; where it is a convolution, as the innermost handler says."""
    module = context.module
    known = isinstance(module, LinenConv | LinenConvTranspose | LinenConvLocal)
    # Lifted transformations call their own methods by other names, then the layer itself.
    if context.method_name != "__call__" or not known or hasattr(module, _MARK):
        return method(*args, **kwargs)
    layer = _layer_of(module)
    if isinstance(module, LinenConv):
        return _call(method, args, kwargs, layer, _changes(layer))
    for handler in reversed(_ENTERED.handlers):
        handler.refuse(layer, TRANSPOSED if isinstance(module, LinenConvTranspose) else UNSHARED)
    return method(*args, **kwargs)


def limited_as(module: nn.Module) -> Any:
    """Returns the layer that a convolution is within the contexts entered; itself outside."""
    if not isinstance(module, LinenConv) or not _ENTERED.handlers:
        return module
    under_way = vars(module).get(_MARK)  # Within the call its attributes are changed already.
    changes = _changes(_layer_of(module)) if under_way is None else under_way
    described = getattr(changes.get("conv_general_dilated"), "__self__", None)
    if isinstance(described, _Described):
        return described
    return _Described(module, changes) if changes else module


def _layer_of(module: Any) -> ConvLayer:
    size = module.kernel_size
    size = (size,) if isinstance(size, int) else tuple(size)
    return ConvLayer("/".join(module.path), size, module)


def _changes(layer: ConvLayer) -> dict[str, Any]:
    """What the innermost handler that selects a layer changes of it."""
    handlers = reversed(_ENTERED.handlers)
    return next(filter(None, (handler.changes(layer) for handler in handlers)), {})


def _call(
    method: Callable[..., Any], args: Any, kwargs: Any, layer: ConvLayer, changes: dict[str, Any]
) -> Any:
    """Calls a layer with some of its attributes changed."""
    reached: list[None] = []
    asked = changes
    convolution = changes.get("conv_general_dilated")
    if convolution is not None:

        def told(*arguments: Any, **options: Any) -> jax.Array:
            reached.append(None)
            return convolution(*arguments, **options)

        changes = {**changes, "conv_general_dilated": told}
    with changed(layer.module, {**changes, _MARK: asked}):
        out = method(*args, **kwargs)
    if convolution is not None and not reached:
        raise TypeError(
            f"{type(layer.module).__name__}.__call__, of layer {shown(layer.path)}, does not "
            "convolve by super().__call__(inputs), so that it cannot be band-limited: leave such "
            "layers out with where="
        )
    return out


@contextlib.contextmanager
def changed(module: nn.Module, changes: dict[str, Any]) -> Iterator[None]:
    """Sets attributes of a frozen module for a while."""
    before = {name: vars(module)[name] for name in changes if name in vars(module)}
    try:
        for name, value in changes.items():
            object.__setattr__(module, name, value)
        yield
    finally:
        for name in changes:
            if name in before:
                object.__setattr__(module, name, before[name])
            else:
                object.__delattr__(module, name)


class _Described:
    """A plain layer with the attributes of a band-limited one.

    Attributes:
      kind: name of the plain layer's class.
    """

    def __init__(self, module: Any, attributes: dict[str, Any]) -> None:
        self._module = module
        self.kind = kind_of(module)
        self.padding = module.padding  # Of the module it is another one during the call.
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def geometry(self, input_shape: tuple[int, ...]) -> ConvGeometry:
        """Returns the geometry of the band-limited layer."""
        size = self.kernel_size
        size = (size,) if isinstance(size, int) else tuple(size)
        kernel_shape = (*size, input_shape[-1] // self.feature_group_count, self.features)
        return geometry(self, input_shape, kernel_shape, self.band)

    def convolve(self, lhs: jax.Array, *args: Any, **options: Any) -> jax.Array:
        """Convolves as ``BandConv`` does, and sows what an ``Energy`` band found."""
        seen = AsFlaxSees(self)
        y = seen.conv_general_dilated(lhs, *args, **options)
        for name, value in found_by_energy(self, seen, lhs.shape).items():
            self._module.sow("intermediates", name, value)
        return y


class Limiting:
    """What a ``with band_limited(...)`` does while it is entered."""

    def __init__(self, limit: Limit, where: Where, strict: bool, pools: bool) -> None:
        self.report = LimitReport()
        self._limit = limit
        self._pools = pools
        self._pool_bound = limit.of_pools(pools)
        self._where = where
        self._chosen = selector(where)
        self._strict = strict

    def changes(self, layer: ConvLayer) -> dict[str, Any]:
        """Returns the attributes of a band-limited layer; none to leave it alone."""
        path, plan = layer.path, self._limit.plan
        reason = refusal(layer)
        if reason is not None:
            self.refuse(layer, reason)
            return {}
        left = plan is not None and path in plan.left_out and self._where is None
        if left or not self._chosen(layer):
            self._exclude(path)
            return {}
        if plan is not None and path not in plan.layers:
            raise ValueError(f"the plan is for another model: it has nothing for {path!r}")
        attributes = self._limit.attributes(layer)
        self.report.limited[path] = attributes["band"]
        if isinstance(layer.module, BandConv):
            return attributes
        described = _Described(layer.module, attributes)
        padding = padding_for_flax(layer.module.padding)
        return {"conv_general_dilated": described.convolve, "padding": padding}

    def within(self) -> contextlib.AbstractContextManager[None]:
        """The exchange of the pools, if it is asked for."""
        return replaced(self._pool_bound) if self._pools else contextlib.nullcontext()

    def refuse(self, layer: ConvLayer, reason: str) -> None:
        """Notes a layer that cannot be band-limited."""
        if not self._chosen(layer):
            self._exclude(layer.path)
        elif layer.path not in self.report.refused:
            self.report.refused[layer.path] = reason
            self.report.tell_refused([layer.path], self._strict, stacklevel=2)

    def _exclude(self, path: str) -> None:
        if path not in self.report.excluded:
            self.report.excluded.append(path)

    def finish(self) -> None:
        """Checks, after the calls, that the model had what the plan has.

        Raises:
          ValueError: a layer of the plan was not met.
        """
        plan = self._limit.plan
        if plan is None or self._where is not None or not self.report.limited:
            return
        if missing := [path for path in plan.layers if path not in self.report.limited]:
            listed = ", ".join(map(repr, missing))
            raise ValueError(
                f"the plan is for another model: {listed} was not called; where= takes a part of "
                "the plan"
            )


def bound(
    model: nn.Module, variables: Any, call: Callable[[Any, jax.Array], Any], observer: Any
) -> Callable[[jax.Array], Any]:
    """Returns a compiled call of the model with its variables, which is observed."""

    @jax.jit
    def run(variables: Any, x: jax.Array) -> Any:
        with entered(observer):
            return jax.tree.leaves(call(model.bind(variables), x))

    return lambda x: run(variables, x)
