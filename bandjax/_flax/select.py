"""Which convolution layers of a Flax model are meant, and what became of each."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp

from bandjax._bands.band import Band, Bound, Energy, Modes, Nyquist
from bandjax._bands.plan import Plan
from bandjax._conv.geometry import canonical_padding
from bandjax._conv.lax import ConvGeneralDilated
from bandjax._conv.options import ConvSpec
from bandjax._optional import report_module

if TYPE_CHECKING:
    from rich.table import Table

TRANSPOSED = "a transposed convolution: BandConv with input_dilation is its band-limited equal"


@dataclasses.dataclass(frozen=True)
class ConvLayer:
    """A convolution layer as ``where`` sees it.

    Attributes:
      path: where it is in the model, "blocks.0.conv" in ``flax.nnx``, "Block_0/Conv_0" in
        ``flax.linen``; "" if it is the model.
      kernel_size: taps of each spatial axis.
      module: the layer, with all its attributes, for instance ``feature_group_count``.
    """

    path: str
    kernel_size: tuple[int, ...]
    module: Any


Where: TypeAlias = (
    Callable[[ConvLayer], bool] | str | re.Pattern[str] | type | tuple[int, ...] | list[Any] | None
)


def selector(where: Where) -> Callable[[ConvLayer], bool]:
    """Returns ``where`` as a function.

    Args:
      where: a function of a :class:`ConvLayer`; a shell pattern of its whole path, "blocks.*"; a
        compiled regular expression, searched in the path; a class of layers; a kernel size, (3, 3);
        a list of these, of which any may hold; or None for every layer.

    Raises:
      TypeError: it is none of them.
    """
    match where:
        case None:
            return lambda layer: True
        case str():
            return lambda layer: fnmatch.fnmatchcase(layer.path, where)
        case re.Pattern():
            return lambda layer: where.search(layer.path) is not None
        case type():
            return lambda layer: isinstance(layer.module, where)
        case tuple() if where and all(type(k) is int for k in where):
            return lambda layer: layer.kernel_size == where
        case list():
            parts = [selector(part) for part in where]
            return lambda layer: any(part(layer) for part in parts)
        case _ if callable(where):
            return lambda layer: bool(where(layer))
        case _:
            raise TypeError(
                "where must be a function of a bandjax.ConvLayer, a pattern of paths, a compiled "
                "regular expression, a class, a kernel size such as (3, 3), or a list of these, "
                f"got {where!r}"
            )


def refusal(layer: ConvLayer) -> str | None:
    """Returns why a layer of Flax's class ``Conv`` cannot be band-limited; None if it can."""
    rank = len(layer.kernel_size)
    if rank > 3:
        return f"{rank} spatial axes, at most 3 can be band-limited"
    dtype = layer.module.dtype or layer.module.param_dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        return f"it computes in {jnp.dtype(dtype)}, only floating-point and complex types can"
    domain = getattr(layer.module, "param_domain", "spatial")
    if domain == "spectral":
        return "its parameters are spectral, of a band of their own"
    if domain == "prepared":
        return "it is prepared for inference"
    custom = layer.module.conv_general_dilated
    own = custom in (None, jax.lax.conv_general_dilated) or isinstance(custom, ConvGeneralDilated)
    if not own or getattr(layer.module, "conv_general_dilated_cls", None) is not None:
        return "it has a conv_general_dilated of its own"
    return None


