"""Band-limited layers for ``flax.linen``."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import linen as nn

from bandjax import _layer
from bandjax._band import Band
from bandjax._geometry import ConvGeometry, check_groups

__all__ = ["BandConv"]


class BandConv(nn.Conv):
    """``flax.linen.Conv``, computed on the low frequencies of its input and kernel alone.

    Parameters, their names and their initial values are those of ``flax.linen.Conv``: a dense
    layer's variables apply to this one and back.

    Attributes:
      features, kernel_size, ...: as in ``flax.linen.Conv``; ``CIRCULAR`` padding makes a periodic
        layer on a grid of one period. ``conv_general_dilated`` is not to be set.
      band: :class:`bandjax.Compression`, :class:`bandjax.Modes`, or None for every frequency, with
        which the layer equals ``flax.linen.Conv``.
      grid, method, implementation, residual_dtype, recompute_filter: see :func:`bandjax.band_conv`.

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

    def __post_init__(self) -> None:
        if self.conv_general_dilated is not None or self.conv_general_dilated_cls is not None:
            raise TypeError(
                "conv_general_dilated is what BandConv sets; give it to flax.linen.Conv instead"
            )
        _layer.hook(self)  # Raises now what would raise in the first call.
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer to ``(batch..., *spatial, in)``.

        Returns ``(batch..., *spatial_out, features)``.
        """
        check_groups(inputs.shape[-1], self.features, self.feature_group_count)
        # Flax wraps the methods of a module; what it wraps takes any object for its module.
        seen = _layer.AsFlaxSees(self)
        y = nn.Conv.__call__.__wrapped__(seen, inputs)  # type: ignore[attr-defined]
        for name, value in _layer.found_by_energy(self, seen, inputs.shape).items():
            self.sow("intermediates", name, value)
        return y

    def geometry(self, input_shape: Sequence[int]) -> ConvGeometry:
        """Returns grid, kept box and true compression for inputs of ``input_shape``."""
        size = (self.kernel_size,) if isinstance(self.kernel_size, int) else self.kernel_size
        per_group = input_shape[-1] // self.feature_group_count
        return _layer.geometry(self, tuple(input_shape), (*size, per_group, self.features))
