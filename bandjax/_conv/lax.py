"""Band-limited convolution with the interface of ``jax.lax.conv_general_dilated``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bandjax._bands.band import Band
from bandjax._conv.band_conv import convolve
from bandjax._conv.complex_numbers import real_dtype
from bandjax._conv.geometry import PaddingLike
from bandjax._conv.options import ConvSpec


@dataclasses.dataclass(frozen=True)
class ConvGeneralDilated(ConvSpec):
    """A band-limited stand-in for ``jax.lax.conv_general_dilated``.

    Frozen and hashable; two with equal fields are equal, so that a new one in every call of a
    jitted function does not retrace it. Made by :func:`conv_general_dilated`.
    """

    def __call__(self, *arguments: Any, **options: Any) -> jax.Array:
        """Convolves as ``jax.lax.conv_general_dilated``, on the band alone.

        Raises:
          ValueError: ``batch_group_count`` is not 1, or as :func:`bandjax.band_conv`.
        """
        y, _ = self.with_modes(*arguments, **options)
        return y

    def with_modes(
        self,
        lhs: jax.Array,
        rhs: jax.Array,
        window_strides: Sequence[int],
        padding: PaddingLike,
        lhs_dilation: Sequence[int] | None = None,
        rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: Any = None,
        feature_group_count: int = 1,
        batch_group_count: int = 1,
        precision: Any = None,
        preferred_element_type: jax.typing.DTypeLike | None = None,
        out_sharding: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The convolution, and the limits of the kept box, int32 ``(spatial axes,)``.

        Its arguments are those of the call: of ``jax.lax.conv_general_dilated``.
        """
        if batch_group_count != 1:
            raise ValueError(
                f"batch_group_count must be 1 in a band-limited convolution, "
                f"got {batch_group_count}"
            )
        layout = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        batch, features, *spatial = layout.lhs_spec
        out, in_, *taps = layout.rhs_spec
        x = jnp.transpose(lhs, (batch, *spatial, features))
        kernel = jnp.transpose(rhs, (*taps, in_, out))
        spec: ConvSpec = self
        if preferred_element_type is not None:
            # The sum is taken in the wider type; what is kept for it need not be wider.
            wide = jnp.dtype(preferred_element_type)
            if wide.itemsize > x.dtype.itemsize:
                if spec.residual_dtype is None:
                    spec = dataclasses.replace(spec, residual_dtype=real_dtype(x.dtype))
                x, kernel = x.astype(wide), kernel.astype(wide)
        y, modes = convolve(
            spec,
            x,
            kernel,
            strides=tuple(window_strides),
            padding=padding,
            input_dilation=1 if lhs_dilation is None else tuple(lhs_dilation),
            kernel_dilation=1 if rhs_dilation is None else tuple(rhs_dilation),
            feature_group_count=feature_group_count,
            precision=precision,
            out_sharding=out_sharding,
        )
        if preferred_element_type is not None:
            y = y.astype(preferred_element_type)
        # Axis i of the result goes where the output's layout has it.
        batch, features, *spatial = layout.out_spec
        return jnp.moveaxis(y, range(y.ndim), (batch, *spatial, features)), modes


def conv_general_dilated(
    band: Band = None,
    *,
    grid: int | Sequence[int] | None = None,
    method: str = "auto",
    implementation: str | None = None,
    residual_dtype: jax.typing.DTypeLike | None = None,
    recompute_filter: bool = True,
) -> ConvGeneralDilated:
    """Returns a convolution for the ``conv_general_dilated=`` argument of Flax's own layers.

    Flax pads an input of a ``CIRCULAR`` layer itself before it calls this, so that a ``VALID``
    convolution of a longer input arrives here: exact with every frequency kept, but on a narrow
    band another operator than the periodic one. Use ``BandConv`` for such layers.

    Args:
      band, grid, method, implementation, residual_dtype, recompute_filter: see
        :func:`bandjax.band_conv`.

    Returns:
      A frozen, hashable callable with the signature of ``jax.lax.conv_general_dilated``.

    Raises:
      TypeError, ValueError: an option that no input could go with.

    Example:
      >>> from flax import nnx
      >>> low = conv_general_dilated(Compression(0.5))
      >>> layer = nnx.Conv(3, 8, (3, 3), conv_general_dilated=low, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 32, 32, 3))).shape
      (2, 32, 32, 8)
    """
    return ConvGeneralDilated(band, grid, method, implementation, residual_dtype, recompute_filter)
