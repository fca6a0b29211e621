"""A process that times one side of a workload, and how another process asks for it.

python -m experiments.benchmarks.worker JOB.json REPLY.json
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.measure import Job, Plan, measure
from experiments.benchmarks.sides import OURS, Side
from experiments.benchmarks.workloads import as_record, from_record
from experiments.settings.errors import UserError
from experiments.settings.records import Record, write_json


def ask(job: Job) -> Record:
    """What a new process measures; it alone runs meanwhile.

    Returns:
        As :func:`experiments.benchmarks.measure.measure`. A peer whose process ends by itself is
        left out.

    Raises:
        UserError: the process refuses the job.
        RuntimeError: the process of bandjax ends before it has measured.
    """
    question, reply = (job.folder / name for name in ("job.json", "reply.json"))
    write_json(question, _as_record(job))
    reply.unlink(missing_ok=True)
    flags = [os.environ.get("XLA_FLAGS", ""), job.side.xla_flags]
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(question), str(reply)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": " ".join(filter(None, flags))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        answer: Record = json.loads(reply.read_text(encoding="utf-8"))
        if "refused" in answer:
            raise UserError(answer["refused"])
        return answer
    reason = _ending(done.returncode, done.stderr)
    if job.side.peer == OURS:
        raise RuntimeError(f"{job.workload.name}: {reason}\n{done.stderr}")
    return {"candidates": [], "left_out": {job.side.name: reason}}


def _ending(status: int, stderr: str) -> str:
    """How a process ended, in one line."""
    how = f"status {status}" if status > 0 else signal.Signals(-status).name
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"its process ended with {how}" + (f": {said[-1]}" if said else "")


def _as_record(job: Job) -> Record:
    return {
        "workload": as_record(job.workload),
        "direction": job.direction,
        "precision": job.precision,
        "plan": vars(job.plan),
        "side": vars(job.side),
        "folder": str(job.folder),
    }


def _from_record(record: Record) -> Job:
    plan = {k: tuple(v) if isinstance(v, list) else v for k, v in record["plan"].items()}
    parts: dict[str, Any] = {
        "workload": from_record(record["workload"]),
        "plan": Plan(**plan),
        "side": Side(**record["side"]),
        "folder": Path(record["folder"]),
    }
    return Job(**{**record, **parts})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the first file asks for and writes the second."""
    question, reply = map(Path, sys.argv[1:] if arguments is None else arguments)
    job = _from_record(json.loads(question.read_text(encoding="utf-8")))
    if job.plan.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # Without effect once JAX has started.
    try:
        write_json(reply, measure(job))
    except UserError as error:
        write_json(reply, {"refused": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
