"""Checkpoints: whole or not at all, damage found, nothing of another run used."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.jobs import checkpoints
from experiments.jobs.checkpoints import Checkpoints, Position, read_arrays
from experiments.settings.errors import UserError
from experiments.training.loop import Epoch
from experiments.training.network import State, Sums
from experiments.training.optimizer import LossScale

CONFIG = {"model": "cnn", "learning_rate": 0.1, "band": "none", "seed": 3, "data_sha256": "ab"}
REPOSITORY = Path(__file__).parents[3]
MADE_WITH = {"versions": {"jax": "1"}, "git_revision": "c0ffee"}


def state_of(number, rows=40):
    """A state that can be told from those of other numbers; its arrays do not compress."""
    noise = np.random.default_rng(number).normal(size=(rows, 30)).astype(np.float32)
    return State(
        {"conv": {"kernel": jnp.asarray(noise)}, "bias": jnp.float32(number)},
        {"mean": jnp.arange(3.0) + number},
        (jnp.int32(number), {"momentum": jnp.asarray(noise.T)}),
        LossScale(jnp.float32(2 * number), jnp.int32(number)),
    )


def sums_of(number):
    return Sums(jnp.int32(number), jnp.float32(0.1 * number), jnp.int32(7), jnp.int32(0))


def position_of(epoch, done, accuracies=()):
    rows = [list(Epoch(0.1 + i, 0.2, 1 / 3, a, 1e-3, 2.5)) for i, a in enumerate(accuracies)]
    return Position(epoch, done, 1.25, rows, {"schedule": {"at": epoch}})


class Folder:
    """A folder of checkpoints, and what was said."""

    def __init__(self, path, **changes):
        self.said = []
        config = {**CONFIG, **changes}
        self.checkpoints = Checkpoints(path, config, MADE_WITH, 2, self.said.append)

    def restore(self):
        return self.checkpoints.restore(state_of(0), sums_of(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two checkpoints, after 10 steps (an epoch) and after 14."""
    path = tmp_path_factory.mktemp("run") / "checkpoints"
    folder = Folder(path)
    folder.checkpoints.save(10, state_of(10), sums_of(10), position_of(2, 0, [0.5]))
    folder.checkpoints.save(14, state_of(14), sums_of(14), position_of(2, 4, [0.5]))
    return path


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def assert_restored(restored, number, position):
    step, state, sums, found = restored
    assert step == number
    assert found == position
    for one, other in ((state, state_of(number)), (sums, sums_of(number))):
        leaves = list(zip(_leaves(one), _leaves(other), strict=True))
        assert all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in leaves)
    assert state.params["bias"].weak_type is False


def _leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_what_was_saved_comes_back(copy):
    folder = Folder(copy)
    assert_restored(folder.restore(), 14, position_of(2, 4, [0.5]))
    assert folder.said == []
    arrays = read_arrays(copy / "00000014")
    assert set(arrays) >= {"params.conv.kernel", "stats.mean", "scale.good", "sums.loss"}
    content = json.loads((copy / "00000014.json").read_text())["content"]
    assert content["config"] == CONFIG
    assert content["git_revision"] == "c0ffee"
    assert content["random"] == {"seed": 3, "epoch": 2}


def test_no_checkpoint_is_no_checkpoint(tmp_path):
    folder = Folder(tmp_path / "none")
    assert folder.restore() is None
    assert folder.said == []


def test_every_damaged_file_is_found(copy):
    """A bit, the last byte, the whole file: of the manifest and of each file that orbax wrote."""
    files = [path for path in copy.glob("00000014*/**/*") if path.is_file()]
    assert len(files) > 5
    largest = max(files, key=lambda path: path.stat().st_size)
    for path in [copy / "00000014.json", largest, *files]:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        for damaged in (bytes(flipped), whole[:-1], b""):
            path.write_bytes(damaged)
            folder = Folder(copy)
            assert_restored(folder.restore(), 10, position_of(2, 0, [0.5]))
            assert len(folder.said) == 1
            assert path.name in folder.said[0]
            assert "the one before it is used" in folder.said[0]
            path.write_bytes(whole)
    files[0].unlink()
    assert Folder(copy).restore()[0] == 10


def test_the_folder_of_a_job_that_is_gone_is_not_made_anew(tmp_path):
    folder = Folder(tmp_path / "job" / "checkpoints")
    with pytest.raises(UserError, match="could not be written, there is none before it"):
        folder.checkpoints.save(10, state_of(10), sums_of(10), position_of(2, 0, [0.5]))
    assert not list(tmp_path.iterdir())


def test_no_whole_checkpoint_is_said(copy):
    for path in copy.glob("*.json"):
        path.write_text(path.read_text()[:-5])
    folder = Folder(copy)
    assert folder.restore() is None
    assert len(folder.said) == 3
    assert "the run starts from its beginning" in folder.said[-1]


