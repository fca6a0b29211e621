"""What a command says when it ends."""

from __future__ import annotations

import jax
from one_line import assert_one_line

from experiments.settings.command import run_command


def test_out_of_memory_is_one_line(capsys):
    def action():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    assert run_command(action, "") == 2
    assert_one_line(capsys, "out of memory: choose a smaller --batch-size")
