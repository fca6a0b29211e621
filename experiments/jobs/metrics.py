"""What a run leaves behind while it trains: one line an epoch, and events for TensorBoard."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.settings.errors import UserError
from experiments.training.loop import Epoch

METRICS = "metrics.jsonl"  # in a run's folder


def import_tensorboard() -> Any:
    """The module that writes event files.

    Raises:
        UserError: it is not installed.
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise UserError(
            "--tensorboard needs tensorboardX: pip install 'bandjax[tensorboard]'"
        ) from error
    return tensorboardX


class Metrics:
    """A run's rows as they come.

    ``metrics.jsonl`` has one line for each epoch. A run that is resumed writes the lines of the
    epochs before it anew, so that each is there once, whatever was written before it stopped.

    Args:
        folder: of the run; made if it is not there.
        rows: of the epochs that are over.
        steps: steps in an epoch.
        examples: examples in an epoch.
        tensorboard: whether to write event files, whose step is the number of the epoch.
    """

    def __init__(
        self, folder: Path, rows: list[Epoch], steps: int, examples: int, tensorboard: bool
    ) -> None:
        self._steps, self._examples = steps, examples
        folder.mkdir(exist_ok=True)
        path = folder / METRICS
        part = path.with_suffix(".part")
        lines = [self._line(epoch, row) for epoch, row in enumerate(rows, 1)]
        part.write_text("".join(lines), encoding="utf-8")
        os.replace(part, path)
        self._file = path.open("a", encoding="utf-8")
        self._events: Any = None
        if tensorboard:
            # Events of later epochs, of before the run stopped, are not shown any more.
            purge = len(rows) + 1 if rows else None
            writer = import_tensorboard().SummaryWriter
            # The suffix: two files of one second would have one name.
            suffix = f".epoch{len(rows)}"
            self._events = writer(str(folder), purge_step=purge, filename_suffix=suffix)

    def write(self, epoch: int, row: Epoch) -> None:
        """Add an epoch, numbered from 1."""
        self._file.write(self._line(epoch, row))
        self._file.flush()
        if self._events is not None:
            for name, value in self._figures(row).items():
                tag = re.sub("^(train|test)_", r"\1/", name)  # a panel for each
                self._events.add_scalar(tag, value, epoch)
            self._events.flush()

    def _figures(self, row: Epoch) -> dict[str, float]:
        return {**row._asdict(), "images_per_second": self._examples / row.seconds}

    def _line(self, epoch: int, row: Epoch) -> str:
        figures = {"epoch": epoch, "step": epoch * self._steps, **self._figures(row)}
        return json.dumps(figures) + "\n"

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


class NoMetrics(Metrics):
    """Writes nothing: of several processes one keeps the metrics."""

    def __init__(self, *_: Any) -> None:
        pass

    def write(self, epoch: int, row: Epoch) -> None:
        """Nothing."""

    def __exit__(self, *_: Any) -> None:
        pass
