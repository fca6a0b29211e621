"""One JSON file per finished run, so that an interrupted job goes on where it stopped."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import bandjax
from experiments.settings.bands import file_stem
from experiments.settings.config import Settings
from experiments.settings.errors import UserError
from experiments.settings.variants import split_variant

Record = dict[str, Any]


def run_path(out: Path, band: str, seed: int) -> Path:
    """Where the record of a run lies, for instance ``out/compression-0.5_seed-0.json``."""
    return out / f"{file_stem(band)}_seed-{seed}.json"


def write_json(path: Path, content: Record) -> None:
    """Write all of the file or nothing: a reader, or a second start, never sees half of it.

    Each entry is one line, so that curves of hundreds of epochs stay readable as a whole.
    """
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    part = path.with_suffix(".part")
    part.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    os.replace(part, path)


def read_runs(out: Path, settings: Record) -> dict[tuple[str, int], Record]:
    """The finished runs in a folder, by band and seed.

    Args:
        out: the folder.
        settings: what the runs' settings must be, all but band, its own options and seed.

    Raises:
        UserError: a file is damaged, or a run there had other settings.
    """
    runs = {}
    for path in sorted(out.glob("*_seed-*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            config = dict(record["config"])
            key = config.pop("band"), config.pop("seed")
            if [type(part) for part in key] != [str, int]:
                raise TypeError("band or seed is of another kind")
            record["result"]["test_accuracy"], record["curves"]["test_accuracy"]
            own = split_variant(key[0])[1]
        except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: not a record of a run: {error!r}") from error
        differing = differing_setting(config, {**settings, **own})
        if differing:
            name, was, now = differing
            raise UserError(
                f"{path} was trained with {name} {was}, not {now}: choose another --out"
            )
        runs[key] = record
    return runs


def differing_setting(was: Record, now: Record) -> tuple[str, Any, Any] | None:
    """The first setting in which two differ, its name and both values; None if they are equal.

    A setting that an older record lacks, it had by its default.
    """
    defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    for name in {**was, **now}:
        one, other = (side.get(name, defaults.get(name)) for side in (was, now))
        if one != other:
            return name, one, other
    return None


def provenance() -> Record:
    """When and with what a run was made."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            "bandjax": bandjax.__version__,
        },
        "git_revision": git_revision(),
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count()},
    }


@cache
def git_revision() -> str | None:
    """The commit that is checked out, with ``+`` where files differ; None without git."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
