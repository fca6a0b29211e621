"""What a command says of an error."""

from __future__ import annotations


def assert_one_line(capsys, message):
    """Nothing but one line, on stderr, with ``message`` in it."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
