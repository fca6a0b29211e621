"""What became of the layers of a model that was prepared for inference."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from bandjax._flax.select import shown
from bandjax._optional import report_module

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class PreparedLayer:
    """What became of one convolution.

    Attributes:
      way: how it is computed: "taps" or "spectrum", which is kept, and the method.
      seconds: of one call, by way, as measured; empty if nothing was to be compared.
      norm: path of the batch norm that it does too; None for none.
      filter_bytes: of its filter, as it is kept.
    """

    way: str
    seconds: dict[str, float]
    norm: str | None
    filter_bytes: int


@dataclasses.dataclass
class PrepareReport:
    """What became of each layer of a model, by path.

    Attributes:
      layers: the convolutions that are prepared.
      left: convolutions that are left alone, each with the reason.
      norms: of each batch norm the path of the layer that does it too, or None.
      unfolded: why the others could not be folded.
    """

    layers: dict[str, PreparedLayer] = dataclasses.field(default_factory=dict)
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    norms: dict[str, str | None] = dataclasses.field(default_factory=dict)
    unfolded: dict[str, str] = dataclasses.field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str]]:
        """Path, fate and measured times of every layer."""
        rows = []
        for path, layer in self.layers.items():
            times = sorted(layer.seconds.items(), key=lambda item: item[1])
            told = "; ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times)
            norm = "" if layer.norm is None else f", with {shown(layer.norm)}"
            rows.append((path, layer.way + norm, told))
        rows += [(path, f"left alone: {reason}", "") for path, reason in self.left.items()]
        for path, into in self.norms.items():
            fate = (
                f"NOT folded: {self.unfolded[path]}" if into is None else f"done by {shown(into)}"
            )
            rows.append((path, fate, ""))
        return rows

    def table(self) -> Table:
        """A ``rich.table.Table`` of the layers.

        Raises:
          ImportError: rich is not installed.
        """
        made: Table = report_module("rich.table").Table(title=self._title())
        escape = report_module("rich.markup").escape
        for heading in ("layer", "computed by", "measured"):
            made.add_column(heading, overflow="fold")
        for path, *cells in self.rows():
            made.add_row(*map(escape, (shown(path), *cells)))
        return made

    def __str__(self) -> str:
        """The table as plain text."""
        lines = [self._title()]
        for path, fate, times in self.rows():
            lines.append(f"  {shown(path)}: {fate}" + (f" ({times})" if times else ""))
        return "\n".join(lines)

    def _title(self) -> str:
        folded = sum(into is not None for into in self.norms.values())
        return (
            f"convolutions: {len(self.layers)} prepared, {len(self.left)} left alone; "
            f"batch norms: {folded} folded, {len(self.norms) - folded} not"
        )
