"""A convolution layer prepared for inference: how it may be computed, and how it is fastest."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._bands.band import Energy, Modes
from bandjax._conv.band_conv import run
from bandjax._conv.choose import choose
from bandjax._conv.classes import CLASSES
from bandjax._conv.cost import Target
from bandjax._conv.geometry import (
    ConvGeometry,
    canonical_padding,
    conv_geometry,
    reads_nothing,
)
from bandjax._conv.lax import ConvGeneralDilated
from bandjax._conv.methods import Direct, FilterDomain, Method
from bandjax._conv.operator import finished
from bandjax._conv.options import ConvSpec
from bandjax._conv.spectral_conv import cropped
from bandjax._flax import fused, spectral_layer
from bandjax._flax.layer import OBSERVER, arguments_of, padding_for_flax
from bandjax._native import call as native_call
from bandjax._native.epilogue import Epilogue
from bandjax._spectra.types import Precision, compute_dtype

_MOST_BYTES = 2**28  # of one filter's spectrum that is tried
_HOPELESS, _CHEAP = 4, 1e6  # times the least estimate, and nanoseconds: not tried above both
_ROUNDS, _SECONDS = (3, 20), 0.3  # of the measurement of one layer
_COLD_BYTES = 2**26  # of filters, between two calls with one of them


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All of a convolution layer but its arrays.

    Attributes:
      spec: band, grid, method and implementation.
      domain: what the filter is, see :class:`Method`.
      taps: of the kernel on each spatial axis.
      size: of the input's spatial axes; None for any.
      dtype: in which the layer computes, and of its result.
      arguments: strides, padding, dilations and groups, by name.
      precision: of products.
    """

    spec: ConvSpec
    domain: FilterDomain
    taps: tuple[int, ...]
    size: tuple[int, ...] | None
    dtype: np.dtype[Any]
    arguments: tuple[tuple[str, Any], ...]
    precision: Precision = None

    @classmethod
    def of(cls, layer: Any, kernel: Any, sizes: Sequence[tuple[int, ...]], dtype: Any) -> Prepared:
        """Returns the layer as it is, but for the options that are of the backward pass.

        Args:
          layer: a ``Conv`` or ``BandConv`` of either interface, for which :func:`unpreparable` is
            None.
          kernel: its taps or its spectrum.
          sizes: of the spatial axes of its inputs.
          dtype: in which it computes.
        """
        taps = layer.kernel_size
        taps = (taps,) if isinstance(taps, int) else tuple(taps)
        hook = layer.conv_general_dilated
        if hasattr(layer, "band"):
            spec = ConvSpec.of(layer, residual_dtype=None, recompute_filter=True)
        elif isinstance(hook, ConvGeneralDilated):
            spec = ConvSpec.of(hook, residual_dtype=None, recompute_filter=True)
        else:
            spec = ConvSpec()
        domain: FilterDomain = getattr(layer, "param_domain", "spatial")
        size = sizes[0] if len(set(sizes)) == 1 else None
        if domain == "spectral":
            there = _of_spectrum(layer, kernel, sizes[0])
            grid = None if there.axes[0].circular else there.grid
            spec = dataclasses.replace(spec, band=Modes(*there.modes), grid=grid)
        arguments = {name: _hashable(value) for name, value in arguments_of(layer).items()}
        return cls(
            spec, domain, taps, size, np.dtype(dtype), tuple(arguments.items()), layer.precision
        )

    def geometry(self, input_shape: Sequence[int], kernel_shape: Sequence[int]) -> ConvGeometry:
        """Returns the geometry of a call; of ``kernel_shape`` the channels count."""
        shape = (*self.taps, *kernel_shape[-2:])
        arguments = dict(self.arguments)
        return conv_geometry(input_shape, shape, self.spec.band, grid=self.spec.grid, **arguments)

    def __call__(
        self, inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, out_sharding: Any = None
    ) -> jax.Array:
        """Applies the layer to ``(batch..., *spatial, in)``.

        Raises:
          ValueError: the input has another size than the layer was prepared for.
        """
        size = inputs.shape[-len(self.taps) - 1 : -1]
        if self.size is not None and size != self.size:
            raise ValueError(
                f"the layer was prepared for inputs of size {self.size}, got {size}: prepare the "
                "model for this size"
            )
        x = jnp.asarray(inputs).astype(self.dtype)
        if self.domain == "spatial":
            kernel = kernel.astype(self.dtype)
        if out_sharding is None:
            return fused.call(self, x, kernel, bias)
        return self.plain(x, kernel, *(() if bias is None else (bias,)), out_sharding=out_sharding)

    def plain(
        self, x: jax.Array, kernel: jax.Array, *bias: jax.Array, out_sharding: Any = None
    ) -> jax.Array:
        """Applies the layer to an input of its size and type."""
        y, _ = run(
            self.spec,
            self.geometry(x.shape, kernel.shape),
            x,
            kernel,
            self.precision,
            out_sharding,
            domain=self.domain,
            reflect=self._padding == "REFLECT",
        )
        return Epilogue(bias=bool(bias))(y, *bias)

    def fuses(self, epilogue: Epilogue, x: jax.Array, kernel: jax.Array) -> bool:
        """Whether one kernel computes the layer and what follows it."""
        geometry = self.geometry(x.shape, kernel.shape)
        empty = any(isinstance(n, int) and n == 0 for n in geometry.output_shape)
        nothing = self.domain == "spatial" and reads_nothing(geometry)
        return (
            epilogue != Epilogue()
            and not (empty or nothing)
            and geometry.energy is None
            and x.dtype.name in self._chosen(geometry).finishes
        )

    def finished(
        self, epilogue: Epilogue, x: jax.Array, kernel: jax.Array, *operands: jax.Array
    ) -> jax.Array:
        """Applies the layer and an epilogue, without a rule for derivatives."""
        method = self.method(x.shape, kernel.shape)
        reflect = self._padding == "REFLECT"
        return finished(method, epilogue, x, kernel, *operands, reflect=reflect)

    @property
    def _padding(self) -> Any:
        return canonical_padding(dict(self.arguments)["padding"])

    def method(self, input_shape: Sequence[int], kernel_shape: Sequence[int]) -> Method:
        """What computes a call."""
        geometry = self.geometry(input_shape, kernel_shape)
        return self._chosen(geometry)(geometry, self.dtype, True, self.precision, self.domain)

    def _chosen(self, geometry: ConvGeometry) -> type[Method]:
        return choose(
            geometry, self.spec, self.dtype, self.domain, precision=self.precision, inference=True
        )

    def cost(self, geometry: ConvGeometry) -> float:
        """What the rule of ``method="auto"`` estimates."""
        given = self.domain != "spatial"
        platform = jax.default_backend()
        target = Target(platform, self.dtype, self.precision, given=given, inference=True)
        return self._chosen(geometry).cost(geometry, target)

    def name(self, geometry: ConvGeometry) -> str:
        """How a call is computed, for people: "taps, direct" or "spectrum, dft (native)"."""
        chosen = self._chosen(geometry)
        filter_ = "taps" if self.domain == "spatial" else "spectrum"
        return f"{filter_}, {chosen.name}{' (native)' if chosen.native else ''}"

    def ways(self, input_shape: Sequence[int], kernel_shape: Sequence[int]) -> dict[str, Prepared]:
        """Returns the ways to compute the layer that are worth a try, itself first, by name.

        A filter's taps are taken by the backend's own convolution, on the band's projection if
        there is a band, and by native kernels; its kept spectrum by every method of products over
        frequencies. What native kernels compute is tried in plain JAX where that is the backend's
        own convolution alone; what is estimated to take four times as long as another is not.
        """
        geometry = self.geometry(input_shape, kernel_shape)
        ways = {self.name(geometry): self}
        fixed = isinstance(self.spec.band, Energy) or self.spec.implementation == "jax"
        if fixed or self.size is None:
            return ways
        domains: list[FilterDomain] = ["spatial"] if self.domain == "spatial" else []
        domains += ["prepared"] if self._padding != "REFLECT" else []
        for domain in domains:
            for found in self._classes(geometry, domain):
                if domain == "spatial" and not (found is Direct or found.native):
                    continue
                kernels = "native" if found.native else "xla"
                spec = dataclasses.replace(
                    self.spec, method=found.name, implementation=kernels, grid=self.spec.grid
                )
                way = dataclasses.replace(self, spec=spec, domain=domain)
                ways.setdefault(way.name(geometry), way)
        too_large = self._spectrum_bytes(geometry) > _MOST_BYTES
        bound = max(_CHEAP, _HOPELESS * min(way.cost(geometry) for way in ways.values()))
        return {
            name: way
            for name, way in ways.items()
            if way is self
            or (way.cost(geometry) <= bound and not (too_large and way.domain == "prepared"))
        }

    def _spectrum_bytes(self, geometry: ConvGeometry) -> int:
        channels = geometry.in_features // geometry.groups * geometry.out_features
        return 2 * geometry.kept * channels * compute_dtype(self.dtype).itemsize

    def most_bytes(self, input_shape: Sequence[int], kernel: jax.Array) -> int:
        """Of the filter, in whatever way it is kept."""
        geometry = self.geometry(input_shape, kernel.shape)
        ways = self.ways(input_shape, kernel.shape).values()
        spectral = any(way.domain == "prepared" for way in ways)
        return max(kernel.nbytes, spectral * self._spectrum_bytes(geometry))

    def _classes(self, geometry: ConvGeometry, domain: FilterDomain) -> list[type[Method]]:
        """The classes that may compute the layer, as its method and implementation allow."""
        platform, asked, named = jax.default_backend(), self.spec.implementation, self.spec.method
        found = [c for c in CLASSES if c.supports(geometry, self.dtype, platform, domain)]
        found = [c for c in found if named in ("auto", c.name)]
        if asked == "native":
            return [c for c in found if c.native]
        there = native_call.supports(compute_dtype(self.dtype), platform)
        if asked == "xla" or platform != "cpu" or not there:
            return [c for c in found if not c.native]
        native = {c.name for c in found if c.native}
        return [c for c in found if c.native or c is Direct or c.name not in native]

    def filter(
        self, way: Prepared, kernel: jax.Array, input_shape: Sequence[int], dtype: Any
    ) -> jax.Array:
        """Returns the filter as a way has it.

        Args:
          way: to compute this layer.
          kernel: as this layer has it.
          input_shape: of a call.
          dtype: in which a spectrum that is made is kept; None for that of the computation.
        """
        if way.domain != "prepared":
            return kernel
        geometry = self.geometry(input_shape, kernel.shape)
        compute = compute_dtype(self.dtype)
        if self.domain == "spatial":
            rounded = kernel.astype(self.dtype).astype(compute)
            kernel = spectral_layer.to_spectrum(rounded, geometry)
        made = way.method(input_shape, kernel.shape).prepared(kernel.astype(compute))
        return made.astype(compute if dtype is None else dtype)


