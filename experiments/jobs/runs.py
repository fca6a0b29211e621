"""One run from its first step, or from its last checkpoint, to its record."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from bandjax.schedule import Schedule
from experiments.cluster.processes import Agreement, is_main
from experiments.jobs.checkpoints import Checkpoints, Position
from experiments.jobs.metrics import METRICS, Metrics, NoMetrics
from experiments.jobs.progress import Length, Report, progress
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance
from experiments.training.loop import Epoch, Trainer, Watch
from experiments.training.network import State, Sums

SHOW_EVERY = 0.2  # seconds


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop, and has written a checkpoint."""


class Stop:
    """Whether somebody asked this process to stop, and how."""

    asked = False
    by = "SIGTERM"


# A terminal sends Ctrl-C to every process of a command, and one that watches another passes it on.
SAME_PRESS = 1.0  # seconds


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While it lasts, SIGTERM and Ctrl-C ask to stop rather than end the program at once.

    A second Ctrl-C ends it at once. Where SIGINT is ignored, as under ``nohup``, it stays so.
    """
    stop = Stop()
    pressed = 0.0

    def ask(number: int, _: Any) -> None:
        nonlocal pressed
        if number == signal.SIGINT:
            now = time.monotonic()
            if pressed and now - pressed > SAME_PRESS:
                raise KeyboardInterrupt
            if not pressed:
                # Not by print: the signal may have come within one.
                os.write(2, b"\nstopping behind a checkpoint; Ctrl-C again ends at once\n")
            pressed = pressed or now
            stop.by = "Ctrl-C"
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield stop
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Interval:
    """How often a checkpoint is written.

    Attributes:
        count: of the unit; 0 for none but at the end.
        unit: ``epochs``, ``steps`` or ``s``, seconds since the last one.
    """

    count: float
    unit: str

    @staticmethod
    def parse(text: str) -> Interval:
        """Read ``10epochs``, ``500steps``, ``60s`` or ``never``.

        Raises:
            UserError: the text is none of these, or its number is not positive.
        """
        if text == "never":
            return Interval(0, "s")
        for unit in ("epochs", "steps", "s"):
            number = text.removesuffix(unit).strip()
            if text.endswith(unit) and number.isdecimal() and int(number) > 0:
                return Interval(int(number), unit)
        raise UserError(
            f"checkpoint-every must be a number of epochs, steps or seconds such as 1epochs, "
            f"500steps or 60s, or never, got {text!r}"
        )


@dataclass(frozen=True)
class Keeping:
    """What a run writes besides its record.

    Attributes:
        every: how often a checkpoint.
        keep: how many of them stay.
        tensorboard: whether to write event files.
    """

    every: Interval
    keep: int
    tensorboard: bool


def watch_only(trainer: Trainer, show: Report, seed: int, epoch: int) -> Watch:
    """Shows progress within an epoch, and ends it soon after a step that was not finite."""
    size = trainer.settings.batch_size * trainer.settings.accumulate
    shown = time.monotonic()

    def watch(done: int, state: State, sums: Sums, before: Sums, seconds: float) -> None:
        nonlocal shown
        now = time.monotonic()
        late = now - shown >= SHOW_EVERY
        if late or jax.process_count() > 1:  # Several processes look at the same steps.
            trainer.check_finite(before, seed, epoch)
        if late:
            shown = now
            count = int(before.steps)
            if count > 0:
                accuracy = int(before.correct) / (count * size)
                show.step(epoch, count, float(before.loss) / count, accuracy, seconds)

    return watch


def train_only(
    trainer: Trainer,
    seed: int,
    title: str,
    console: Console,
    after: Callable[[int, State], None] = lambda epoch, state: None,
) -> tuple[State, Epoch]:
    """Train to the last epoch, with nothing written; returns the state and the last epoch's row.

    ``after`` is called before the first epoch, with 0, and after each; the state is valid until it
    returns.
    """
    settings = trainer.settings
    state = trainer.start(seed)
    examples = trainer.steps * settings.batch_size * settings.accumulate
    after(0, state)
    with progress(console, title, Length(settings.epochs, trainer.steps, examples)) as show:
        for epoch in range(1, settings.epochs + 1):
            watch = watch_only(trainer, show, seed, epoch)
            state, row = trainer.run_epoch(state, seed, epoch, watch=watch)
            show.epoch(epoch, row)
            after(epoch, state)
    return state, row


class Run:
    """One band and one seed.

    Args:
        trainer: of the band.
        label: the band's text.
        seed: of parameters, order and augmentation.
        folder: for metrics and checkpoints.
        keeping: what is written into it.
        console: where progress is shown.
        stop: asked after every step.
        bands: those of the epochs, counted from 0; None for the trainer's all the time.
    """

    def __init__(
        self,
        trainer: Trainer,
        label: str,
        seed: int,
        folder: Path,
        keeping: Keeping,
        console: Console,
        stop: Stop,
        bands: Schedule | None = None,
    ) -> None:
        self.trainer = trainer
        self.bands = bands
        self.seed = seed
        self.folder = folder
        self.keeping = keeping
        self.console = console
        self.stop = stop
        self.config = {**trainer.settings.as_dict(), "band": label, "seed": seed}
        self.extra: Record = {}  # Goes into each checkpoint, and comes back from it.
        self._provenance = provenance()
        self._agreement = Agreement()
        self._rows: list[Epoch] = []
        self._saved_at = time.monotonic()
        self._checkpoints = Checkpoints(
            folder / "checkpoints",
            {**self.config, "data_sha256": trainer.examples.sha256},
            {name: self._provenance[name] for name in ("versions", "git_revision")},
            keeping.keep,
            self._say,
        )

    def train(self, title: str) -> Record:
        """Train to the last epoch; returns the record that is to be written.

        Raises:
            Stopped: SIGTERM or Ctrl-C came, and a checkpoint is written.
            UserError: the loss is no longer finite, a checkpoint is of another run or cannot be
                written.
        """
        trainer, settings = self.trainer, self.trainer.settings
        state, sums = trainer.start(self.seed), trainer.no_steps()
        epoch, done, seconds = 1, 0, 0.0
        begun = is_main() and (self.folder / METRICS).exists()
        restored = self._checkpoints.restore(state, sums)
        if restored is not None:
            step, state, sums, position = restored
            epoch, done, seconds = position.epoch, position.done, position.seconds
            self._rows = [Epoch(*row) for row in position.curves]
            self.extra = position.extra
            self._say(f"{title} · goes on after step {step}, in epoch {position.epoch}")
        elif begun:
            self._say(f"{title} · was begun, and has no checkpoint: from its beginning")
        if self.bands is not None:
            if "bands" in self.extra:
                self.bands.load_state_dict(self.extra["bands"])
            trainer.forget_all_but(self.bands.bands)
        examples = trainer.steps * settings.batch_size * settings.accumulate
        length = Length(settings.epochs, trainer.steps, examples)
        with (
            (Metrics if is_main() else NoMetrics)(
                self.folder, self._rows, trainer.steps, examples, self.keeping.tensorboard
            ) as metrics,
            progress(self.console, title, length) as show,
        ):
            while epoch <= settings.epochs:
                self._choose_band(epoch, state)
                state, row = trainer.run_epoch(
                    state,
                    self.seed,
                    epoch,
                    done=done,
                    sums=sums,
                    seconds=seconds,
                    watch=self._watch(epoch, show),
                )
                self._rows.append(row)
                metrics.write(epoch, row)
                show.epoch(epoch, row)
                epoch, done, sums, seconds = epoch + 1, 0, trainer.no_steps(), 0.0
                over = epoch > settings.epochs
                due, asked = self._due((epoch - 1) * trainer.steps, epoch - 1)
                if over:  # For the record: another process may have to write it.
                    self.extra["kept"] = self._kept()
                if over or due:
                    self._save(epoch, 0, state, sums, 0.0)
                    if asked and not over:
                        raise Stopped
        return self._record(state)

    def _choose_band(self, epoch: int, state: State) -> None:
        """Take the band of an epoch, numbered from 1, calibrated first if it is time to."""
        if self.bands is None:
            return
        if self.bands.due(epoch - 1):
            self.bands.update(epoch - 1, self.trainer.calibrate(state, self.bands.energy))
        self.extra["bands"] = self.bands.state_dict()
        self.trainer.use(self.bands(epoch - 1))

    def _watch(self, epoch: int, show: Report) -> Watch:
        """What is called after each step: shows progress, writes a checkpoint when it is due."""
        trainer = self.trainer
        look = watch_only(trainer, show, self.seed, epoch)

        def watch(done: int, state: State, sums: Sums, before: Sums, seconds: float) -> None:
            look(done, state, sums, before, seconds)
            if done == trainer.steps:  # The epoch's end comes first.
                return
            due, asked = self._due((epoch - 1) * trainer.steps + done, None)
            if due:
                trainer.check_finite(sums, self.seed, epoch)
                self._save(epoch, done, state, sums, seconds)
                if asked:
                    raise Stopped

        return watch

    def _due(self, step: int, epoch: int | None) -> tuple[bool, bool]:
        """Whether to write a checkpoint after a step, and whether to stop behind it.

        Args:
            step: how many there have been.
            epoch: the one that it ends, or None.
        """
        every = self.keeping.every
        timed = every.unit == "s" and every.count > 0
        late = timed and is_main() and time.monotonic() - self._saved_at >= every.count
        asked, due = self._agreement.ask(self.stop.asked, late, wait=epoch is not None)
        if every.unit == "steps" and every.count > 0:
            due = step % every.count == 0
        if every.unit == "epochs" and every.count > 0:
            due = epoch is not None and epoch % every.count == 0
        return asked or due, asked

    def _save(self, epoch: int, done: int, state: State, sums: Sums, seconds: float) -> None:
        position = Position(epoch, done, seconds, [list(row) for row in self._rows], self.extra)
        self._checkpoints.save((epoch - 1) * self.trainer.steps + done, state, sums, position)
        self._saved_at = time.monotonic()
        self._agreement.forget()  # Somebody may have asked for this one twice.

    def _kept(self) -> Record:
        return {
            "compression": self.trainer.compression,
            "saved_bytes": self.trainer.saved_bytes,
            "temporary_bytes": self.trainer.network.temporary_bytes,
        }

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _record(self, state: State) -> Record:
        """What is written when the run has ended."""
        trainer, rows = self.trainer, self._rows
        kept = self.extra.get("kept") or self._kept()  # Older checkpoints do not tell.
        return {
            "config": self.config,
            **self._provenance,
            "data_sha256": trainer.examples.sha256,
            "devices": trainer.devices.describe(),
            "result": {
                "test_accuracy": rows[-1].test_accuracy,
                "test_loss": rows[-1].test_loss,
                "compression": kept["compression"],
                # Over the epochs: of a schedule the last epoch tells little.
                "mean_compression": statistics.mean(row.compression for row in rows),
                "mean_bytes_dropped": statistics.mean(row.bytes_dropped for row in rows),
                "seconds_per_epoch": statistics.median(row.seconds for row in rows),
                "compile_seconds": trainer.network.compile_seconds,
                "compilations": trainer.compilations,
                "saved_bytes": kept["saved_bytes"],
                "temporary_bytes": kept.get("temporary_bytes"),
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            },
            "curves": {name: [getattr(row, name) for row in rows] for name in Epoch._fields},
        }