def test_what_a_killed_process_left_is_removed(copy):
    shutil.copytree(copy / "00000014", copy / "00000018")
    shutil.copytree(copy / "00000014", copy / "00000019.orbax-checkpoint-tmp")
    (copy / "00000018.part").write_text("{")
    folder = Folder(copy)
    assert folder.restore()[0] == 14
    assert sorted(path.name for path in copy.iterdir()) == [
        "00000010", "00000010.json", "00000014", "00000014.json",
    ]  # fmt: skip
    # A damaged one is written over when the run gets there again.
    (copy / "00000014.json").write_text("{")
    folder = Folder(copy)
    assert folder.restore()[0] == 10
    folder.checkpoints.save(14, state_of(14), sums_of(14), position_of(2, 4, [0.5]))
    assert_restored(Folder(copy).restore(), 14, position_of(2, 4, [0.5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.2}, "with learning_rate 0.1, not 0.2: choose another --out"),
        ({"band": "modes=2"}, "with band none, not modes=2"),
        ({"seed": 4}, "with seed 3, not 4"),
        ({"data_sha256": "cd"}, "with data_sha256 ab, not cd"),
        ({"momentum": 0.5}, "with momentum 0.9, not 0.5"),  # 0.9 by default
    ],
)
def test_another_run_is_refused(written, changes, message):
    before = sorted(path.name for path in written.iterdir())
    with pytest.raises(UserError, match=message):
        Folder(written, **changes).restore()
    assert sorted(path.name for path in written.iterdir()) == before


def test_another_network_is_refused(written):
    folder = Folder(written)
    with pytest.raises(UserError, match=r"another network: its optimizer.1.momentum is \[\[30, 40"):
        folder.checkpoints.restore(state_of(0, rows=41), sums_of(0))
    with pytest.raises(UserError, match=r"its scale.good is .* not None"):
        folder.checkpoints.restore(state_of(0)._replace(scale=None), sums_of(0))


def test_a_folder_with_something_else_is_refused(copy):
    (copy / "thesis.json").write_text("{}")
    with pytest.raises(UserError, match=r"thesis.json is no checkpoint of this program"):
        Folder(copy).restore()
    (copy / "thesis.json").rename(copy / "00000020.json")
    with pytest.raises(UserError, match=r"00000020.json is not the manifest of a checkpoint"):
        Folder(copy).restore()


def test_another_format_or_version(copy, monkeypatch):
    folder = Folder(copy)
    folder.checkpoints.provenance = {**MADE_WITH, "git_revision": "beef"}
    assert folder.restore()[0] == 14
    assert len(folder.said) == 1
    assert "git_revision c0ffee, this is beef" in folder.said[0]
    monkeypatch.setattr("experiments.jobs.checkpoints.FORMAT", 2)
    with pytest.raises(UserError, match="has format 1, not 2"):
        Folder(copy).restore()