def unpreparable(layer: Any, dtype: Any, sizes: Sequence[tuple[int, ...]]) -> str | None:
    """Returns why a layer that convolves as Flax's ``Conv`` does is left alone; None if it is not.

    Args:
      layer: of either interface.
      dtype: of its results.
      sizes: of the spatial axes of its inputs.
    """
    rank = len(sizes[0])
    hook = layer.conv_general_dilated
    hooked = isinstance(hook, ConvGeneralDilated)
    own = hook in (None, jax.lax.conv_general_dilated) or hooked
    own = own and getattr(layer, "conv_general_dilated_cls", None) is None
    if hasattr(layer, "band"):  # A BandConv, or what a context makes one.
        own, hooked = True, False
    if rank > 3:
        return f"{rank} spatial axes, at most 3 can be prepared"
    if not jnp.issubdtype(dtype, jnp.floating):
        return f"it computes in {jnp.dtype(dtype)}, only floating-point types can be prepared"
    if not own or hasattr(layer, OBSERVER):
        return "it has a conv_general_dilated of its own"
    if hooked and padding_for_flax(layer.padding) is not layer.padding:
        return f"Flax pads its {layer.padding} inputs itself, for a conv_general_dilated"
    if getattr(layer, "preferred_element_type", None) is not None:
        return "it has a preferred_element_type"
    if getattr(layer, "param_domain", "spatial") == "spectral" and len(set(sizes)) > 1:
        return "its parameters are spectral, and its inputs have several sizes"
    return None


