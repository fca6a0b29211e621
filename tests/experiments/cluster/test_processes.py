"""Several processes: as one device to rounding, and what ends them."""

from __future__ import annotations

import contextlib
import json
import signal

import jax
import numpy as np
import pytest

from experiments.checks import devices as check
from experiments.cluster import processes
from experiments.settings.errors import UserError
from experiments.train import main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--process-id", "0"], "are given together or not at all"),
        (
            ["--coordinator", "localhost:1", "--processes", "2", "--process-id", "2"],
            "process-id must satisfy 0 <= process-id < 2, got 2",
        ),
    ],
)
def test_wrong_clusters_are_one_line(tmp_path, capfd, words, line):
    assert main(["--distributed", *words, "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


# Of two devices each, and with several steps an epoch: their collectives must not mix with the
# votes on checkpoints and stops, which are under way meanwhile.
PAIR = "2 processes of 2 devices, data=2, model=2"


@pytest.fixture
def several_steps(monkeypatch):
    """Four steps an epoch in place of one; the words of the run."""
    words = [word if word != "64" else "256" for word in check.RUN[:4]]
    monkeypatch.setattr(check, "RUN", (*words, *check.RUN[4:]))
    # Both compile the same programs at once: none must read what the other is still writing.
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    return check.RUN


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile", "no_pictures")
def test_two_processes_train_as_one_and_end_together(several_steps, tmp_path):
    """One is asked to stop, and both do; both go on, one is lost, and the other ends."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    words = [*several_steps, "--epochs", "8", "--out"]
    assert main([*words, str(alone)]) == 0
    pair = check.start(PAIR, 8, out)
    check.wait_for_checkpoint(pair, out)
    pair[1].send_signal(signal.SIGTERM)
    assert check.finish(pair) == [(0, ""), (0, "")]
    pair = check.start(PAIR, 8, out)
    check.wait_for_checkpoint(pair, out)
    pair[0].kill()
    status, line = check.finish(pair)[1]
    assert status == 1
    assert line.startswith("error: another process is lost, and so this one ends")
    assert main([*words, str(out), "--checkpoint-every", "5steps"]) == 0
    one, other = (
        json.loads((path / f"{check.STEM}.json").read_text())["curves"] for path in (alone, out)
    )
    losses = {name: one[name] for name in ("train_loss", "test_loss")}
    assert check.largest_difference(other, losses) < 1e-4


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile", "several_steps")
def test_two_processes_train_to_the_end(tmp_path):
    compared = check.compare(6, tmp_path, [PAIR])
    assert compared["differences"][PAIR] < 1e-4
    folder = tmp_path / PAIR
    names = {check.STEM, f"{check.STEM}.json", "summary.json", "curves.png", "job.json"}
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((folder / f"{check.STEM}.json").read_text())
    assert record["devices"]["processes"] == 2


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (RuntimeError("UNKNOWN: Gloo all-reduce failed"), ("error: another process is lost", 1)),
        (ValueError("DEADLINE_EXCEEDED: Barrier timed out"), ("error: another process is lost", 1)),
        (UserError("the barrier is no file"), ("error: the barrier is no file", 2)),
        (KeyboardInterrupt(), ("interrupted; ", 130)),
        (RuntimeError("shapes differ"), None),
        (TypeError("peer"), None),
    ],
)
def test_what_ends_one_of_several_processes(monkeypatch, error, left):
    """Its own fault keeps its traceback; of the others there is one line, and no wait for them."""
    told = []
    monkeypatch.setattr(processes, "connect", lambda cluster: None)
    monkeypatch.setattr(processes, "_leave", lambda *what: told.append(what))
    own = contextlib.nullcontext() if left else pytest.raises(type(error), match=str(error))
    with own, processes.distributed(processes.Cluster()):
        raise error
    assert len(told) == (left is not None)
    for text, status in told:
        assert text.startswith(left[0])
        assert status == left[1]


def test_the_first_process_decides(monkeypatch):
    """The others get its answer, or its error, and must have the options that it has."""
    sent, received, differs = [], [], [False]

    def broadcast(array):
        sent.append(np.array(array))
        return received.pop(0) if received else sent[-1]

    def receive(answer):
        text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
        received.extend([np.int32(len(text)), text])

    def fails():
        raise UserError("no folder")

    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(processes.Agreement, "__init__", lambda self: None)
    monkeypatch.setattr(processes.Agreement, "ask", lambda self, own, wait: (own or differs[0],))
    assert processes.share(lambda: 3) == 3
    assert sent == []  # One process asks nobody.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"^no folder$"):
        processes.share(fails)
    assert json.loads(bytes(sent[1])) == {"error": "no folder"}
    assert processes.share(lambda: [1, "two"]) == [1, "two"]

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    receive({"value": {"epochs": 3, "limit": None}})
    assert processes.share(fails) == {"epochs": 3, "limit": None}
    receive({"error": "no folder"})
    with pytest.raises(UserError, match=r"^no folder$"):
        processes.share(lambda: 0)
    receive({"value": {"epochs": 3}})
    processes.require_same({"epochs": 3})
    receive({"value": {"epochs": 3}})
    with pytest.raises(UserError, match="process 1 has epochs 4, process 0 has 3"):
        processes.require_same({"epochs": 4})
    differs[0] = True
    receive({"value": {"epochs": 4}})
    with pytest.raises(UserError, match="another process has other options"):
        processes.require_same({"epochs": 4})
