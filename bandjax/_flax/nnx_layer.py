"""The band-limited layer of ``flax.nnx``, and its parameters as spectra or kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from bandjax._bands.band import Band
from bandjax._conv.geometry import ConvGeometry, check_groups
from bandjax._conv.options import ConvSpec
from bandjax._flax import layer as layer_rules
from bandjax._flax import spectral_layer
from bandjax._flax.classes import NnxConv
from bandjax._flax.observe import observe
from bandjax.codecs import Codec


class BandConv(NnxConv):
    """``flax.nnx.Conv``, computed on the low frequencies of its input and kernel alone.

    Parameters, their names and their initial values are those of ``flax.nnx.Conv``: a dense layer's
    checkpoint loads into this one and back.

    Args:
      in_features, out_features, kernel_size, strides, rngs: as in ``flax.nnx.Conv``.
      band: any of :func:`bandjax.band_conv`, such as :class:`bandjax.Compression`; None, with
        which the layer equals ``flax.nnx.Conv``.
      grid, method, implementation, residual_dtype, recompute_filter: see :func:`bandjax.band_conv`.
      saved: a codec of :mod:`bandjax.codecs`, by which the input is kept for the backward pass, in
        place of the spectrum; the forward pass is as without. See :func:`bandjax.compress_saved`.
      param_domain: "spatial", or "spectral" for a layer whose parameter is the filter's spectrum on
        the band, ``kernel_spectrum`` ``(2, *box, in / groups, out)``, in place of ``kernel``: see
        :func:`bandjax.spectral_conv`. Its initial value is the spectrum of what ``kernel_init``
        gives, so that the layer begins as the spatial one. Inputs of other sizes it filters at the
        same waves: circles keep their proportion to the input, unless ``grid`` is set.
      spatial_shape: with spectral parameters, the sizes of the input's spatial axes, which set the
        grid that they belong to.
      spectral_decay: with spectral parameters, emphasis of low frequencies: the initial
        coefficients are multiplied by ``(1 + |u|) ** -spectral_decay``.
      **conv: the further arguments of ``flax.nnx.Conv``, ``conv_general_dilated`` excepted.
        ``CIRCULAR`` padding makes a periodic layer on a grid of one period.

    With an :class:`bandjax.Energy` band each call sows the limits of the box that it found, int32
    ``modes``, and its true ``compression`` as ``nnx.Intermediate`` for ``nnx.capture``.

    Raises:
      TypeError: ``conv_general_dilated`` is given, or an argument has the wrong type.
      ValueError: an argument has a value out of range.

    Example:
      >>> layer = BandConv(3, 8, (3, 3), band=Compression(0.5), rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 32, 32, 3))).shape
      (2, 32, 32, 8)
    """

    kernel_spectrum: Any  # With spectral parameters, in place of `kernel`.
    spatial_shape: tuple[int, ...]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        band: Band = None,
        grid: int | Sequence[int] | None = None,
        method: str = "auto",
        implementation: str | None = None,
        residual_dtype: jax.typing.DTypeLike | None = None,
        recompute_filter: bool = True,
        saved: Codec | None = None,
        param_domain: str = "spatial",
        spatial_shape: Sequence[int] | None = None,
        spectral_decay: float = 0.0,
        rngs: nnx.Rngs,
        **conv: Any,
    ) -> None:
        if "conv_general_dilated" in conv:
            raise TypeError(
                "conv_general_dilated is what BandConv sets; give it to flax.nnx.Conv instead"
            )
        check_groups(in_features, out_features, conv.get("feature_group_count", 1))
        super().__init__(in_features, out_features, kernel_size, strides, rngs=rngs, **conv)
        self.band = band
        self.grid = ConvSpec(grid=grid).grid  # An array would be state.
        self.method = method
        self.implementation = implementation
        self.residual_dtype = residual_dtype
        self.recompute_filter = recompute_filter
        self.saved = saved
        self.param_domain = param_domain
        self.spectral_decay = spectral_decay
        ConvSpec.of(self)  # Raises now what would raise in the first call.
        layer_rules.check_saved(self)
        spectral_layer.check(self)
        if (spatial_shape is None) == (param_domain == "spectral"):
            raise ValueError(
                "spatial_shape, the sizes of the input's spatial axes, is for "
                f"param_domain='spectral', and needed there; got {spatial_shape!r} with "
                f"{param_domain!r}"
            )
        if spatial_shape is not None:
            _make_spectral(self, spatial_shape)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Applies the layer to ``(batch..., *spatial, in_features)``.

        Returns ``(batch..., *spatial_out, out_features)``. ``out_sharding`` is for meshes with
        explicit axes.
        """
        if self.param_domain == "spectral":
            bias = None if self.bias is None else self.bias[...]
            arrays = inputs, self.kernel_spectrum[...], bias
            inputs, spectrum, bias = self.promote_dtype(arrays, dtype=self.dtype)
            return spectral_layer.call(self, inputs, spectrum, bias, self._own(), out_sharding)
        seen = layer_rules.AsFlaxSees(self)
        y = NnxConv.__call__(seen, inputs, out_sharding)  # type: ignore[arg-type]
        if hasattr(self, "__captures__"):  # Outside of nnx.capture a sown value would stay here.
            for name, value in layer_rules.found_by_energy(self, seen, inputs.shape).items():
                self.sow(nnx.Intermediate, name, value)
        return y

    def geometry(self, input_shape: Sequence[int]) -> ConvGeometry:
        """Returns grid, kept box and true compression for inputs of ``input_shape``."""
        if self.param_domain == "spectral":
            return spectral_layer.geometry_at(self, input_shape, self.kernel_shape, self._own())
        return layer_rules.geometry(self, tuple(input_shape), self.kernel_shape, self.band)

    def _own(self) -> ConvGeometry:
        """The geometry that spectral parameters belong to."""
        box = self.kernel_spectrum.shape[1:-2]
        return spectral_layer.own_geometry(self, self.spatial_shape, self.kernel_shape, box)


