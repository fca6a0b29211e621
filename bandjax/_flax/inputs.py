"""What reaches the convolution layers of a model while it runs, seen through their hooks."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._bands.boxes import Grid
from bandjax._conv.geometry import ConvGeometry, canonical_padding, conv_geometry
from bandjax._conv.lax import conv_general_dilated
from bandjax._flax.layer import OBSERVER, WithPadding, padding_for_flax
from bandjax._flax.select import ConvLayer, Where, refusal, selector, shown
from bandjax._optional import report_module


def run_batches(
    batches: Iterable[Any], run: Callable[[Any], Any], title: str | None
) -> tuple[int, ...]:
    """Runs every batch, and returns the shape of one example.

    Args:
      batches: arrays, ``(batch, ...)``, or tuples or lists of which the first is that.
      run: called with each.
      title: of a bar, which needs rich; None for no bar.

    Raises:
      TypeError: ``batches`` is a single array, or nothing to go through.
      ValueError: there is no batch, one has no example, or examples differ in shape.
    """
    if hasattr(batches, "shape") or not isinstance(batches, Iterable):
        raise TypeError(
            "batches must be an iterable of arrays (a list of one, for one batch), got "
            f"{type(batches).__name__}"
        )
    if title is not None:
        batches = report_module("rich.progress").track(batches, title)
    input_shape: tuple[int, ...] | None = None
    for batch in batches:
        whole = jnp.shape(batch[0] if isinstance(batch, tuple | list) else batch)
        if 0 in whole[:1]:
            raise ValueError(f"batches must hold at least one example each, got shape {whole}")
        shape = whole[1:]
        if input_shape not in (None, shape):
            raise ValueError(
                f"batches must have examples of one shape, got {shape} after {input_shape}"
            )
        input_shape = shape
        jax.block_until_ready(run(batch))
    jax.effects_barrier()
    if input_shape is None:
        raise ValueError("batches must hold at least one batch, got none")
    return input_shape


def observed(
    model: Any, variables: Any, call: Callable[..., Any], observer: Observations, name: str
) -> Callable[[Any], Any]:
    """Returns a compiled call of a model, in inference mode, whose layers are observed.

    ``name`` is that of the public function that asks.
    """
    try:
        from flax import linen, nnx
    except ImportError as error:
        raise ImportError(f"bandjax.{name} needs Flax: pip install 'bandjax[flax]'") from error
    if isinstance(model, nnx.Module):
        from bandjax._flax import nnx_models

        if variables is not None:
            raise TypeError("variables are those of a flax.linen model, this is one of flax.nnx")
        return nnx_models.observed(model, call, observer)
    if isinstance(model, linen.Module):
        from bandjax._flax import linen_models

        if variables is None:
            raise TypeError("variables must be given with a flax.linen model, got None")
        return linen_models.bound(model, variables, call, observer)
    raise TypeError(f"model must be a module of flax.nnx or flax.linen, got {model!r}")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What all calls of a layer have in common.

    Attributes:
      kernel_shape: ``(*taps, in / groups, out)``.
      size: of the input's spatial axes; REFLECT's geometry has that of the reflected one.
      geometry: of one example, with every frequency kept.
      dtype: of the input.
    """

    kernel_shape: tuple[int, ...]
    size: tuple[int, ...]
    geometry: ConvGeometry
    dtype: np.dtype[Any]

    @property
    def grid(self) -> Grid:
        """Points on the circle of each axis."""
        return self.geometry.grid

    @property
    def strides(self) -> tuple[int, ...]:
        """Points between outputs."""
        return tuple(axis.stride for axis in self.geometry.axes)


