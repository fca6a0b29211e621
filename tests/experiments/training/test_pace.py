"""How far the training loop runs ahead of the device."""

from __future__ import annotations

from collections import deque

import jax
import pytest

from experiments.training import pace
from experiments.training.network import Sums


class Device:
    """Computes steps one after another, each as long as it takes, on a clock of its own."""

    def __init__(self, starting, running):
        self.starting, self.running = starting, running
        self.now = self.free = 0.0
        self.queue = deque()

    def perf_counter(self):
        return self.now

    def start(self, step):
        self.now += self.starting
        self.free = max(self.free, self.now) + self.running
        self.queue.append(self.free)
        return Sums(step, Result(self, self.free), None, None)

    def running_steps(self):
        while self.queue and self.queue[0] <= self.now:
            self.queue.popleft()
        return len(self.queue)


class Result:
    def __init__(self, device, time):
        self.device, self.time = device, time

    def block_until_ready(self):
        self.device.now = max(self.device.now, self.time)


def run(monkeypatch, starting, running, steps=200, epochs=2):
    """The most steps under way at once, and the seconds of the device that nothing used."""
    device, own = Device(starting, running), pace.Pace()
    monkeypatch.setattr(pace, "time", device)
    most, idle = 0, 0.0
    for _ in range(epochs):
        own.begin(Sums(0, Result(device, device.now), None, None))
        before, since = 0, device.now
        for done in range(1, steps + 1):
            sums = device.start(done)
            own.started(done, sums)
            most = max(most, device.running_steps())
            assert own.ended.loss.time <= device.now  # What is watched has happened.
            assert before <= own.ended.steps <= done
            assert done - own.ended.steps <= 2 * pace.LONGEST
            before = own.ended.steps
        sums.loss.block_until_ready()
        idle += device.now - since - steps * max(starting, running)
    return most, idle


@pytest.mark.parametrize(
    ("running", "many", "longest"), [(2.0, 1, 2), (0.04, 1, 2), (0.012, 2, 5), (0.002, 15, 32)]
)
def test_short_steps_are_waited_for_several_at_a_time(monkeypatch, running, many, longest):
    most, idle = run(monkeypatch, 0.0003, running)
    assert many <= most <= longest
    assert idle < 0.003  # of 800 s, 16 s, 5 s, 0.8 s: the device never waits for the program


def test_a_program_slower_than_its_device_waits_for_nothing(monkeypatch):
    most, idle = run(monkeypatch, 0.005, 0.001)
    assert most <= 2
    assert idle < 0.003


def test_several_processes_look_at_the_same_steps(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    most, idle = run(monkeypatch, 0.0003, 0.002)
    assert most <= 2
    assert idle < 0.003
