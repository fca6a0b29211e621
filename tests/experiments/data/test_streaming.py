"""Streamed examples: the same steps as resident ones, read ahead by threads, resumed anywhere."""

from __future__ import annotations

import io
import sys
import threading
import time
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from rich.console import Console
from stopping import AtThird

from experiments.data import Arrays, StoredDataset, load_digits
from experiments.data import examples as module
from experiments.data.examples import Examples, place
from experiments.data.streaming import StreamedExamples, read_ahead
from experiments.jobs.checkpoints import read_arrays
from experiments.jobs.runs import Interval, Keeping, Run, Stop, Stopped
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.train import main
from experiments.training.loop import Trainer


@dataclass(frozen=True)
class Noisy(Arrays):
    """Adds noise to what it reads for training, and takes its time now and then."""

    def read(self, rows, random):
        x, y = super().read(rows, random)
        time.sleep(0.01 * (rows[0] % 3))
        return (x, y) if random is None else (x + random.normal(size=x.shape), y)


@pytest.fixture(scope="module")
def digits():
    few = load_digits().limited(110)
    return replace(few, x_test=few.x_test[:61], y_test=few.y_test[:61])


@pytest.fixture(scope="module")
def noisy(digits):
    train, test = (
        Noisy(digits.x_train, digits.y_train),
        Noisy(digits.x_test, digits.y_test),
    )
    return StoredDataset("noisy", train, test, 10, "noise on digits")


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_a_streamed_run_is_the_resident_one_stopped_anywhere(tmp_path, digits):
    """Bit by bit; the streamed one stops after each third step, two of five within an epoch."""
    settings = settings_for(
        "cnn", "digits", epochs=2, batch_size=10, accumulate=2, optimizer="sgd", augment="flip-crop"
    )
    keeping = Keeping(Interval.parse("never"), 2, tensorboard=False)
    records, stops = {}, 0
    for stream, stop in (("never", Stop), ("always", AtThird)):
        trainer = Trainer(settings, place(digits, 25, stream=stream), None)
        assert trainer.steps == 5
        while stream not in records:
            console = Console(file=io.StringIO())
            run = Run(trainer, "none", 1, tmp_path / stream, keeping, console, stop())
            try:
                records[stream] = run.train("title")
            except Stopped:
                stops += 1
    assert stops >= 2
    assert records["never"]["curves"].pop("seconds") != records["always"]["curves"].pop("seconds")
    assert records["always"]["curves"] == records["never"]["curves"]
    assert records["always"]["result"]["saved_bytes"] == records["never"]["result"]["saved_bytes"]
    one, other = (read_arrays(tmp_path / stream / "checkpoints" / "00000010") for stream in records)
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_steps_have_the_examples_of_the_order(digits):
    streamed = place(digits, stream="always")
    key = jax.random.key(5)
    order = jax.random.permutation(key, 110)
    rows = np.asarray(order)
    found = list(streamed.steps(order, key, 20, range(2, 5)))
    assert len(found) == 3
    for index, (x, y, rest, same) in zip(range(2, 5), found, strict=True):
        chosen = rows[20 * index : 20 * index + 20]
        np.testing.assert_array_equal(x, digits.x_train[chosen])
        np.testing.assert_array_equal(y, digits.y_train[chosen])
        assert rest.tolist() == list(range(20))
        assert same is key
    x, y = streamed.head(7)
    np.testing.assert_array_equal(x, digits.x_train[:7])
    np.testing.assert_array_equal(y, digits.y_train[:7])
    assert (streamed.count, streamed.shape, streamed.classes) == (110, (8, 8, 1), 10)


