"""Checkpoints of a run: written whole or not at all, verified before they are used.

A checkpoint is a folder that orbax writes, ``00000120`` after 120 steps, and beside it a manifest,
``00000120.json``, with the SHA-256 of every file in the folder, of itself, and all that is not an
array. The manifest is written last and moved into place at once: without it the folder does not
count, so that a process may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.cluster.processes import is_main, lost_contact, share
from experiments.settings.errors import UserError
from experiments.settings.records import Record, differing_setting
from experiments.training.loop import Epoch
from experiments.training.network import State, Sums

FORMAT = 1
MARGIN = 100_000  # bytes of a checkpoint besides its arrays


class Position(NamedTuple):
    """How far a run has come, but for its arrays.

    Attributes:
        epoch: the epoch whose steps are being taken, from 1.
        done: how many of its steps have been.
        seconds: how long those took.
        curves: the rows of the epochs before it, as lists of numbers.
        extra: anything else that ``json`` can write, the state of a schedule for instance.
    """

    epoch: int
    done: int
    seconds: float
    curves: list[list[float]]
    extra: Record


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; it need not exist, but that in which it lies.
        config: what the run is: settings, band, seed, data.
        provenance: with what it is made: versions, git revision.
        keep: how many of the latest to keep. The best one, of the highest test accuracy at the
            end of an epoch, is kept besides.
        say: told what the user should know.
    """

    def __init__(
        self,
        folder: Path,
        config: Record,
        provenance: Record,
        keep: int,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.config = config
        self.provenance = provenance
        self.keep = keep
        self.say = say
        self._accuracies: dict[int, float] = {}  # of the valid ones, by step; the main process's
        self._last: int | None = None  # step of the latest valid one, in every process

    def save(self, step: int, state: State, sums: Sums, position: Position) -> None:
        """Write one, then remove those that need not be kept.

        Args:
            step: steps taken since the start of the run.
            state: what they led to.
            sums: of the position's epoch.
            position: the rest.

        Raises:
            UserError: it could not be written; those before it are as they were.
            RuntimeError, ValueError: JAX's own, :func:`lost_contact` with another process.
        """
        arrays = _named(state, sums)
        target = self.folder / f"{step:08d}"

        def prepare() -> None:
            self.folder.mkdir(exist_ok=True)  # A job's folder that is gone is not made anew.
            _manifest(target).unlink(missing_ok=True)
            needed = sum(array.nbytes for array in arrays.values()) + MARGIN
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise OSError(f"it takes {needed:,} bytes, {free:,} are free")

        def finish() -> None:
            content = {
                "format": FORMAT,
                "step": step,
                **position._asdict(),
                "config": self.config,
                **self.provenance,
                # The order of the examples and all else at random is made from these, anew.
                "random": {"seed": self.config["seed"], "epoch": position.epoch},
                "arrays": {k: [list(a.shape), str(a.dtype)] for k, a in arrays.items()},
                "files": _sums_of_files(target),
            }
            text = json.dumps({"sha256": _digest(content), "content": content})
            part = target.with_suffix(".part")
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, _manifest(target))
            self._accuracies[step] = _accuracy(content)
            self._remove_old()

        reason = None
        with _quiet(), _uninterrupted():
            try:
                share(prepare)
                # Every process writes what its devices have.
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(target.absolute(), arrays, force=True)
                share(finish)
            except Exception as error:  # Orbax raises whatever its file system does.
                _hush()
                self._discard(target)
                if jax.process_count() > 1 and lost_contact(error):
                    raise
                reason = " ".join(str(error).split())[:200]
            if reason is not None:
                time.sleep(0.5)  # until what else was being written has ended
        if reason is not None:
            last = self._last
            kept = "there is none before it" if last is None else f"that of step {last} is intact"
            raise UserError(f"checkpoint {target} could not be written, {kept}: {reason}")
        self._last = step

    def restore(self, state: State, sums: Sums) -> tuple[int, State, Sums, Position] | None:
        """The latest one that is whole, or None; says aloud which are not.

        Args:
            state: of the same kind as was saved; its values do not matter.
            sums: likewise.

        Returns:
            The step, and what was given to :meth:`save`.

        Raises:
            UserError: the folder holds something else, or the checkpoints are of another run.
        """
        arrays = _named(state, sums)
        found = share(lambda: self._find(arrays))
        if found is None:
            return None
        self._last = found["step"]
        with ocp.StandardCheckpointer() as checkpointer:
            # Laid out over the devices as this run is, however many it was saved from.
            target = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), arrays
            )
            folder = self.folder / f"{found['step']:08d}"
            restored = checkpointer.restore(folder.absolute(), target)
        state, sums = _unnamed(restored, state, sums)
        position = Position(**{name: found[name] for name in Position._fields})
        return found["step"], state, sums, position

    def _find(self, arrays: dict[str, jax.Array]) -> Record | None:
        """The content of the latest manifest whose checkpoint is whole."""
        manifests = self._manifests()
        found = None
        for path in manifests:
            content = self._read(path)
            if content is None:
                continue
            self._accuracies[content["step"]] = _accuracy(content)
            if found is None and self._is_whole(path, content, arrays):
                found = content
        if manifests and found is None:
            self.say(f"{self.folder}: no checkpoint is whole; the run starts from its beginning")
        return found

    def _manifests(self) -> list[Path]:
        """Those there are, the latest first. What a killed process left half written is removed."""
        names = sorted(self.folder.iterdir(), reverse=True) if self.folder.is_dir() else []
        for path in names:
            if not re.fullmatch(r"\d{8}(\.json|\.part|\.orbax-checkpoint-tmp.*)?", path.name):
                raise UserError(f"{path} is no checkpoint of this program: choose another --out")
        for path in names:
            if path.suffix == ".part":
                path.unlink()
            elif path.suffix != ".json" and not _manifest(path).exists():
                shutil.rmtree(path)
        return [path for path in names if path.suffix == ".json"]

    def _read(self, path: Path) -> Record | None:
        """The content of a manifest whose files are whole, or None."""
        try:
            outer = json.loads(path.read_text(encoding="utf-8"))
            if not (isinstance(outer, dict) and outer.keys() == {"sha256", "content"}):
                raise UserError(f"{path} is not the manifest of a checkpoint: choose another --out")
            content = outer["content"]
            if outer["sha256"] != _digest(content):
                raise ValueError("its sum differs")
        except (OSError, ValueError) as error:
            self.say(f"checkpoint manifest {path} is damaged ({error}); the one before it is used")
            return None
        if content["format"] != FORMAT:
            raise UserError(f"{path} has format {content['format']}, not {FORMAT}")
        differing = differing_setting(content["config"], self.config)
        if differing:
            name, was, now = differing
            raise UserError(f"{path} was made with {name} {was}, not {now}: choose another --out")
        return content

    def _is_whole(self, path: Path, content: Record, arrays: dict[str, jax.Array]) -> bool:
        """Whether every file is as it was written; of another network it is an error."""
        folder = path.with_suffix("")
        found = _sums_of_files(folder) if folder.is_dir() else {}
        damaged = [name for name, digest in content["files"].items() if found.get(name) != digest]
        if damaged:
            self.say(
                f"checkpoint {folder} is damaged ({damaged[0]} is missing, cut short or changed); "
                "the one before it is used"
            )
            self._accuracies.pop(content["step"])
            return False
        for name in sorted(arrays.keys() | content["arrays"].keys()):
            own = arrays.get(name)
            expected = None if own is None else [list(own.shape), str(own.dtype)]
            if content["arrays"].get(name) != expected:
                raise UserError(
                    f"checkpoint {folder} is of another network: its {name} is "
                    f"{content['arrays'].get(name)}, not {expected}"
                )
        for name in ("git_revision", "versions"):
            if content.get(name) != self.provenance.get(name):
                was, now = content.get(name), self.provenance.get(name)
                self.say(f"note: {folder} was made with {name} {was}, this is {now}")
        return True

    def _discard(self, target: Path) -> None:
        """Remove what could not be written to its end."""
        if is_main() and not _manifest(target).exists():
            for path in (target, *self.folder.glob(f"{target.name}.orbax-checkpoint-tmp*")):
                shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self) -> None:
        steps = sorted(self._accuracies)
        best = max(steps, key=lambda step: (self._accuracies[step], step))
        for step in steps[: -self.keep]:
            if step != best:
                path = self.folder / f"{step:08d}"
                _manifest(path).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)
                del self._accuracies[step]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to one line what goes wrong when orbax writes.

    It logs the traceback of an error that it raises too; and what else it was writing then reports
    to an event loop that is closed.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def filtered(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = filtered
    try:
        yield
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect behind it: orbax's threads would go on with what nobody waits for."""
    mine = threading.current_thread() is threading.main_thread()  # signals are the main thread's
    if not mine or not callable(signal.getsignal(signal.SIGINT)):  # or it is ignored
        yield
        return
    pressed: list[bool] = []
    before: Any = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        before(signal.SIGINT, None)


def _hush() -> None:
    """After an error of orbax: what it says of the other arrays, as late as the program's end.

    Each array that it was writing, or was about to write, is a task of asyncio, which reports what
    nobody asked for when the task is collected.
    """
    never = r"coroutine 'async_serialize.*' was never awaited"
    warnings.filterwarnings("ignore", never, RuntimeWarning)
    logging.getLogger("asyncio").addFilter(_is_not_of_orbax)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "exception was never retrieved" not in text or "orbax" not in text


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name, of a whole one or not, however many devices saved it."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder.absolute()).item_metadata.tree
        target = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=here)
            for name, array in saved.items()
        }
        restored = checkpointer.restore(folder.absolute(), target)
    return {name: np.asarray(value) for name, value in restored.items()}


def _manifest(folder: Path) -> Path:
    return folder.with_suffix(".json")


def _named(state: State, sums: Sums) -> dict[str, jax.Array]:
    """All arrays by readable names, such as ``params.convs.0.kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path({**state._asdict(), "sums": sums})
    return {_name(path): leaf for path, leaf in leaves}


def _unnamed(arrays: dict[str, jax.Array], state: State, sums: Sums) -> tuple[State, Sums]:
    tree = jax.tree_util.tree_map_with_path(
        lambda path, _: arrays[_name(path)], {**state._asdict(), "sums": sums}
    )
    sums = tree.pop("sums")
    return State(**tree), sums


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _sums_of_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _accuracy(content: Record) -> float:
    """The test accuracy of a checkpoint at the end of an epoch, less than any of another."""
    whole = content["done"] == 0 and content["curves"]
    return Epoch(*content["curves"][-1]).test_accuracy if whole else -1.0