@dataclasses.dataclass
class LimitReport:
    """What became of each convolution layer of a model, by path.

    Attributes:
      limited: the band of each layer that is band-limited now.
      excluded: layers that ``where``, or the plan, left alone.
      refused: layers that cannot be band-limited, each with the reason.
    """

    limited: dict[str, Band] = dataclasses.field(default_factory=dict)
    excluded: list[str] = dataclasses.field(default_factory=list)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Path and fate of every layer."""
        return [
            *((path, repr(band)) for path, band in self.limited.items()),
            *((path, "left alone, not selected") for path in self.excluded),
            *((path, f"NOT limited: {reason}") for path, reason in self.refused.items()),
        ]

    def table(self) -> Table:
        """A ``rich.table.Table`` of the layers.

        Raises:
          ImportError: rich is not installed.
        """
        made: Table = report_module("rich.table").Table(title=self._title())
        escape = report_module("rich.markup").escape
        for heading in ("layer", "band"):
            made.add_column(heading, overflow="fold")
        for path, fate in self.rows():
            made.add_row(escape(shown(path)), escape(fate))
        return made

    def __str__(self) -> str:
        """The table as plain text."""
        return "\n".join([self._title(), *(f"  {shown(p)}: {fate}" for p, fate in self.rows())])

    def _title(self) -> str:
        if not self.rows():
            return (
                "convolutions: none was met; those of flax.nnx within nnx.bridge.to_linen are no "
                "layers of flax.linen"
            )
        return (
            f"convolutions: {len(self.limited)} band-limited, {len(self.excluded)} not selected, "
            f"{len(self.refused)} impossible"
        )

    def tell_refused(self, paths: Iterable[str], strict: bool, stacklevel: int) -> None:
        """Warns of refused layers, or raises.

        Raises:
          ValueError: there are any, and ``strict``.
        """
        listed = ", ".join(f"{shown(path)} ({self.refused[path]})" for path in paths)
        if not listed:
            return
        message = f"these convolutions cannot be band-limited: {listed}"
        if strict:
            raise ValueError(f"{message}; leave them out with where=, or say strict=False")
        warnings.warn(f"{message}; where= can leave them out", stacklevel=stacklevel + 1)


@dataclasses.dataclass(frozen=True)
class Limit:
    """What the convolutions of a model become.

    Attributes:
      spec: the options of every layer, and its band where there is no plan.
      plan: a band and a grid for each layer.
    """

    spec: ConvSpec
    plan: Plan | None = None

    @classmethod
    def of(cls, band: Band | Plan, *options: Any) -> Limit:
        """Returns the limit of a band or a plan, with the options of :class:`ConvSpec` in order.

        Raises:
          TypeError, ValueError: an option that no layer could go with.
        """
        if not isinstance(band, Plan):
            return cls(ConvSpec(band, *options))
        spec = ConvSpec(None, *options)
        if spec.grid is not None:
            raise ValueError(f"grid must be None with a plan, which has its own, got {spec.grid}")
        return cls(spec, band)

    def of_pools(self, pools: bool) -> Bound:
        """Returns the bound of a model's pools, if they are to be exchanged.

        Raises:
          TypeError: the band is one by energy, or ``pools`` is not True or False.
        """
        if not isinstance(pools, bool):
            raise TypeError(f"pools must be True or False, got {pools!r}")
        band = self.spec.band
        if pools and isinstance(band, Energy):
            raise TypeError(
                "pools=True needs bandjax.Compression, bandjax.Modes, bandjax.Nyquist, a plan or "
                f"None, got {band!r}"
            )
        return band if pools and not isinstance(band, Energy) else None

    def attributes(self, layer: ConvLayer) -> dict[str, Any]:
        """Returns what ``BandConv`` has for this layer, attribute by attribute.

        Raises:
          ValueError: the band or the grid is for another number of axes.
        """
        options = self.spec.attributes()
        if self.plan is not None:
            planned = self.plan.layers[layer.path]
            return {**options, "band": planned.band(layer.path), "grid": planned.grid}
        rank = len(layer.kernel_size)
        band, grid = self.spec.band, self.spec.grid
        bounded: Any = band
        while isinstance(bounded, Nyquist | Energy):
            bounded = bounded.band if isinstance(bounded, Nyquist) else bounded.at_most
        for name, of in (("band", bounded), ("grid", grid)):
            values = of.limits if isinstance(of, Modes) else of if isinstance(of, tuple) else ()
            if values and len(values) != rank:
                raise ValueError(
                    f"{name} {of!r} is for {len(values)} spatial axes, but layer "
                    f"{shown(layer.path)} has {rank}: choose layers with where="
                )
        periodic = canonical_padding(layer.module.padding) == "CIRCULAR"  # Its grid is its period.
        return {**options, "grid": None if periodic else grid}


def shown(path: str) -> str:
    """A path for people: that of the model itself is empty."""
    return path or "(the model itself)"