class Observations(abc.ABC):
    """Collects what the convolution layers of a model are called with.

    Attributes:
      selected: paths of the layers to observe, in the order in which they were met.
      left_out: why other layers have no plan.
      seen: what the calls of each layer have in common.
      calls: how often each layer was traced.
      met: paths of the layers that :meth:`note` was told of.
    """

    def __init__(self, where: Where, grid: Any) -> None:
        self.selected: dict[str, None] = {}
        self.left_out: dict[str, str] = {}
        self.seen: dict[str, Seen] = {}
        self.calls: dict[str, int] = {}
        self.met: set[str] = set()
        self._chosen = selector(where)
        self._grid = tuple(grid) if isinstance(grid, list) else grid
        self._lock = threading.Lock()

    @abc.abstractmethod
    def watch(self, path: str, geometry: ConvGeometry, x: jax.Array) -> jax.Array:
        """Returns the input of a layer, having arranged that it is looked at when it is there.

        Args:
          path: of the layer.
          geometry: of this call, with every frequency kept.
          x: its input, ``(batch, *spatial, channels)``.
        """

    @abc.abstractmethod
    def add(self, path: str, *values: np.ndarray) -> None:
        """Adds what one call gave, when it runs; one call at a time."""

    def note(self, path: str, *values: Any) -> None:
        """:meth:`add`, as a callback of JAX."""
        with self._lock:
            self.met.add(path)
            self.add(path, *(np.asarray(value, np.float64) for value in values))

    def changes(self, layer: ConvLayer) -> dict[str, Any]:
        """Returns the attributes with which a layer is observed; none to leave it alone."""
        reason = refusal(layer)
        if reason is not None or not self._chosen(layer):
            self.refuse(layer, reason or "not selected")
            return {}
        self.selected[layer.path] = None
        module: Any = layer.module
        inner = module.conv_general_dilated or jax.lax.conv_general_dilated
        if hasattr(module, "band"):  # A BandConv, of either interface.
            return {OBSERVER: _Observer(self, layer.path, module.grid)}
        observer = _Observer(self, layer.path, getattr(inner, "grid", None))
        padding = padding_for_flax(module.padding)
        if padding is not module.padding and inner is jax.lax.conv_general_dilated:
            inner = conv_general_dilated(None)  # Which pads as Flax does.
        convolution = WithPadding(_Observed(observer, inner), module.padding)
        return {"conv_general_dilated": convolution, "padding": padding}

    def refuse(self, layer: ConvLayer, reason: str) -> None:
        """Notes a layer that has no plan."""
        self.left_out[layer.path] = reason

    def within(self) -> contextlib.AbstractContextManager[None]:
        """Nothing else is entered."""
        return contextlib.nullcontext()

    def grid_of(self, own: Any, padding: Any) -> Any:
        """The grid of a layer: what the caller asks for, or else its own."""
        return own if self._grid is None or canonical_padding(padding) == "CIRCULAR" else self._grid

    def see(self, path: str, now: Seen) -> None:
        """Notes the geometry of a call, while it is traced."""
        before = self.seen.setdefault(path, now)
        self.calls[path] = self.calls.get(path, 0) + 1
        if before != now:
            raise ValueError(
                f"layer {shown(path)} is called on inputs of size {before.size} and {now.size}, "
                "but a plan has one box for each layer: leave it out with where="
            )

    def check(self) -> None:
        """Checks that there are layers, and that each was called.

        Raises:
          ValueError: one is missing.
        """
        if not self.selected:
            left = ", ".join(f"{shown(path)}: {why}" for path, why in self.left_out.items())
            raise ValueError(f"the model has no convolution layer to calibrate ({left or 'none'})")
        idle = [path for path in self.selected if path not in self.met]
        for what, paths in (
            ("these convolution layers are never called", (p for p in idle if p not in self.seen)),
            ("the loss does not depend on these convolution layers", idle),
        ):
            if names := ", ".join(map(shown, paths)):
                raise ValueError(f"{what}: {names}; leave them out with where=")


@dataclasses.dataclass(frozen=True, eq=False)
class _Observer:
    """Sees the arguments of one layer's convolution; their padding is the layer's own."""

    observations: Observations
    path: str
    grid: Any

    def __call__(
        self, lhs: jax.Array, rhs: jax.Array, strides: Any, padding: Any, **options: Any
    ) -> jax.Array:
        """Notes the geometry of a call while it is traced; returns the input to go on with."""
        geometry = conv_geometry(
            lhs.shape,
            rhs.shape,
            strides=strides,
            padding=padding,
            input_dilation=options["lhs_dilation"],
            kernel_dilation=options["rhs_dilation"],
            feature_group_count=options["feature_group_count"],
            grid=self.observations.grid_of(self.grid, padding),
        )
        one = dataclasses.replace(geometry, batch=(1,))
        seen = Seen(rhs.shape, lhs.shape[1:-1], one, lhs.dtype)
        self.observations.see(self.path, seen)
        return self.observations.watch(self.path, geometry, lhs)


@dataclasses.dataclass(frozen=True, eq=False)
class _Observed:
    """A convolution whose arguments are observed."""

    observer: _Observer
    convolution: Any

    def __call__(
        self, lhs: jax.Array, rhs: jax.Array, strides: Any, padding: Any, **options: Any
    ) -> jax.Array:
        lhs = self.observer(lhs, rhs, strides, padding, **options)
        return self.convolution(lhs, rhs, strides, padding, **options)


def spectrum_of(x: jax.Array, geometry: ConvGeometry, *, reflect: bool = True) -> jax.Array:
    """Returns the spectrum of samples of the input, on the half spectrum of the grid.

    Args:
      x: ``(batch, *spatial, channels)``, before any reflection.
      geometry: where its samples lie.
      reflect: whether to continue it as REFLECT padding does, where that is the layer's.

    Returns:
      ``(batch, g_1, ..., g_last // 2 + 1, channels)``, complex64, or complex128 of float64.
    """
    x = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
    added = [axis.size - h for axis, h in zip(geometry.axes, x.shape[1:-1], strict=True)]
    if reflect and any(added):  # REFLECT's geometry is that of the reflected input.
        x = jnp.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in added), (0, 0)], mode="reflect")
    dilations = tuple(axis.input_dilation for axis in geometry.axes)
    if max(dilations) > 1:
        config = [(0, 0, 0), *((0, 0, a - 1) for a in dilations), (0, 0, 0)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), config)
    return jnp.fft.rfftn(x, s=geometry.grid, axes=tuple(range(1, x.ndim - 1)))
