"""With what a record was made."""

from __future__ import annotations

import re

from experiments.settings.records import git_revision


def test_git_revision(monkeypatch):
    git_revision.cache_clear()
    assert re.fullmatch(r"[0-9a-f]{40}\+?", git_revision() or "0" * 40)
    git_revision.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git_revision() is None
    git_revision.cache_clear()
