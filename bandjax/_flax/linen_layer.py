"""The band-limited layer of ``flax.linen``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta

from bandjax._bands.band import Band
from bandjax._conv.geometry import ConvGeometry, check_groups
from bandjax._conv.options import ConvSpec
from bandjax._flax import layer as layer_rules
from bandjax._flax import spectral_layer
from bandjax._flax.classes import LinenConv
from bandjax.codecs import Codec


class BandConv(LinenConv):
    """``flax.linen.Conv``, computed on the low frequencies of its input and kernel alone.

    Parameters, their names and their initial values are those of ``flax.linen.Conv``: a dense
    layer's variables apply to this one and back.

    Attributes:
      features, kernel_size, ...: as in ``flax.linen.Conv``; ``CIRCULAR`` padding makes a periodic
        layer on a grid of one period. ``conv_general_dilated`` is not to be set.
      band: any of :func:`bandjax.band_conv`, such as :class:`bandjax.Compression`; None, with
        which the layer equals ``flax.linen.Conv``.
      grid, method, implementation, residual_dtype, recompute_filter: see :func:`bandjax.band_conv`.
      saved: a codec of :mod:`bandjax.codecs`, by which the input is kept for the backward pass, in
        place of the spectrum; the forward pass is as without. See :func:`bandjax.compress_saved`.
      param_domain: "spatial", or "spectral" for a layer whose parameter is the filter's spectrum on
        the band, ``kernel_spectrum`` ``(2, *box, in / groups, out)``, in place of ``kernel``: see
        :func:`bandjax.spectral_conv`. Its initial value is the spectrum of what ``kernel_init``
        gives.
      spatial_shape: with spectral parameters, the sizes of the input's spatial axes, which set the
        grid that they belong to; by default those of the input. To apply parameters at another
        resolution, give the one that they were made for: they filter at the same waves there,
        for circles keep their proportion to the input, unless ``grid`` is set.
      spectral_decay: with spectral parameters, emphasis of low frequencies: the initial
        coefficients are multiplied by ``(1 + |u|) ** -spectral_decay``.

    With an :class:`bandjax.Energy` band each call sows the limits of the box that it found, int32
    ``modes``, and its true ``compression`` into the collection ``intermediates``.

    Raises:
      TypeError: ``conv_general_dilated`` is given, or an argument has the wrong type.
      ValueError: an argument has a value out of range.

    Example:
      >>> layer = BandConv(8, (3, 3), band=Compression(0.5))
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 32, 32, 3)))
      >>> y.shape
      (2, 32, 32, 8)
    """

    band: Band = None
    grid: int | Sequence[int] | None = None
    method: str = "auto"
    implementation: str | None = None
    residual_dtype: jax.typing.DTypeLike | None = None
    recompute_filter: bool = True
    param_domain: str = "spatial"
    spatial_shape: Sequence[int] | None = None
    spectral_decay: float = 0.0
    saved: Codec | None = None

    def __post_init__(self) -> None:
        if self.conv_general_dilated is not None or self.conv_general_dilated_cls is not None:
            raise TypeError(
                "conv_general_dilated is what BandConv sets; give it to flax.linen.Conv instead"
            )
        # Raises now what would raise in the first call; an array would not be hashable.
        object.__setattr__(self, "grid", ConvSpec.of(self).grid)
        layer_rules.check_saved(self)
        spectral_layer.check(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer to ``(batch..., *spatial, in)``.

        Returns ``(batch..., *spatial_out, features)``.
        """
        check_groups(inputs.shape[-1], self.features, self.feature_group_count)
        # Flax wraps the methods of a module; what it wraps takes any object for its module.
        if self.param_domain == "spectral":
            return self._spectral(inputs)
        seen = layer_rules.AsFlaxSees(self)
        y = LinenConv.__call__.__wrapped__(seen, inputs)  # type: ignore[attr-defined]
        for name, value in layer_rules.found_by_energy(self, seen, inputs.shape).items():
            self.sow("intermediates", name, value)
        return y

    def geometry(self, input_shape: Sequence[int]) -> ConvGeometry:
        """Returns grid, kept box and true compression for inputs of ``input_shape``.

        With spectral parameters and a ``spatial_shape`` of other inputs, the box is what there is
        of the parameters' at this size.
        """
        shape, kernel_shape = tuple(input_shape), self._kernel_shape(input_shape)
        if self.param_domain == "spectral":
            return spectral_layer.geometry_at(self, shape, kernel_shape, self._own(shape))
        return layer_rules.geometry(self, shape, kernel_shape, self.band)

    def _kernel_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        size = (self.kernel_size,) if isinstance(self.kernel_size, int) else self.kernel_size
        return (*size, input_shape[-1] // self.feature_group_count, self.features)

    def _own(self, input_shape: Sequence[int]) -> ConvGeometry:
        """The geometry that spectral parameters belong to."""
        kernel_shape = self._kernel_shape(input_shape)
        rank = len(kernel_shape) - 2
        sizes = self.spatial_shape
        if sizes is None:
            sizes = input_shape[-rank - 1 : -1]
        elif len(sizes) != rank:
            raise ValueError(
                f"spatial_shape must have one size for each of the {rank} spatial axes, got "
                f"{tuple(sizes)}"
            )
        return spectral_layer.own_geometry(self, sizes, kernel_shape)

    def _spectral(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer with the filter's spectrum as its parameter."""
        kernel_shape = self._kernel_shape(inputs.shape)
        own = self._own(inputs.shape)

        def init(key: jax.Array) -> Any:
            kernel = self.kernel_init(key, kernel_shape, self.param_dtype)
            if isinstance(kernel, meta.AxisMetadata):  # It names the axes that devices share.
                spectrum = spectral_layer.initial(self, kernel.unbox(), own)
                boxed = kernel.add_axis(0, {meta.PARTITION_NAME: None})
                return boxed.replace_boxed(spectrum)
            return spectral_layer.initial(self, kernel, own)

        # Parameters of another resolution: applied there without `spatial_shape`, their box tells.
        if self.has_variable("params", "kernel_spectrum"):
            there = meta.unbox(self.get_variable("params", "kernel_spectrum")).shape[1:-2]
            if there != own.box:
                raise ValueError(
                    f"kernel_spectrum has the box {there}, inputs of {inputs.shape} have "
                    f"{own.box}: to use parameters at another resolution, set spatial_shape to the "
                    "one that they belong to"
                )
        spectrum = self.param("kernel_spectrum", init)
        bias: jax.Array | None = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        arrays: Any = self.promote_dtype(inputs, spectrum, bias, dtype=self.dtype)
        x, w, b = arrays
        return spectral_layer.call(self, x, w, b, own)


# Flax names layers, and with the names seeds their parameters, by ``__name__``: a layer that takes
# the place of a Conv in a compact method has its path, its initial values and its checkpoints.
BandConv.__name__ = "Conv"