def to_spectral(model: nnx.Module, *inputs: Any, decay: float = 0.0) -> list[str]:
    """Lets the filters of a model's ``BandConv`` layers live in the frequency domain, in place.

    The parameter ``kernel`` of each layer, trained or not, gives way to ``kernel_spectrum``, its
    spectrum on the layer's band. The model computes what it did before, to rounding; trained
    further, its filters are no longer bound to their taps.

    Args:
      model: with ``BandConv`` layers, or one such layer.
      *inputs: what the model is called with, arrays, ``jax.ShapeDtypeStruct`` or shapes: they tell
        the grid of every layer. Nothing is computed.
      decay: coefficients are multiplied by ``(1 + |u|) ** -decay``; 0 leaves them as they are.

    Returns:
      The paths of the layers, in the order of their calls.

    Raises:
      ValueError: a layer is not called, its parameters are spectral already, or it has an option
        that does not go with them.

    Example:
      >>> layer = BandConv(3, 8, (3, 3), band=Compression(0.5), rngs=nnx.Rngs(0))
      >>> to_spectral(layer, (2, 32, 32, 3)), layer.kernel_spectrum.shape
      ([''], (2, 23, 12, 3, 8))
    """
    layers = _band_convs(model)
    shapes: dict[str, tuple[int, ...]] = {}
    for call in observe(model, inputs, {})[0]:
        shapes.setdefault(call.path, call.input.shape)
    for path, layer in layers.items():
        if path not in shapes:
            raise ValueError(f"layer {path!r} is not called with these inputs")
        if layer.param_domain == "spectral":
            raise ValueError(f"the parameters of layer {path!r} are spectral already")
        rank = len(layer.kernel_size)
        before = layer.param_domain, layer.spectral_decay
        layer.param_domain, layer.spectral_decay = "spectral", decay
        try:
            spectral_layer.check(layer)
        except (TypeError, ValueError):
            layer.param_domain, layer.spectral_decay = before
            raise
        _make_spectral(layer, shapes[path][-rank - 1 : -1])
    return [path for path in shapes if path in layers]


def to_spatial(model: nnx.Module) -> list[str]:
    """Gives the ``BandConv`` layers of a model spatial kernels again, in place.

    A kernel's spectrum comes nearest to the layer's by least squares, over all frequencies. What
    :func:`to_spectral` made comes back, to rounding, if the band holds no fewer coefficients than
    the kernel has taps; what was trained as a spectrum is cut to the layer's ``kernel_size``.

    Args:
      model: with ``BandConv`` layers, or one such layer.

    Returns:
      The paths of the layers that had spectral parameters.
    """
    changed = []
    for path, layer in _band_convs(model).items():
        if layer.param_domain == "spatial":
            continue
        kernel = spectral_layer.to_kernel(layer.kernel_spectrum[...], layer._own())
        metadata = layer.kernel_spectrum.get_metadata()
        metadata = spectral_layer.metadata_with_planes(metadata, planes=False)
        layer.kernel = nnx.Param(kernel, **metadata)
        del layer.kernel_spectrum
        layer.param_domain, layer.spectral_decay = "spatial", 0.0
        changed.append(path)
    return changed


def _band_convs(model: nnx.Module) -> dict[str, Any]:
    found: dict[str, Any] = {
        ".".join(map(str, path)): layer
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, BandConv)
    }
    for path, layer in found.items():
        if layer.param_domain == "prepared":
            raise ValueError(f"layer {path!r} is prepared for inference")
    return found


def _make_spectral(layer: Any, spatial_shape: Sequence[int]) -> None:
    """Replaces the kernel of a layer by its spectrum."""
    rank = len(layer.kernel_size)
    if len(spatial_shape) != rank:
        raise ValueError(
            f"spatial_shape must have one size for each of the {rank} spatial axes, got "
            f"{tuple(spatial_shape)}"
        )
    geometry = spectral_layer.own_geometry(layer, spatial_shape, layer.kernel_shape)
    spectrum = spectral_layer.initial(layer, layer.kernel[...], geometry)
    metadata = spectral_layer.metadata_with_planes(layer.kernel.get_metadata(), planes=True)
    layer.kernel_spectrum = nnx.Param(spectrum, **metadata)
    layer.spatial_shape = tuple(spatial_shape)
    del layer.kernel
