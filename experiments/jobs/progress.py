"""Progress of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.training.loop import Epoch


class Length(NamedTuple):
    """How long a run is.

    Attributes:
        epochs: in the run.
        steps: in an epoch.
        examples: in an epoch.
    """

    epochs: int
    steps: int
    examples: int


class Report:
    """Is told of steps and epochs; :func:`progress` makes the one that suits the console.

    Args:
        length: of the run.
    """

    def __init__(self, length: Length) -> None:
        self.length = length

    def step(self, epoch: int, done: int, loss: float, accuracy: float, seconds: float) -> None:
        """Report within an epoch: means over its ``done`` steps, which took ``seconds``."""

    def epoch(self, epoch: int, row: Epoch) -> None:
        """Report an epoch, numbered from 1."""

    def _figures(self, row: Epoch) -> str:
        return (
            f"loss {row.train_loss:.4f} · test accuracy {100 * row.test_accuracy:.2f} % · "
            f"{self.length.examples / row.seconds:,.0f} images/s"
        )

    def _so_far(self, done: int, loss: float, accuracy: float, seconds: float) -> str:
        rate = done * self.length.examples / self.length.steps / seconds
        return f"loss {loss:.4f} · accuracy {100 * accuracy:.2f} % · {rate:,.0f} images/s"


class _Lines(Report):
    """The first epoch, the last and every tenth part; once a minute where epochs are long."""

    def __init__(self, length: Length, console: Console, title: str) -> None:
        super().__init__(length)
        self._console, self._title = console, title
        self._last = time.monotonic()
        self._first: tuple[int, float] | None = None  # epoch seen first, and when it ended

    def step(self, epoch: int, done: int, loss: float, accuracy: float, seconds: float) -> None:
        if time.monotonic() - self._last >= 60:
            where = f"epoch {epoch}/{self.length.epochs}, step {done}/{self.length.steps}"
            self._print(f"{where} · {self._so_far(done, loss, accuracy, seconds)}")

    def epoch(self, epoch: int, row: Epoch) -> None:
        epochs = self.length.epochs
        now = time.monotonic()
        self._first = (epoch, now) if self._first is None else self._first
        first, ended = self._first
        if epoch % max(1, epochs // 10) == 0 or epoch in (first, epochs):
            each = row.seconds if epoch == first else (now - ended) / (epoch - first)
            left = timedelta(seconds=round(each * (epochs - epoch)))
            eta = f" · ETA {left}" if epoch < epochs else ""
            self._print(f"epoch {epoch}/{epochs} · {self._figures(row)} · {row.seconds:.2f} s{eta}")

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        self._console.print(f"{self._title} · {text}", soft_wrap=True, highlight=False)


class _Bar(Report):
    def __init__(self, length: Length, bar: Progress, title: str) -> None:
        super().__init__(length)
        self._bar = bar
        total = length.epochs * length.steps
        self._task = bar.add_task(title, total=total, where="", figures="compiling")

    def step(self, epoch: int, done: int, loss: float, accuracy: float, seconds: float) -> None:
        self._show(epoch, done, self._so_far(done, loss, accuracy, seconds))

    def epoch(self, epoch: int, row: Epoch) -> None:
        self._show(epoch, self.length.steps, self._figures(row))

    def _show(self, epoch: int, done: int, figures: str) -> None:
        completed = (epoch - 1) * self.length.steps + done
        where = f"{epoch}/{self.length.epochs}"
        self._bar.update(self._task, completed=completed, where=where, figures=figures)


@contextmanager
def progress(console: Console, title: str, length: Length) -> Iterator[Report]:
    """Show one run's progress.

    Args:
        console: where to.
        title: which run it is.
        length: of the run.

    Yields:
        What to tell of steps and epochs.
    """
    if not console.is_terminal:
        yield _Lines(length, console, title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[where]}"),
        TextColumn("{task.fields[figures]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield _Bar(length, bar, title)