def test_the_latest_and_the_best_stay(tmp_path):
    folder = Folder(tmp_path)
    accuracies = []
    for epoch, accuracy in enumerate((0.5, 0.9, 0.6, 0.7, 0.8), 1):
        accuracies.append(accuracy)
        # What is saved within an epoch is not its best.
        folder.checkpoints.save(
            10 * epoch - 5, state_of(1), sums_of(1), position_of(epoch, 5, accuracies[:-1])
        )
        folder.checkpoints.save(
            10 * epoch, state_of(1), sums_of(1), position_of(epoch + 1, 0, accuracies)
        )
        if epoch == 3:  # A run that is resumed knows the best one too.
            folder = Folder(tmp_path)
            assert folder.restore()[0] == 30
    kept = {int(path.stem) for path in tmp_path.iterdir()}
    assert kept == {20, 45, 50}
    assert len(list(tmp_path.iterdir())) == 6


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_intact(
    copy, capfd, caplog, monkeypatch
):
    """The limit of a file's size is below what a checkpoint takes."""
    folder = Folder(copy)
    assert folder.restore()[0] == 14
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError) as caught:
            folder.checkpoints.save(18, state_of(18, 400), sums_of(18), position_of(2, 8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "\n" not in message
    assert capfd.readouterr().err == ""
    asyncio = logging.getLogger("asyncio")
    asyncio.error("Task exception was never retrieved\nfuture: <Task ... orbax-checkpoint-tmp ...>")
    assert caplog.text == ""  # no traceback by way of a logger
    asyncio.error("Task exception was never retrieved\nfuture: <Task of somebody else>")
    assert caplog.text.endswith("somebody else>\n")
    assert message.startswith(f"checkpoint {copy / '00000018'} could not be written, ")
    assert "that of step 14 is intact" in message
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda _: mock.Mock(free=5000))
        with pytest.raises(UserError, match=r"14 is intact: it takes .* bytes, 5,000 are free"):
            folder.checkpoints.save(18, state_of(18), sums_of(18), position_of(2, 8))
    folder = Folder(copy)
    assert_restored(folder.restore(), 14, position_of(2, 4, [0.5]))
    assert folder.said == []
    assert len(list(copy.iterdir())) == 4
    folder.checkpoints.save(18, state_of(18), sums_of(18), position_of(2, 8, [0.5]))
    assert_restored(Folder(copy).restore(), 18, position_of(2, 8, [0.5]))


FULL = """
import resource, sys
from pathlib import Path
from tests.experiments.jobs.test_checkpoints import Folder, position_of, state_of, sums_of
from experiments.settings.command import run_command

folder = Folder(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
state = state_of(4)._replace(params=[state_of(i, 100).params["conv"] for i in range(100)])
save = folder.checkpoints.save
sys.exit(run_command(lambda: save(4, state, sums_of(4), position_of(1, 4)), ""))
"""


@pytest.mark.full
@pytest.mark.parametrize("bytes_of_a_file", [9_000, 20_000])
def test_a_full_disk_is_one_line_to_the_end_of_the_program(tmp_path, bytes_of_a_file):
    """Orbax writes the arrays at once; what it has to say of each comes when Python ends."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "run"), str(bytes_of_a_file)]
    ended = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: checkpoint ")
    assert ended.stderr.count("\n") == 1


class Failing:
    """What orbax's checkpointer is while another process is being lost, or a disk is."""

    error = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def save(self, path, arrays, force):
        raise self.error


# A write that fails leaves coroutines of Orbax behind, which nothing awaits.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_process_is_no_fault_of_the_checkpoint(copy, monkeypatch):
    """It says so itself; nothing is removed that is whole."""
    folder = Folder(copy)
    assert folder.restore()[0] == 14
    monkeypatch.setattr(ocp, "StandardCheckpointer", Failing)
    # By itself a process has nobody to lose.
    with pytest.raises(UserError, match=r"00000018 could not be written, that of step 14 is"):
        folder.checkpoints.save(18, state_of(18), sums_of(18), position_of(2, 8))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoints, "share", lambda make: make())
    with pytest.raises(RuntimeError, match="Gloo"):
        folder.checkpoints.save(18, state_of(18), sums_of(18), position_of(2, 8))
    monkeypatch.setattr(Failing, "error", OSError("Connection timed out"))  # of a network's disk
    with pytest.raises(UserError, match="could not be written"):
        folder.checkpoints.save(18, state_of(18), sums_of(18), position_of(2, 8))
    monkeypatch.undo()
    assert_restored(Folder(copy).restore(), 14, position_of(2, 4, [0.5]))


def test_a_checkpoint_whose_writing_was_told_too_late_stays(copy, monkeypatch):
    """The other process is lost when the manifest is in place."""
    folder = Folder(copy)
    assert folder.restore()[0] == 14

    def share(make):
        make()
        if (copy / "00000018.json").exists():
            monkeypatch.setattr(jax, "process_count", lambda: 2)
            raise Failing.error

    monkeypatch.setattr(checkpoints, "share", share)
    with pytest.raises(RuntimeError, match="Gloo"):
        folder.checkpoints.save(18, state_of(18), sums_of(18), position_of(2, 8, [0.5]))
    monkeypatch.undo()
    assert_restored(Folder(copy).restore(), 18, position_of(2, 8, [0.5]))


def test_other_processes_know_what_is_intact(copy, monkeypatch):
    """They do not look at the manifests: the first process tells them what it found."""
    found = Folder(copy).checkpoints._find(checkpoints._named(state_of(0), sums_of(0)))
    folder = Folder(copy)
    monkeypatch.setattr(checkpoints, "is_main", lambda: False)
    monkeypatch.setattr(checkpoints, "share", lambda make: found)
    assert folder.restore()[0] == 14
    monkeypatch.setattr(ocp, "StandardCheckpointer", Failing)
    monkeypatch.setattr(Failing, "error", OSError("the disk is full"))
    with pytest.raises(UserError, match=r"that of step 14 is intact: the disk is full"):
        folder.checkpoints.save(18, state_of(18), sums_of(18), position_of(2, 8))


@pytest.fixture
def sigint():
    """Sets what Ctrl-C does, whatever the tests were started by (under nohup: nothing)."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("way", ["ends", "asks", "ignored"])
def test_an_interrupt_waits_for_the_checkpoint(tmp_path, monkeypatch, sigint, way):
    """Ctrl-C while orbax writes: the checkpoint is whole, and then it takes effect."""
    save = ocp.StandardCheckpointer.save
    asked = []
    handler = {
        "ends": signal.default_int_handler,
        "asks": lambda *_: asked.append(True),
        "ignored": signal.SIG_IGN,
    }[way]
    sigint(handler)

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        assert not asked
        return save(*args, **options)

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", interrupted)
    folder = Folder(tmp_path / "checkpoints")
    ends = pytest.raises(KeyboardInterrupt) if way == "ends" else contextlib.nullcontext()
    with ends:
        folder.checkpoints.save(10, state_of(10), sums_of(10), position_of(2, 0, [0.5]))
    assert asked == ([True] if way == "asks" else [])
    assert_restored(folder.restore(), 10, position_of(2, 0, [0.5]))
    assert signal.getsignal(signal.SIGINT) is handler
