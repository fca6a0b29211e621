"""Calibration: the spectral energy that reaches each convolution layer, and boxes that hold it."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._bands.band import Energy, at_strides
from bandjax._bands.boxes import Grid, smallest_box
from bandjax._bands.frequencies import hermitian_weights
from bandjax._bands.plan import LayerPlan, Plan
from bandjax._conv.geometry import ConvGeometry, canonical_padding, conv_geometry
from bandjax._conv.lax import conv_general_dilated
from bandjax._flax.layer import OBSERVER, WithPadding, padding_for_flax
from bandjax._flax.select import ConvLayer, Where, refusal, selector, shown
from bandjax._optional import report_module


def calibrate(
    model: Any,
    batches: Iterable[Any],
    band: Energy,
    *,
    variables: Any = None,
    where: Where = None,
    grid: int | Sequence[int] | None = None,
    call: Callable[[Any, jax.Array], Any] | None = None,
    progress: bool = False,
) -> Plan:
    """Finds one static band for each convolution layer of a model, by the energy of its inputs.

    The model runs on every batch as it is, in inference mode, while the inputs of its convolutions
    are observed. The spectral energy ``sum c_u |X[u]|^2`` of each layer's input, summed over all
    batches, examples and channels (``c_u`` the Hermitian weights), decides: the layer's box is the
    smallest of ``band.boxes(grid)`` that holds ``band.share`` of the total, or the largest of them
    where none does. A layer that sees nothing but zeros keeps the largest.

    A layer that is called several times, one that is shared for instance, has the sum of the
    energies of all its calls. The layers that ``vmap`` or ``scan`` stacks are one layer.

    Args:
      model: a ``flax.nnx`` module, which is not changed: a copy of it runs, after its ``eval()``;
        or a ``flax.linen`` module, with ``variables``. Layers are ``Conv`` and ``BandConv``.
      batches: inputs, each ``(batch, ...)``, or tuples or lists of which the first is that. All
        examples have one shape; the number of examples may differ.
      band: the share of energy to keep; ``at_most`` bounds every box.
      variables: of a ``flax.linen`` model: parameters and the other collections.
      where: which layers, see :func:`bandjax.nnx.band_limit`. None for all.
      grid: see :func:`bandjax.band_conv`; by default each layer's own. Periodic layers keep theirs.
      call: how the model is called, ``call(model, x)``; by default ``model(x)``. In ``flax.linen``
        the model is bound to its variables, so that ``lambda model, x: model(x, train=False)`` is
        an example of use. It is compiled by ``jax.jit``.
      progress: show a bar, which needs rich.

    Returns:
      A :class:`bandjax.Plan`.

    Raises:
      TypeError: an argument of the wrong type, ``batches`` a single array for instance.
      ValueError: no batch; examples of different shapes; no convolution layer is selected; a layer
        is never called, or called on inputs of different sizes; energy that is not finite.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(
      ...     nnx.Conv(1, 4, (3,), rngs=rngs), nnx.relu, nnx.Conv(4, 4, (3,), rngs=rngs)
      ... )
      >>> t = jnp.arange(32) / 32
      >>> batches = [jnp.sin(2 * jnp.pi * k * t)[None, :, None] for k in (1, 2)]
      >>> plan = calibrate(model, batches, Energy(0.9))
      >>> {path: (layer.grid, layer.modes) for path, layer in plan.layers.items()}
      {'layers.0': ((33,), (2,)), 'layers.2': ((33,), (2,))}

    Source: Dziedzic et al. (ICML 2019), section 3.3 (the energy) and 4.1 (found once, then static).
    """
    if not isinstance(band, Energy):
        raise TypeError(f"band must be a bandjax.Energy, got {band!r}")
    if hasattr(batches, "shape") or not isinstance(batches, Iterable):
        raise TypeError(
            "batches must be an iterable of arrays (a list of one, for one batch), got "
            f"{type(batches).__name__}"
        )
    run, observer = _observed(model, variables, call, where, grid)
    if progress:
        batches = report_module("rich.progress").track(batches, "calibrating")
    input_shape: tuple[int, ...] | None = None
    for batch in batches:
        x = jnp.asarray(batch[0] if isinstance(batch, tuple | list) else batch)
        if input_shape not in (None, x.shape[1:]):
            raise ValueError(
                f"batches must have examples of one shape, got {x.shape[1:]} after {input_shape}"
            )
        input_shape = x.shape[1:]
        jax.block_until_ready(run(x))
    jax.effects_barrier()
    if input_shape is None:
        raise ValueError("batches must hold at least one batch, got none")
    return Plan(observer.plans(band), input_shape, band, observer.left_out)


def _observed(
    model: Any, variables: Any, call: Callable[..., Any] | None, where: Where, grid: Any
) -> tuple[Callable[[jax.Array], Any], _Observations]:
    """Returns a compiled call of an observed model, and what collects the observations."""
    try:
        from flax import linen, nnx
    except ImportError as error:
        raise ImportError("bandjax.calibrate needs Flax: pip install 'bandjax[flax]'") from error
    grid = tuple(grid) if isinstance(grid, list) else grid
    call = (lambda model, x: model(x)) if call is None else call
    if isinstance(model, nnx.Module):
        from bandjax._flax import nnx_models

        if variables is not None:
            raise TypeError("variables are those of a flax.linen model, this is one of flax.nnx")
        observer = _Observations(where, grid)
        return nnx_models.observed(model, call, observer), observer
    if isinstance(model, linen.Module):
        from bandjax._flax import linen_models

        if variables is None:
            raise TypeError("variables must be given with a flax.linen model, got None")
        observer = _Observations(where, grid)
        return linen_models.bound(model, variables, call, observer), observer
    raise TypeError(f"model must be a module of flax.nnx or flax.linen, got {model!r}")


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What all calls of a layer have in common."""

    kernel_shape: tuple[int, ...]
    size: tuple[int, ...]
    grid: Grid
    strides: tuple[int, ...]


