"""One run: stopped anywhere and gone on with."""

from __future__ import annotations

import io
import signal
import struct
import time

import numpy as np
import pytest
from rich.console import Console
from stopping import AtThird
from tensorboardX.proto import event_pb2

from experiments.data import load_digits
from experiments.data.examples import place
from experiments.jobs import runs
from experiments.jobs.checkpoints import read_arrays
from experiments.jobs.metrics import METRICS
from experiments.jobs.runs import Interval, Keeping, Run, Stop, Stopped, stop_on_signals
from experiments.settings.config import settings_for
from experiments.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_stopped_within_an_epoch(tmp_path, capsys):
    """A run that is asked to stop after each third step, and started again, is the same run."""

    examples = place(load_digits().limited(100))
    settings = settings_for("cnn", "digits", epochs=2, batch_size=25, optimizer="sgd")
    trainer = Trainer(settings, examples, None)
    keeping = Keeping(Interval.parse("never"), 2, tensorboard=True)
    records, stops = {}, 0
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / METRICS).touch()  # of a process that was killed before its checkpoint
    for name, stop in (("whole", Stop), ("parts", AtThird)):
        finished = False
        while not finished:
            console = Console(file=io.StringIO())
            run = Run(trainer, "none", 1, tmp_path / name, keeping, console, stop())
            try:
                records[name] = run.train("title")["curves"]
                told = "was begun, and has no checkpoint" in console.file.getvalue()
                assert told == (name == "whole")
                finished = True
            except Stopped:
                stops += 1
                run.extra["ignored"] = True  # after the checkpoint was written
    assert stops == 2
    assert [records["whole"].pop("seconds")] != [records["parts"].pop("seconds")]
    assert records["parts"] == records["whole"]
    arrays = [
        read_arrays(tmp_path / name / "checkpoints" / "00000008") for name in ("whole", "parts")
    ]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    events = [
        (value.tag, event.step)
        for path in sorted((tmp_path / "parts").glob("events.out.tfevents.*"))
        for event in read_events(path)
        for value in event.summary.value
    ]
    assert sorted(step for tag, step in events if tag == "test/accuracy") == [1, 2]
    assert {tag for tag, _ in events} >= {"train/loss", "learning_rate", "images_per_second"}


def read_events(path):
    """The events of a TensorBoard file: records of a length, a sum, the bytes and their sum."""
    raw = path.read_bytes()
    while raw:
        (length,) = struct.unpack("<Q", raw[:8])
        event = event_pb2.Event()
        event.ParseFromString(raw[12 : 12 + length])
        yield event
        raw = raw[16 + length :]


def test_intervals():
    assert Interval.parse("10epochs") == Interval(10, "epochs")
    assert Interval.parse("5 steps") == Interval(5, "steps")
    assert Interval.parse("90s") == Interval(90, "s")
    assert Interval.parse("never").count == 0


@pytest.fixture
def sigint():
    """What Ctrl-C did before is what it does behind the test."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "by"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_asks_to_stop(sigint, capfd, number, by):
    sigint(signal.default_int_handler)
    with stop_on_signals() as stop:
        assert not stop.asked
        signal.raise_signal(number)
        signal.raise_signal(number)  # The same press, sent twice.
        assert stop.asked
        assert stop.by == by
    assert ("Ctrl-C again ends at once" in capfd.readouterr().err) == (by == "Ctrl-C")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_press_ends_at_once(sigint, monkeypatch):
    sigint(signal.default_int_handler)
    monkeypatch.setattr(runs, "SAME_PRESS", 0.0)
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_where_ctrl_c_is_ignored_it_stays_so(sigint):
    sigint(signal.SIG_IGN)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.asked
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
