"""What the layers for both of Flax's interfaces share."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from bandjax._bands.band import Band, Energy
from bandjax._bands.plan import PlannedModes
from bandjax._conv.energy import compression_at
from bandjax._conv.geometry import ConvGeometry, canonical_padding, conv_geometry
from bandjax._conv.lax import ConvGeneralDilated
from bandjax._saved.compress import check_codec, compress_saved

# Flax pads for these itself, with more input, before it calls its convolution.
_PADDED_BY_FLAX = ("CIRCULAR", "CAUSAL", "REFLECT")
# A layer that is observed has an attribute of this name: what sees the arguments of its hook, and
# returns its input.
OBSERVER = "input_observer"


class AsFlaxSees:
    """A layer as the code of Flax's own ``Conv`` is to see it.

    Every attribute is the layer's, but for the convolution to call and, where Flax would pad the
    input itself, the padding: the operator knows the periodic layer, Flax's wrapped input would be
    another one.

    Attributes:
      modes: after the call, the limits of the box that it kept.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._convolution = ConvGeneralDilated.of(layer)
        self.conv_general_dilated = self._convolve
        self.conv_general_dilated_cls = None
        self.padding = padding_for_flax(layer.padding)
        self.modes: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def _convolve(
        self, lhs: jax.Array, rhs: jax.Array, strides: Any, padding: Any, **options: Any
    ) -> jax.Array:
        """What Flax's code calls: the layer's own convolution, with its codec if it has one."""
        if self.padding is not self._layer.padding:
            padding = self._layer.padding
        if isinstance(self._layer.band, PlannedModes):
            self._layer.band.check(lhs.shape[1:-1], rhs.shape)
        observer = getattr(self._layer, OBSERVER, None)
        if observer is not None:
            lhs = observer(lhs, rhs, strides, padding, **options)

        def convolution(lhs: jax.Array, rhs: jax.Array) -> Any:
            return self._convolution.with_modes(lhs, rhs, strides, padding, **options)

        codec = getattr(self._layer, "saved", None)
        if codec is not None:  # Of its operands alone, all else is made again.
            convolution = compress_saved(jax.checkpoint(convolution), codec, argnums=0)
        y, self.modes = convolution(lhs, rhs)
        return y


def check_saved(layer: Any) -> None:
    """Raises TypeError or ValueError unless a layer's ``saved`` is None or a codec."""
    if layer.saved is None:
        return
    check_codec(layer.saved, "saved")
    if layer.param_domain == "spectral":
        raise ValueError("saved needs param_domain='spatial', got 'spectral'")


def padding_for_flax(padding: Any) -> Any:
    """Returns the padding that Flax's code is to see where the operator does Flax's own."""
    name = canonical_padding(padding)
    return "VALID" if isinstance(name, str) and name in _PADDED_BY_FLAX else padding


@dataclasses.dataclass(frozen=True)
class WithPadding:
    """A convolution that pads in its own way, whatever it is told."""

    convolution: Any
    padding: Any

    def __call__(
        self, lhs: jax.Array, rhs: jax.Array, strides: Any, padding: Any, **options: Any
    ) -> jax.Array:
        """Convolves with the layer's padding, if Flax's code sees another one."""
        if padding_for_flax(self.padding) is not self.padding:
            padding = self.padding
        return self.convolution(lhs, rhs, strides, padding, **options)


def found_by_energy(layer: Any, seen: AsFlaxSees, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns what an ``Energy`` band found in a call: limits and true compression, by name."""
    if not isinstance(layer.band, Energy):
        return {}
    geometry = layer.geometry(input_shape)
    return {"modes": seen.modes, "compression": compression_at(geometry, seen.modes)}


def kind_of(layer: Any) -> str:
    """Returns the name of a layer's class (``__name__`` of linen's ``BandConv`` is "Conv")."""
    kind: str = getattr(layer, "kind", None) or type(layer).__qualname__.rpartition(".")[2]
    return kind


def arguments_of(layer: Any) -> dict[str, Any]:
    """Returns what a Flax layer tells of its convolution, by name; its None stands for 1."""
    return {
        "strides": layer.strides or 1,
        "padding": layer.padding,
        "input_dilation": layer.input_dilation or 1,
        "kernel_dilation": layer.kernel_dilation or 1,
        "feature_group_count": layer.feature_group_count,
    }


def geometry(
    layer: Any, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], band: Band
) -> ConvGeometry:
    """Returns the geometry of a band-limited layer's convolution at a band."""
    return conv_geometry(input_shape, kernel_shape, band, grid=layer.grid, **arguments_of(layer))