class _Observations:
    """Collects what the convolution layers of a model are called with.

    Attributes:
      selected: paths of the layers to observe, in the order in which they were met.
      left_out: why other layers have no plan.
    """

    def __init__(self, where: Where, grid: Any) -> None:
        self.selected: dict[str, None] = {}
        self.left_out: dict[str, str] = {}
        self._chosen = selector(where)
        self._grid = grid
        self._seen: dict[str, _Seen] = {}
        self._power: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

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

    def grid_of(self, own: Any, padding: Any) -> Any:
        """The grid of a layer: what the caller of calibrate asks for, or else its own."""
        return own if self._grid is None or canonical_padding(padding) == "CIRCULAR" else self._grid

    def see(self, path: str, now: _Seen) -> None:
        """Notes the geometry of a call, while it is traced."""
        before = self._seen.setdefault(path, now)
        if before != now:
            raise ValueError(
                f"layer {shown(path)} is called on inputs of size {before.size} and {now.size}, "
                "but a plan has one box for each layer: leave it out with where="
            )

    def add(self, path: str, power: Any) -> None:
        """Adds the spectral energy of a call, when it runs."""
        power = np.asarray(power, dtype=np.float64)
        with self._lock:
            self._power[path] = self._power.get(path, 0) + power

    def plans(self, band: Energy) -> dict[str, LayerPlan]:
        """Returns the plan of every layer."""
        if not self.selected:
            left = ", ".join(f"{shown(path)}: {why}" for path, why in self.left_out.items())
            raise ValueError(f"the model has no convolution layer to calibrate ({left or 'none'})")
        if idle := [shown(path) for path in self.selected if path not in self._power]:
            raise ValueError(
                f"these convolution layers are never called: {', '.join(idle)}; leave them out "
                "with where="
            )
        plans = {}
        for path, seen in self._seen.items():
            power = self._power[path]
            if not np.isfinite(power).all():
                raise ValueError(f"the input of layer {shown(path)} is not finite")
            energy = power * hermitian_weights(seen.grid[-1], seen.grid[-1] // 2)
            settled = at_strides(band, seen.grid, seen.strides)
            assert isinstance(settled, Energy)
            boxes = settled.boxes(seen.grid)
            modes, kept = smallest_box(energy, seen.grid, boxes, band.share)
            plans[path] = LayerPlan(seen.kernel_shape, seen.size, seen.grid, modes, kept)
        return plans


@dataclasses.dataclass(frozen=True, eq=False)
class _Observer:
    """Sees the arguments of one layer's convolution; their padding is the layer's own."""

    observations: _Observations
    path: str
    grid: Any

    def __call__(
        self, lhs: jax.Array, rhs: jax.Array, strides: Any, padding: Any, **options: Any
    ) -> None:
        """Notes the geometry of a call while it is traced, and its energy when it runs."""
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
        # The input's own size: REFLECT's geometry has that of the reflected one.
        steps = tuple(axis.stride for axis in geometry.axes)
        self.observations.see(self.path, _Seen(rhs.shape, lhs.shape[1:-1], geometry.grid, steps))
        x = _reflected(lhs, geometry) if canonical_padding(padding) == "REFLECT" else lhs
        power = spectral_power(x, geometry)
        jax.debug.callback(functools.partial(self.observations.add, self.path), power)


@dataclasses.dataclass(frozen=True, eq=False)
class _Observed:
    """A convolution whose arguments are observed."""

    observer: _Observer
    convolution: Any

    def __call__(
        self, lhs: jax.Array, rhs: jax.Array, strides: Any, padding: Any, **options: Any
    ) -> jax.Array:
        self.observer(lhs, rhs, strides, padding, **options)
        return self.convolution(lhs, rhs, strides, padding, **options)


def _reflected(x: jax.Array, geometry: ConvGeometry) -> jax.Array:
    added = [axis.size - h for axis, h in zip(geometry.axes, x.shape[1:-1], strict=True)]
    return jnp.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in added), (0, 0)], mode="reflect")


def spectral_power(x: jax.Array, geometry: ConvGeometry) -> jax.Array:
    """Returns ``sum |X[u]|^2`` over batch and channels, on the half spectrum of the grid.

    Args:
      x: ``(batch, *spatial, channels)``.
      geometry: where its samples lie.

    Returns:
      ``(g_1, ..., g_last // 2 + 1)``, of float32, or float64 for such an input.
    """
    x = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
    dilations = tuple(axis.input_dilation for axis in geometry.axes)
    if max(dilations) > 1:
        config = [(0, 0, 0), *((0, 0, a - 1) for a in dilations), (0, 0, 0)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), config)
    spectrum = jnp.fft.rfftn(x, s=geometry.grid, axes=tuple(range(1, x.ndim - 1)))
    power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
    return power.sum(axis=(0, -1))
