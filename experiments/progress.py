"""Progress of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.loop import Epoch


class Report(Protocol):
    """Called after each epoch, with its number from 1."""

    def __call__(self, epoch: int, row: Epoch) -> None: ...


@contextmanager
def progress(console: Console, title: str, epochs: int) -> Iterator[Report]:
    """Show one run's progress.

    Args:
        console: where to.
        title: which run it is.
        epochs: how many there will be.

    Yields:
        The function to call after each epoch.
    """
    if not console.is_terminal:
        step = max(1, epochs // 10)

        def line(epoch: int, row: Epoch) -> None:
            if epoch % step == 0 or epoch in (1, epochs):
                text = f"{title} · epoch {epoch}/{epochs} · {_figures(row)} · {row.seconds:.2f} s"
                console.print(text, soft_wrap=True, highlight=False)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=epochs, figures="compiling")

        def update(epoch: int, row: Epoch) -> None:
            bar.update(task, completed=epoch, figures=_figures(row))

        yield update


def _figures(row: Epoch) -> str:
    return f"loss {row.train_loss:.4f} · test accuracy {100 * row.test_accuracy:.2f} %"
