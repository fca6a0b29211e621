"""What a command says when it ends."""

from __future__ import annotations

import os

import jax
from one_line import assert_one_line

from experiments import train
from experiments.settings.command import run_command


def test_out_of_memory_is_one_line(capsys):
    def action():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    assert run_command(action, "") == 2
    assert_one_line(capsys, "out of memory: choose a smaller --batch-size")


def test_words_that_are_no_text_are_refused_at_once(tmp_path, capsys):
    folder = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    assert train.main(["--out", folder, "--epochs", "1"]) == 2
    assert_one_line(capsys, "caf\\xe9")
    assert not list(tmp_path.iterdir())
