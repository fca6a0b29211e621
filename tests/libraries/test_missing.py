"""Layers for libraries that are not installed say so, and the package does without."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import bandjax


@pytest.mark.parametrize("name", ["equinox", "keras"])
def test_a_missing_library_is_told(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # As if it were not there.
    monkeypatch.delitem(sys.modules, f"bandjax.{name}", raising=False)
    monkeypatch.delitem(vars(bandjax), name, raising=False)
    with pytest.raises(ImportError, match=rf"bandjax\.{name} needs {name}: pip install 'bandjax"):
        importlib.import_module(f"bandjax.{name}")
    with pytest.raises(ImportError, match="pip install"):
        getattr(bandjax, name)


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, bandjax; print({'equinox', 'keras', 'flax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
