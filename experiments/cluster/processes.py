"""The processes of a run, on one host or many: one of them writes, all of them agree."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.settings.errors import UserError
from experiments.settings.records import Record

T = TypeVar("T")
_PARENT = "BANDJAX_EXPERIMENTS_PARENT"  # The process that watches this one.
_DUMP = ("*** Check failure", "    @ ", "Fatal Python error", "Additional GRPC", ":UNKNOWN:")
HEARTBEAT = 20  # seconds without a sign of life after which a process counts as lost


@dataclass(frozen=True)
class Cluster:
    """How the processes find each other.

    Attributes:
        coordinator: address and port of the first process; None where a cluster's environment
            tells (SLURM, Open MPI, Kubernetes, TPU pods).
        processes: how many they are, or None likewise.
        process_id: which of them this is, from 0, or None likewise.
    """

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None


def check(cluster: Cluster) -> None:
    """Refuse what cannot be a cluster.

    Raises:
        UserError: a part is not given, or the number of this process is none.
    """
    given = (cluster.coordinator, cluster.processes, cluster.process_id)
    if any(each is not None for each in given) and None in given:
        raise UserError(
            "--coordinator, --processes and --process-id are given together or not at all"
        )
    if cluster.processes is not None and not 0 <= (cluster.process_id or 0) < cluster.processes:
        raise UserError(
            f"process-id must satisfy 0 <= process-id < {cluster.processes}, "
            f"got {cluster.process_id}"
        )


def supervised(module: str, words: Sequence[str]) -> int | None:
    """Run a program of several processes under the eyes of this one; returns its exit status.

    JAX's runtime aborts, with a dump of its stack, when the process that coordinates the others is
    gone. The program therefore runs as a child, and what remains is one line.

    Args:
        module: of the program.
        words: of its command line.

    Returns:
        None in the child, which is to do the work.
    """
    parent = os.environ.get(_PARENT)
    if parent is not None:
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
        return None
    command = [sys.executable, "-m", module, *words]
    environment = {**os.environ, _PARENT: str(os.getpid())}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: child.send_signal(number))
        reason = ""
        for line in child.stderr or ():
            if line.startswith(("F", "E")) and re.match(r"[EF]\d{4} ", line):
                reason = line.partition("] ")[2].strip() or reason
            elif not line.startswith(_DUMP):
                print(line, end="", file=sys.stderr, flush=True)
        status = child.wait()
    if status >= 0:
        return status
    cause = f": {reason[:300]}" if reason else f" (signal {-status})"
    print(f"error: another process is lost, and so this one ends{cause}", file=sys.stderr)
    return 1


def _end_with(parent: int) -> None:
    """End when the process that watches this one has."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def connect(cluster: Cluster) -> None:
    """Meet the other processes.

    Raises:
        UserError: the others do not come.
    """
    given = (cluster.coordinator, cluster.processes, cluster.process_id)
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours.
    try:
        jax.distributed.initialize(
            *given, heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=60
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes do not find each other: {_brief(error)}") from error


@contextmanager
def distributed(cluster: Cluster | None) -> Iterator[None]:
    """While it lasts, this process is one of several; None for a process by itself.

    A process whose peers are gone does not wait for them: it says so in one line and exits with
    status 1, as it does with status 2 where it has an error of its own.
    """
    if cluster is None:
        yield
        return
    connect(cluster)
    try:
        yield
        jax.distributed.shutdown()
    except UserError as error:
        _leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave("interrupted; finished runs and checkpoints are kept", 130)
    except (RuntimeError, ValueError) as error:  # JAX's and orbax's own
        if not lost_contact(error):
            raise
        _leave(f"error: another process is lost, and so this one ends: {_brief(error)}", 1)


def lost_contact(error: BaseException) -> bool:
    """Whether it tells, in JAX's or orbax's words, that another process is gone."""
    words = ("gloo", "connection", "peer", "heartbeat", "barrier", "coordination", "unavailable")
    words += ("deadline", "timed out", "nccl", "socket")
    own = isinstance(error, (RuntimeError, ValueError))
    return own and any(word in str(error).lower() for word in words)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _leave(text: str, status: int) -> None:
    """End at once: an ordinary exit would wait for the others at a barrier."""
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def is_main() -> bool:
    """Whether this process writes files and tells the user."""
    return jax.process_index() == 0


def share(make: Callable[[], T]) -> T:
    """What ``make`` returns in the main process, in all of them.

    Args:
        make: called in the main process alone; returns what ``json`` can write.

    Raises:
        UserError: it did, or anything else that it raised, in the other processes.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Any] = {}
    problem: Exception | None = None
    if is_main():
        try:
            answer = {"value": make()}
        except Exception as error:
            problem, answer = error, {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.zeros(size, np.uint8)
    if is_main():
        buffer[:] = text
    answer = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))))
    if problem is not None:
        raise problem
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def require_same(what: Record) -> None:
    """Refuses to train together what is not the same.

    Args:
        what: that all processes must have alike; ``json`` can write it.

    Raises:
        UserError: it differs from the main process's, told in every process.
    """
    if jax.process_count() == 1:
        return
    own = json.loads(json.dumps(what))
    main = share(lambda: own)
    differing = [name for name in {**main, **own} if main.get(name) != own.get(name)]
    anywhere = Agreement().ask(bool(differing), wait=True)[0]
    if differing:
        name = differing[0]
        raise UserError(
            f"process {jax.process_index()} has {name} {own.get(name)}, process 0 has "
            f"{main.get(name)}: start all of them with the same options and data"
        )
    if anywhere:
        raise UserError("another process has other options or data, see what it says")


class Agreement:
    """Questions that one process answers with yes for all, asked at the same steps in each.

    The answers are on their way while the devices compute: each call returns those of the call
    before.
    """

    def __init__(self) -> None:
        self._pending: Any = None
        self._sharding: NamedSharding | None = None
        if jax.process_count() > 1:
            # Every device, so that XLA runs this and the training step one after another. On the
            # CPU two programs that talk between the same two devices at once would mix.
            devices = sorted(jax.devices(), key=lambda device: device.process_index)
            mesh = Mesh(np.array(devices), ("device",))
            self._sharding = NamedSharding(mesh, PartitionSpec("device"))
            whole = NamedSharding(mesh, PartitionSpec())
            self._any = jax.jit(lambda flags: flags.any(0), out_shardings=whole)

    def forget(self) -> None:
        """Drop the answers that are on their way."""
        self._pending = None

    def ask(self, *flags: bool, wait: bool = False) -> tuple[bool, ...]:
        """Whether any process said yes to each question.

        Args:
            flags: this process's answers.
            wait: for those of this call, which ends what was on its way.
        """
        if self._sharding is None:
            return flags
        local = np.array([flags] * jax.local_device_count())
        asked = self._any(jax.make_array_from_process_local_data(self._sharding, local))
        answer = asked if wait else self._pending
        self._pending = None if wait else asked
        if answer is None:
            return (False,) * len(flags)
        return tuple(map(bool, np.asarray(answer)))