def own_kernel(layer: Any, kernel: jax.Array, sizes: Sequence[tuple[int, ...]]) -> jax.Array:
    """Returns the filter of a layer at its inputs: masked taps, or what there is of a spectrum."""
    if getattr(layer, "param_domain", "spatial") == "spectral":
        own, there = _own(layer, kernel, sizes[0]), _of_spectrum(layer, kernel, sizes[0])
        return cropped(kernel, own.modes, there.modes)
    mask = getattr(layer, "mask", None)
    return kernel if mask is None else kernel * jnp.asarray(mask, kernel.dtype)


def _own(layer: Any, spectrum: Any, size: tuple[int, ...]) -> ConvGeometry:
    taps = layer.kernel_size
    taps = (taps,) if isinstance(taps, int) else tuple(taps)
    own = size if layer.spatial_shape is None else tuple(layer.spatial_shape)
    kernel_shape = (*taps, *spectrum.shape[-2:])
    return spectral_layer.own_geometry(layer, own, kernel_shape, spectrum.shape[1:-2])


def _of_spectrum(layer: Any, spectrum: Any, size: tuple[int, ...]) -> ConvGeometry:
    """The geometry of a layer with spectral parameters at an input."""
    own = _own(layer, spectrum, size)
    inputs = spectrum.shape[-2] * layer.feature_group_count
    kernel_shape = (*(axis.taps for axis in own.axes), *spectrum.shape[-2:])
    return spectral_layer.geometry_at(layer, (1, *size, inputs), kernel_shape, own)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


