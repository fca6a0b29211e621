"""What is shown while a run trains."""

from __future__ import annotations

import io

from rich.console import Console

from experiments.jobs.progress import Length, progress
from experiments.training.loop import Epoch


def test_progress_on_a_terminal_is_a_bar_and_lines_elsewhere():
    row = Epoch(0.25, 0.9, 0.5, 0.875, 1e-3, 1.5)
    shown = {}
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=120)
        with progress(console, "run 1/1", Length(40, 10, 3000)) as show:
            for epoch in range(1, 41):
                show.step(epoch, 5, 0.5, 0.75, 0.75)
                show.epoch(epoch, row)
        shown[terminal] = text.getvalue()
    assert "\x1b" in shown[True]
    assert "40/40" in shown[True]
    assert "ETA" in shown[True]
    assert "\x1b" not in shown[False]
    assert len(shown[False].splitlines()) == 11  # the first, and every fourth of 40
    line = "epoch 4/40 · loss 0.2500 · test accuracy 87.50 % · 2,000 images/s · 1.50 s · ETA 0:00:"
    assert line in shown[False]


def test_progress_within_a_long_epoch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("experiments.jobs.progress.time.monotonic", lambda: now[0])
    text = io.StringIO()
    with progress(Console(file=text), "run 1/1", Length(2, 100, 3000)) as show:
        for done in range(1, 101):
            now[0] += 1.5
            show.step(1, done, 0.5, 0.75, 1.5 * done)
        show.epoch(1, Epoch(0.25, 0.9, 0.5, 0.875, 1e-3, 150.0))
    lines = text.getvalue().splitlines()
    assert len(lines) == 3  # after one minute, after two, and at the end
    assert lines[0].startswith("run 1/1 · epoch 1/2, step 40/100 · loss 0.5000 · accuracy 75.00 %")
    assert "20 images/s" in lines[0]
    assert lines[2].endswith("ETA 0:02:30")
