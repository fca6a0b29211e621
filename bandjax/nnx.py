"""Band-limited layers for ``flax.nnx``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from bandjax import _layer
from bandjax._band import Band
from bandjax._checkpoint import checkpoint, save_spectra
from bandjax._geometry import ConvGeometry, check_groups

__all__ = ["BandConv", "remat"]


class BandConv(nnx.Conv):
    """``flax.nnx.Conv``, computed on the low frequencies of its input and kernel alone.

    Parameters, their names and their initial values are those of ``flax.nnx.Conv``: a dense layer's
    checkpoint loads into this one and back.

    Args:
      in_features, out_features, kernel_size, strides, rngs: as in ``flax.nnx.Conv``.
      band: :class:`bandjax.Compression`, :class:`bandjax.Modes`, or None for every frequency, with
        which the layer equals ``flax.nnx.Conv``.
      grid, method, implementation, residual_dtype, recompute_filter: see :func:`bandjax.band_conv`.
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
        self.grid = tuple(grid) if isinstance(grid, Sequence) else grid
        self.method = method
        self.implementation = implementation
        self.residual_dtype = residual_dtype
        self.recompute_filter = recompute_filter
        _layer.hook(self)  # Raises now what would raise in the first call.

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Applies the layer to ``(batch..., *spatial, in_features)``.

        Returns ``(batch..., *spatial_out, out_features)``. ``out_sharding`` is for meshes with
        explicit axes.
        """
        seen = _layer.AsFlaxSees(self)
        y = nnx.Conv.__call__(seen, inputs, out_sharding)  # type: ignore[arg-type]
        if hasattr(self, "__captures__"):  # Outside of nnx.capture a sown value would stay here.
            for name, value in _layer.found_by_energy(self, seen, inputs.shape).items():
                self.sow(nnx.Intermediate, name, value)
        return y

    def geometry(self, input_shape: Sequence[int]) -> ConvGeometry:
        """Returns grid, kept box and true compression for inputs of ``input_shape``."""
        return _layer.geometry(self, tuple(input_shape), self.kernel_shape)


def remat(f: Callable[..., Any], policy: Callable[..., bool] = save_spectra) -> Callable[..., Any]:
    """:func:`bandjax.checkpoint` for a function of a module.

    What the call changes in the module (batch statistics, random streams) it changes once, and
    recomputation starts from the state as it was.

    Args:
      f: called as ``f(module, *args)``, a method of a class for instance; ``args`` are pytrees of
        arrays.
      policy: tells what is kept, by default the spectra alone.

    Returns:
      A function with the same arguments and result.

    Example:
      >>> class Block(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.conv = BandConv(4, 4, (3, 3), band=Compression(0.5), rngs=rngs)
      ...         self.norm = nnx.BatchNorm(4, rngs=rngs)
      ...
      ...     @remat
      ...     def __call__(self, x):
      ...         return nnx.relu(self.norm(self.conv(x)))
      >>> Block(nnx.Rngs(0))(jnp.ones((2, 9, 9, 4))).shape
      (2, 9, 9, 4)
    """

    @functools.wraps(f)
    def call(module: nnx.Module, *args: Any) -> Any:
        graph, parameters, *rest = nnx.split(module, nnx.Param, ...)

        def pure(parameters: Any, rest: Any, *args: Any) -> Any:
            # A copy: the caller's arrays are not to be written from within.
            inner = nnx.merge(graph, parameters, *rest, copy=True)
            out = f(inner, *args)
            return out, nnx.state(inner, nnx.Not(nnx.Param))

        out, changed = checkpoint(pure, policy)(parameters, rest, *args)
        nnx.update(module, changed)
        return out

    return call