class Chooser:
    """Finds the fastest way of each layer; equal layers are measured once.

    Attributes:
      others: bytes that all filters of the model have at most.
    """

    def __init__(self, measure: bool, dtype: Any) -> None:
        self.others = 0
        self._measure = measure
        self._dtype = dtype
        self._known: dict[Any, tuple[str, dict[str, float]]] = {}

    def choose(
        self,
        layer: Prepared,
        input_shape: tuple[int, ...],
        kernel: jax.Array,
        bias: jax.Array | None,
    ) -> tuple[str, Prepared, jax.Array, dict[str, float]]:
        """Returns the name of the fastest way, the way, its filter, and the seconds of each.

        Args:
          layer: as it is.
          input_shape: of a call.
          kernel: its filter.
          bias: or None.
        """
        ways = layer.ways(input_shape, kernel.shape)
        key = layer, input_shape, kernel.shape, bias is None
        if key not in self._known:
            geometry = layer.geometry(input_shape, kernel.shape)
            seconds: dict[str, float] = {}
            if self._measure and len(ways) > 1:
                filters = {
                    name: layer.filter(way, kernel, input_shape, self._dtype)
                    for name, way in ways.items()
                }
                seconds = timed(ways, filters, input_shape, bias, self.others)
            costs = seconds or {name: way.cost(geometry) for name, way in ways.items()}
            self._known[key] = min(costs, key=costs.__getitem__), seconds
        name, seconds = self._known[key]
        return name, ways[name], layer.filter(ways[name], kernel, input_shape, self._dtype), seconds


def timed(
    ways: Mapping[str, Prepared],
    filters: Mapping[str, jax.Array],
    input_shape: tuple[int, ...],
    bias: jax.Array | None,
    others: int,
) -> dict[str, float]:
    """Returns the seconds of one call of each way: compiled alone, in turn, the median of several.

    A rectifier follows, as it mostly does in a network: some kernels do it too. In turn, so that
    what else the machine does meets all. Between two calls with one copy of a filter at least as
    many bytes of filters pass through the caches as in the model.

    Args:
      ways: by name.
      filters: of each way.
      input_shape: of a call.
      bias: or None.
      others: bytes that all filters of the model have at most.
    """
    first = next(iter(ways.values()))
    x = jax.random.normal(jax.random.key(0), input_shape, jnp.float32).astype(first.dtype)
    compiled = {}
    in_turn = sum(filters[name].nbytes for name in ways)
    copies = min(_ROUNDS[1], max(1, -(-min(others, _COLD_BYTES) // in_turn)))
    for name, way in ways.items():
        arguments = [(x, jnp.array(filters[name]), bias) for _ in range(copies)]
        compiled[name] = jax.jit(_rectified(way)).lower(*arguments[0]).compile(), arguments
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    began = time.perf_counter()
    for turn in range(1 + _ROUNDS[1]):
        for name, (call, arguments) in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(call(*arguments[turn % len(arguments)]))
            seconds[name].append(time.perf_counter() - start)
        if turn >= _ROUNDS[0] and time.perf_counter() - began > _SECONDS:
            break
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def _rectified(way: Prepared) -> Any:
    def call(*args: Any) -> jax.Array:
        return fused.fused(lambda *args: jax.nn.relu(way(*args)), *args)

    return call