@pytest.mark.parametrize("largest", [7, 61, 256])
def test_every_test_example_counts_once(digits, largest):
    resident, streamed = (place(digits, largest, stream=stream) for stream in ("never", "always"))
    assert resident.sha256 == streamed.sha256  # a run may change over
    for _ in range(2):  # it can be read again
        for one, other in zip(resident.test, streamed.test, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    seen = np.concatenate([x[counts] for x, _, counts in streamed.test])
    np.testing.assert_array_equal(seen, digits.x_test)
    assert len({x.shape for x, _, _ in streamed.test}) == 1


def test_what_a_source_draws_depends_on_key_and_step_alone(noisy, digits):
    streamed = place(noisy, augment=True)
    order = np.arange(110)

    def first(key, index):
        return np.asarray(next(streamed.steps(order, key, 20, range(index, 5)))[0])

    key = jax.random.key(1)
    whole = [np.asarray(x) for x, *_ in streamed.steps(order, key, 20, range(5))]
    for index in (0, 3):
        np.testing.assert_array_equal(first(key, index), whole[index])
    noise = [x - digits.x_train[20 * i : 20 * i + 20] for i, x in enumerate(whole)]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2
    assert not np.array_equal(first(jax.random.key(2), 0), whole[0])
    plain = place(noisy)
    np.testing.assert_array_equal(
        next(plain.steps(order, key, 20, range(5)))[0], digits.x_train[:20]
    )


def test_threads_read_ahead_and_end():
    names, begun = set(), []

    def read(index):
        names.add(threading.current_thread().name)
        begun.append(index)
        time.sleep(0.005)
        return index

    before = threading.active_count()
    steps = read_ahead(read, range(3, 40))
    assert [next(steps) for _ in range(4)] == [3, 4, 5, 6]
    time.sleep(0.2)
    assert 7 in begun
    assert 39 not in begun  # not all of them, however
    assert threading.main_thread().name not in names
    steps.close()
    assert list(read_ahead(read, range(2, 4))) == [2, 3]
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_an_error_while_reading_is_the_callers():
    def read(index):
        if index == 2:
            raise UserError("record 2 is damaged")
        return index

    found = []
    with pytest.raises(UserError, match="record 2 is damaged"):
        found.extend(read_ahead(read, range(5)))


def test_what_is_streamed(digits, noisy, monkeypatch):
    assert isinstance(place(digits), Examples)
    parts = (digits.x_train, digits.y_train, digits.x_test, digits.y_test)
    size = sum(part.nbytes for part in parts)
    monkeypatch.setattr(module, "LARGEST", size)
    assert isinstance(place(digits), Examples)
    monkeypatch.setattr(module, "LARGEST", size - 1)
    assert isinstance(place(digits), StreamedExamples)
    assert isinstance(place(digits, stream="never"), Examples)
    assert isinstance(place(noisy), StreamedExamples)
    few = noisy.limited(30)
    assert place(few).count == 30
    assert place(few).sha256 != place(noisy).sha256 == place(noisy.limited(None)).sha256
    assert (noisy.numbers, few.numbers, digits.numbers) == (7040, 1920, 7040)


def test_what_cannot_be_placed(digits, noisy, monkeypatch):
    with pytest.raises(UserError, match="noisy is read from the disk while it is used: it must be"):
        place(noisy, stream="never")
    with pytest.raises(UserError, match="digits is kept in memory: random-resized-crop"):
        place(digits, augment=True)
    with pytest.raises(UserError, match="noisy: there are no training examples"):
        place(noisy.limited(0))
    broken = replace(digits, y_train=digits.y_train + 1)
    with pytest.raises(UserError, match=r"labels must lie in 0 .. 9, got 10"):
        place(broken, stream="always")
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"streaming needs grain: pip install 'bandjax\[exp"):
        list(place(noisy).test)


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_streamed_from_the_command_line(tmp_path, monkeypatch):
    steps = []
    original = StreamedExamples.steps
    monkeypatch.setattr(
        StreamedExamples, "steps", lambda *words: steps.append(words[-1]) or original(*words)
    )
    words = ["--epochs", "1", "--limit", "64", "--batch-size", "32", "--band", "none"]
    words += ["--seeds", "0", "--stream", "always"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert steps == [range(2)]
