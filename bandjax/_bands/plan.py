"""Plans: one static band for each convolution layer of a model, calibrated or allocated."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bandjax._bands.band import Bound, Energy, Modes, check_bound
from bandjax._bands.boxes import Grid, kept_per_axis
from bandjax._bands.serialise import band_from_json, band_to_json
from bandjax._optional import report_module

if TYPE_CHECKING:
    from rich.table import Table

FORMAT, VERSION = "bandjax.Plan", 1
COSTS = ("bytes", "coefficients", "multiply-adds")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the layers of a model may cost together, for :func:`bandjax.allocate`.

    Attributes:
      share: of the cost of the layers with every frequency kept, ``0 < share <= 1``.
      of: "bytes" that are kept for the backward pass, "coefficients" of the half spectra, each
        counted once for every input channel, or "multiply-adds" of a forward pass.
      at_most: a :class:`bandjax.Compression`, :class:`bandjax.Modes` or :class:`bandjax.Nyquist`
        that bounds the box of every layer. None for no bound.

    Raises:
      TypeError: ``share`` is no real number, or ``at_most`` no such band.
      ValueError: ``share`` is out of range, or ``of`` none of these.
    """

    share: float
    of: str = "bytes"
    at_most: Bound = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", _share("share", self.share, above_zero=True))
        if self.of not in COSTS:
            raise ValueError(f"of must be one of {', '.join(COSTS)}, got {self.of!r}")
        check_bound(self.at_most)


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class PlannedModes(Modes):
    """The band of one layer of a plan, which fits the convolution that it was found for alone.

    Attributes:
      limits: as of :class:`Modes`.
      path: of the layer.
      planned: what the plan has for it.
    """

    path: str
    planned: LayerPlan

    def __init__(self, path: str, planned: LayerPlan) -> None:
        super().__init__(*planned.modes)
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "planned", planned)

    def __repr__(self) -> str:
        return f"{super().__repr__()} of a plan"

    def modes(self, grid: Grid) -> tuple[int, ...]:
        """Returns the limits for the grid of the plan.

        Raises:
          ValueError: another grid.
        """
        if tuple(grid) != self.planned.grid:
            raise ValueError(
                f"the plan of layer {self.path!r} is for a grid of {self.planned.grid}, got "
                f"{tuple(grid)}"
            )
        return self.limits

    def check(self, size: tuple[int, ...], kernel_shape: tuple[int, ...]) -> None:
        """Checks the convolution that the band meets.

        Raises:
          ValueError: another spatial size of the input, or another kernel.
        """
        for what, wanted, got in (
            ("kernels of shape", self.planned.kernel_shape, kernel_shape),
            ("inputs of size", self.planned.size, size),
        ):
            if wanted != got:
                raise ValueError(
                    f"the plan of layer {self.path!r} is for {what} {wanted}, got {got}: calibrate "
                    "the model on such inputs"
                )


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """What a plan has for one convolution layer.

    Attributes:
      kernel_shape: ``(*taps, in / groups, out)``.
      size: the spatial shape of the layer's input.
      grid: points on the circle of each axis.
      modes: the largest frequency kept of each axis.
      energy: share of the calibration inputs' spectral energy in the box of ``modes``.

    Raises:
      TypeError: a value of another type.
      ValueError: a value out of range, or lengths that do not agree.
    """

    kernel_shape: tuple[int, ...]
    size: tuple[int, ...]
    grid: tuple[int, ...]
    modes: tuple[int, ...]
    energy: float

    def __post_init__(self) -> None:
        """Makes the entries tuples of integers, and checks that they fit together."""
        for name in ("kernel_shape", "size", "grid", "modes"):
            object.__setattr__(self, name, _integers(name, getattr(self, name), name != "modes"))
        rank = len(self.kernel_shape) - 2
        if rank not in (1, 2, 3):
            raise ValueError(
                f"kernel_shape must have 3 to 5 entries, (*taps, in / groups, out), got "
                f"{self.kernel_shape}"
            )
        for name in ("size", "grid", "modes"):
            if len(getattr(self, name)) != rank:
                raise ValueError(
                    f"{name} must have one entry for each of the {rank} spatial axes of "
                    f"kernel_shape, got {getattr(self, name)}"
                )
        Modes(*self.modes).modes(self.grid)
        object.__setattr__(self, "energy", _share("energy", self.energy))

    @property
    def kept(self) -> int:
        """Kept coefficients of the half spectrum, for each channel."""
        return math.prod(kept_per_axis(self.grid, self.modes))

    @property
    def total(self) -> int:
        """All coefficients of the half spectrum, for each channel."""
        return math.prod(kept_per_axis(self.grid, tuple(g // 2 for g in self.grid)))

    @property
    def compression(self) -> float:
        """The true share of coefficients that is dropped."""
        return 1 - self.kept / self.total

    def band(self, path: str) -> PlannedModes:
        """Returns the band for a layer, which refuses inputs of another size."""
        return PlannedModes(path, self)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One static band for each convolution layer of a model.

    Made by :func:`bandjax.calibrate` or :func:`bandjax.allocate`, and taken by
    :func:`bandjax.nnx.band_limit` and :class:`bandjax.linen.band_limited`, which refuse it for a
    model whose layers or kernel shapes differ; the layers refuse inputs of another size.

    Attributes:
      layers: by path, "blocks.0.conv" in ``flax.nnx`` and "Block_0/Conv_0" in ``flax.linen``, in
        the order of the first call.
      input_shape: of one example of the calibration batches, without the batch axis.
      band: what was asked for, with its bound: a share of energy, or a :class:`bandjax.Budget`.
      left_out: further convolution layers of the model, each with the reason why it has no band.

    Raises:
      TypeError, ValueError: an attribute that no plan can have.

    Example:
      >>> layer = LayerPlan((3, 3, 4, 4), (16, 16), (17, 17), (3, 3), 0.93)
      >>> plan = Plan({"conv": layer}, (16, 16, 4), Energy(0.9))
      >>> print(plan)
      plan at energy 0.9 for inputs (16, 16, 4): 81.7% of 153 coefficients dropped
        layer  kernel        input     grid      modes   kept  compression  energy
        conv   (3, 3, 4, 4)  (16, 16)  (17, 17)  (3, 3)  28    81.7%        0.9300
    """

    layers: Mapping[str, LayerPlan]
    input_shape: tuple[int, ...]
    band: Energy | Budget
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the entries, and copies the mappings so that they cannot change."""
        if not isinstance(self.band, Energy | Budget):
            raise TypeError(f"band must be a bandjax.Energy or a bandjax.Budget, got {self.band!r}")
        object.__setattr__(self, "input_shape", _integers("input_shape", self.input_shape, True))
        for name, kind in (("layers", LayerPlan), ("left_out", str)):
            entries = getattr(self, name)
            if not isinstance(entries, Mapping):
                raise TypeError(f"{name} must map paths of layers, got {entries!r}")
            for path, entry in entries.items():
                if not isinstance(path, str) or not isinstance(entry, kind):
                    raise TypeError(
                        f"{name} must map strings to {kind.__name__}, got {path!r}: {entry!r}"
                    )
            object.__setattr__(self, name, dict(entries))
        if not self.layers:
            raise ValueError("layers must hold at least one layer, got none")

    @property
    def share(self) -> float:
        """The share that was asked for: of energy, or of what a budget counts."""
        return self.band.share

    @property
    def compression(self) -> float:
        """The share of all layers' coefficients that is dropped, each weighed by its channels."""
        return 1 - self._weighed("kept") / self._weighed("total")

    def _weighed(self, count: str) -> int:
        return sum(layer.kernel_shape[-2] * getattr(layer, count) for layer in self.layers.values())

    def difference(
        self, kernel_shapes: Mapping[str, tuple[int, ...]], selected: Collection[str]
    ) -> str | None:
        """Tells in what a model differs from that of the plan.

        Args:
          kernel_shapes: of every convolution layer of the model, by path.
          selected: the paths that the plan is to be applied to.

        Returns:
          The difference in words; None if there is none.
        """
        parts = []
        if missing := [path for path in self.layers if path not in kernel_shapes]:
            parts.append(f"the model lacks {_listed(missing)}")
        if extra := [path for path in selected if path not in self.layers]:
            parts.append(f"the plan has nothing for {_listed(extra)}")
        for path in selected:
            if path in self.layers and kernel_shapes[path] != self.layers[path].kernel_shape:
                parts.append(
                    f"the kernel of {path!r} has shape {kernel_shapes[path]}, in the plan "
                    f"{self.layers[path].kernel_shape}"
                )
        return "; ".join(parts) or None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON: the whole file or, if that fails, nothing.

        Raises:
          OSError: the file cannot be written.
        """
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads what :meth:`save` wrote.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is no plan, a damaged one, or one of another version; the message says
            what is wrong where.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: not a whole JSON file: {error}") from error
        try:
            return cls.from_dict(content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as what JSON knows: dictionaries, lists, strings and numbers."""
        layers = {
            path: {**dataclasses.asdict(layer), "compression": layer.compression}
            for path, layer in self.layers.items()
        }
        return {
            "format": FORMAT,
            "version": VERSION,
            "input_shape": self.input_shape,
            "share": self.share,
            **({"of": self.band.of} if isinstance(self.band, Budget) else {}),
            "at_most": band_to_json(self.band.at_most),
            "compression": self.compression,
            "layers": layers,
            "left_out": self.left_out,
        }

    @classmethod
    def from_dict(cls, content: Any) -> Plan:
        """Returns the plan of :meth:`as_dict`.

        Raises:
          TypeError, ValueError: there is none; the message says what is wrong where.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f'not a plan: there is no "format": "{FORMAT}"')
        version = content.get("version")
        if type(version) is not int or version != VERSION:
            raise ValueError(
                f"a plan of version {version!r}, this bandjax reads version {VERSION}: calibrate "
                "anew, or use the bandjax that wrote it"
            )
        names = ("input_shape", "share", "at_most", "compression", "layers", "left_out")
        of = ("of",) if "of" in content else ()
        _fields("the plan", content, ("format", "version", *names, *of))
        if not isinstance(content["layers"], dict):
            raise TypeError(f"layers must be an object, got {content['layers']!r}")
        layers = {path: _layer_from_json(path, entry) for path, entry in content["layers"].items()}
        at_most = band_from_json(content["at_most"])
        if band_to_json(at_most) != content["at_most"]:
            raise ValueError(f"at_most has unknown fields: {content['at_most']!r}")
        share = content["share"]
        band = Budget(share, content["of"], at_most) if of else Energy(share, at_most)
        plan = cls(layers, content["input_shape"], band, content["left_out"])
        _same_compression("the plan", content["compression"], plan.compression)
        return plan

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                path or "(the model itself)",
                str(layer.kernel_shape),
                str(layer.size),
                str(layer.grid),
                str(layer.modes),
                str(layer.kept),
                f"{layer.compression:.1%}",
                f"{layer.energy:.4f}",
            )
            for path, layer in self.layers.items()
        ]

    def _title(self) -> str:
        bound = "" if self.band.at_most is None else f", at most {self.band.at_most!r},"
        asked = f"at energy {self.share:g}"
        if isinstance(self.band, Budget):
            asked = f"of {self.share:.1%} of the {self.band.of}"
        return (
            f"plan {asked}{bound} for inputs {self.input_shape}: "
            f"{self.compression:.1%} of {sum(layer.total for layer in self.layers.values())} "
            "coefficients dropped"
        )

    def table(self) -> Table:
        """A ``rich.table.Table`` with one row for each layer.

        Raises:
          ImportError: rich is not installed.
        """
        caption = "".join(f"{path}: {reason}\n" for path, reason in self.left_out.items())
        escape = report_module("rich.markup").escape
        made: Table = report_module("rich.table").Table(
            title=escape(self._title()), caption=escape(caption.rstrip()) or None
        )
        for heading in _HEADINGS[:1]:
            made.add_column(heading, overflow="fold")
        for heading in _HEADINGS[1:]:
            made.add_column(heading, justify="right")
        for row in self._rows():
            made.add_row(*map(escape, row))
        return made

    def __str__(self) -> str:
        rows = [_HEADINGS, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"{path}: {reason}" for path, reason in self.left_out.items()]
        return "\n  ".join([self._title(), *lines])


_HEADINGS = ("layer", "kernel", "input", "grid", "modes", "kept", "compression", "energy")


def _listed(paths: Sequence[str], most: int = 6) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(map(repr, paths[:most])) + more


def _integers(name: str, values: Any, positive: bool) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(type(v) is int for v in values):
        raise TypeError(f"{name} must be a list of integers, got {values!r}")
    if min(values, default=0) < (1 if positive and values else 0):
        raise ValueError(f"{name} must be {'positive' if positive else '>= 0'}, got {values!r}")
    return tuple(values)


def _share(name: str, value: Any, *, above_zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    value = float(value)
    if not 0 <= value <= 1 or (above_zero and value == 0):
        least = "<" if above_zero else "<="
        raise ValueError(f"{name} must satisfy 0 {least} {name} <= 1, got {value}")
    return value


def _fields(where: str, content: Mapping[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in content]
    unknown = [name for name in content if name not in names]
    for kind, found in (("lacks", missing), ("has unknown fields", unknown)):
        if found:
            raise ValueError(f"{where} {kind} {', '.join(found)}")


def _same_compression(where: str, told: Any, true: float) -> None:
    if not math.isclose(_share("compression", told), true, abs_tol=1e-9):
        raise ValueError(f"{where} tells a compression of {told}, its modes have {true}")


def _layer_from_json(path: str, entry: Any) -> LayerPlan:
    where = f"layer {path!r}"
    if not isinstance(entry, dict):
        raise TypeError(f"{where} must be an object, got {entry!r}")
    names = [field.name for field in dataclasses.fields(LayerPlan)]
    _fields(where, entry, (*names, "compression"))
    try:
        layer = LayerPlan(**{name: entry[name] for name in names})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error
    _same_compression(where, entry["compression"], layer.compression)
    return layer


def band_or_plan_from_json(content: Any) -> Any:
    """Returns the band, or the plan, that ``band_to_json`` wrote.

    Raises:
      TypeError, ValueError: neither is written so.
    """
    match content:
        case {"plan": plan}:
            return Plan.from_dict(plan)
    return band_from_json(content)
