"""Band-limited layers for Equinox: ``pip install 'bandjax[equinox]'``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._bands.band import Band
from bandjax._conv.geometry import ConvGeometry, conv_geometry
from bandjax._conv.lax import ConvGeneralDilated
from bandjax._conv.options import ConvSpec
from bandjax._flax.select import TRANSPOSED, ConvLayer, Limit, LimitReport, Where, selector, shown
from bandjax._optional import needs

try:
    import equinox as eqx
except ImportError as error:
    raise needs("equinox", "equinox") from error

__all__ = ["BandConv", "band_limit"]

_BY_REPETITION = {"REFLECT": "reflect", "REPLICATE": "edge"}


class BandConv(eqx.nn.Conv):
    """``equinox.nn.Conv``, computed on the low frequencies of its input and kernel alone.

    Parameters, their names, shapes and initial values are those of ``equinox.nn.Conv``; a tree of
    its leaves fits this layer.

    Args:
      num_spatial_dims, in_channels, out_channels, kernel_size, stride, padding, key: as in
        ``equinox.nn.Conv``, and so all of ``**conv`` (``dilation``, ``groups``, ``use_bias``,
        ``padding_mode``, ``dtype``). ``padding_mode="CIRCULAR"`` makes a periodic layer, on a grid
        of one period.
      band: :class:`bandjax.Compression`, :class:`bandjax.Modes`, :class:`bandjax.Energy`, or None
        for every frequency, with which the layer equals ``equinox.nn.Conv``.
      grid, method, implementation, residual_dtype, recompute_filter: see :func:`bandjax.band_conv`.

    Raises:
      TypeError, ValueError: an argument has the wrong type or a value out of range.

    Example:
      >>> key = jax.random.key(0)
      >>> layer = BandConv(2, 3, 8, 3, padding="SAME", band=Compression(0.5), key=key)
      >>> jax.vmap(layer)(jnp.ones((2, 3, 32, 32))).shape
      (2, 8, 32, 32)
    """

    band: Band = eqx.field(static=True)
    grid: Any = eqx.field(static=True)
    method: str = eqx.field(static=True)
    implementation: str | None = eqx.field(static=True)
    residual_dtype: Any = eqx.field(static=True)
    recompute_filter: bool = eqx.field(static=True)

    def __init__(
        self,
        num_spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        *,
        band: Band = None,
        grid: int | Sequence[int] | None = None,
        method: str = "auto",
        implementation: str | None = None,
        residual_dtype: jax.typing.DTypeLike | None = None,
        recompute_filter: bool = True,
        key: jax.Array,
        **conv: Any,
    ) -> None:
        super().__init__(
            num_spatial_dims,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            key=key,
            **conv,
        )
        _set_options(
            self, ConvSpec(band, grid, method, implementation, residual_dtype, recompute_filter)
        )

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Applies the layer to ``(in_channels, *spatial)``.

        Returns ``(out_channels, *spatial_out)``. ``key`` is ignored, as by ``equinox.nn.Conv``.
        Batches go through ``jax.vmap``.

        Raises:
          ValueError: ``x`` has another number of axes.
        """
        del key
        if x.ndim != self.num_spatial_dims + 1:
            raise ValueError(
                f"x must have {self.num_spatial_dims + 1} axes, (in_channels, *spatial), got shape "
                f"{x.shape}; use jax.vmap for batches"
            )
        y = self._periodic(x) if self.padding_mode == "CIRCULAR" else self._padded(x)
        return y if self.bias is None else y + self.bias

    def geometry(self, input_shape: Sequence[int]) -> ConvGeometry:
        """Returns grid, kept box and true compression for inputs ``(in_channels, *spatial)``."""
        channels, *sizes = input_shape
        circular = self.padding_mode == "CIRCULAR"
        padding: Any = "CIRCULAR" if circular else self.padding
        if self.padding_mode in _BY_REPETITION:
            sizes = [n + sum(pair) for n, pair in zip(sizes, self._amounts(sizes), strict=True)]
            padding = "VALID"
        out, in_, *taps = self.weight.shape
        return conv_geometry(
            (*sizes, channels),
            (*taps, in_, out),
            self.band,
            strides=self.stride,
            padding=padding,
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
            grid=self.grid,
        )

    def _convolve(self, x: jax.Array, strides: Sequence[int], padding: Any) -> jax.Array:
        return ConvGeneralDilated.of(self)(
            x[None],
            self.weight,
            strides,
            padding,
            rhs_dilation=self.dilation,
            feature_group_count=self.groups,
        )[0]

    def _padded(self, x: jax.Array) -> jax.Array:
        if self.padding_mode == "ZEROS":
            return self._convolve(x, self.stride, self.padding)
        widths = [(0, 0), *self._amounts(x.shape[1:])]
        return self._convolve(
            jnp.pad(x, widths, _BY_REPETITION[self.padding_mode]), self.stride, "VALID"
        )

    def _periodic(self, x: jax.Array) -> jax.Array:
        """The layer on circles of one period each, from wherever its padding begins to read.

        The periodic operator begins ``(window - 1) // 2`` points before the first sample and makes
        ``ceil(size / stride)`` outputs. Padding may begin elsewhere, which is a turn of the circle,
        and read further than once around it, where outputs come again.
        """
        sizes, strides, windows = x.shape[1:], self.stride, self._windows()
        amounts = self._amounts(sizes)
        outs = [
            (n + low + high - w) // s + 1
            for n, (low, high), w, s in zip(sizes, amounts, windows, strides, strict=True)
        ]
        turns = [low - (w - 1) // 2 for (low, _), w in zip(amounts, windows, strict=True)]
        axes = range(1, len(sizes) + 1)
        x = jnp.roll(x, turns, axes)
        around = all(
            out <= -(-n // s) or n % s == 0 for n, s, out in zip(sizes, strides, outs, strict=True)
        )
        y = self._convolve(x, strides if around else (1,) * len(sizes), "CIRCULAR")
        for axis, out, s in zip(axes, outs, strides, strict=True):
            places = (np.arange(max(out, 0)) * (1 if around else s)) % y.shape[axis]
            y = jnp.take(y, places, axis)
        return y

    def _windows(self) -> list[int]:
        return [(k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]

    def _amounts(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """How much is padded before and after each axis."""
        if not isinstance(self.padding, str):
            return [(low, high) for low, high in self.padding]
        pads = jax.lax.padtype_to_pads(sizes, self._windows(), self.stride, self.padding)
        return [(int(low), int(high)) for low, high in pads]


def band_limit(
    model: Any,
    band: Band,
    where: Where = None,
    *,
    strict: bool = False,
    grid: int | Sequence[int] | None = None,
    method: str = "auto",
    implementation: str | None = None,
    residual_dtype: jax.typing.DTypeLike | None = None,
    recompute_filter: bool = True,
) -> tuple[Any, LimitReport]:
    """Returns an existing model with its convolutions band-limited, and what became of each.

    Every ``equinox.nn.Conv`` in the model (``Conv1d``, ``Conv2d`` and ``Conv3d`` too) is replaced
    by a :class:`BandConv` with the same arrays; a ``BandConv`` has its band and options replaced.
    The model that is given stays as it is. The tree of the new one has other static fields, so that
    compiled functions trace it anew and an optimizer's state is to be made, or mapped, for it.

    Args:
      model: a module, or any tree of them.
      band: for all layers; None is every frequency.
      where: which layers, see :func:`bandjax.nnx.band_limit`; paths are such as "layers.0.conv".
      strict: raise where a selected layer cannot be band-limited; by default warn. Such are
        ``ConvTranspose``, layers with more than three spatial axes, and subclasses of ``Conv`` that
        have fields or a ``__call__`` of their own.
      grid, method, implementation, residual_dtype, recompute_filter: of all layers, see
        :func:`bandjax.band_conv`. Periodic layers keep their grid.

    Returns:
      The model, and a :class:`bandjax.LimitReport`.

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: no layer is selected, or, with ``strict``, a selected one cannot be limited.

    Example:
      >>> import equinox as eqx
      >>> keys = jax.random.split(jax.random.key(0))
      >>> model = eqx.nn.Sequential(
      ...     [eqx.nn.Conv2d(3, 8, 3, key=keys[0]), eqx.nn.Conv2d(8, 8, 1, key=keys[1])]
      ... )
      >>> limited, report = band_limit(model, Compression(0.5), where=(3, 3))
      >>> print(report)
      convolutions: 1 band-limited, 1 not selected, 0 impossible
        layers.0: Compression(rate=0.5)
        layers.1: left alone, not selected
    """
    spec = ConvSpec(band, grid, method, implementation, residual_dtype, recompute_filter)
    limit = Limit(spec)
    chosen = selector(where)
    layers = _convolutions(model)
    report = LimitReport()
    changed: dict[int, Any] = {}
    for number, layer in enumerate(layers):
        reason = _refusal(layer.module)
        if not chosen(layer):
            report.excluded.append(layer.path)
        elif reason is not None:
            report.refused[layer.path] = reason
        else:
            # The rank of band and grid is checked for each layer.
            options = limit.attributes(layer)
            if layer.module.padding_mode == "CIRCULAR":
                options["grid"] = None  # It is the period.
            changed[number] = _limited(layer.module, ConvSpec(**options))
            report.limited[layer.path] = options["band"]
    if not changed and not report.refused:
        found = ", ".join(shown(layer.path) for layer in layers) or "none"
        raise ValueError(f"no convolution layer is selected (those of the model: {found})")
    report.tell_refused(report.refused, strict, stacklevel=2)
    # By position: tree_at could not tell apart one layer that stands in two places.
    nodes, structure = jax.tree.flatten(model, is_leaf=_is_convolution)
    places = [place for place, node in enumerate(nodes) if _is_convolution(node)]
    for number, layer in changed.items():
        nodes[places[number]] = layer
    return jax.tree.unflatten(structure, nodes), report


def _is_convolution(node: Any) -> bool:
    return isinstance(node, eqx.nn.Conv | eqx.nn.ConvTranspose)


def _convolutions(model: Any) -> list[ConvLayer]:
    """Every convolution of a tree, by its path."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_convolution)
    return [
        ConvLayer(
            jax.tree_util.keystr(path, simple=True, separator="."), tuple(node.kernel_size), node
        )
        for path, node in nodes
        if _is_convolution(node)
    ]


def _refusal(layer: Any) -> str | None:
    """Why a layer cannot be band-limited; None if it can."""
    kind = type(layer)
    if isinstance(layer, eqx.nn.ConvTranspose):
        return TRANSPOSED
    if layer.num_spatial_dims > 3:
        return f"{layer.num_spatial_dims} spatial axes, at most 3 can be band-limited"
    if isinstance(layer, BandConv):
        return None
    own = {f.name for f in dataclasses.fields(kind)} - {
        f.name for f in dataclasses.fields(eqx.nn.Conv)
    }
    if own or kind.__call__ is not eqx.nn.Conv.__call__:
        return f"{kind.__name__} has {', '.join(sorted(own)) or 'a __call__'} of its own"
    return None


def _limited(layer: Any, spec: ConvSpec) -> BandConv:
    """A ``BandConv`` with a layer's fields."""
    made = object.__new__(BandConv)
    for field in dataclasses.fields(eqx.nn.Conv):
        object.__setattr__(made, field.name, getattr(layer, field.name))
    _set_options(made, spec)
    return made


def _set_options(layer: BandConv, spec: ConvSpec) -> None:
    for name, value in spec.attributes().items():
        object.__setattr__(layer, name, value)
