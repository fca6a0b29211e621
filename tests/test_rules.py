"""The rules that the source keeps: floors without circles, short files, told functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from import_rules import violations

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 450  # lines
LONGEST_UNTOLD = 15  # lines of a function without a docstring
FLOORS = (
    ("_allocator", "_optional", "_parallel", "_tables"),
    ("_bands",),
    ("_spectra", "schedule"),
    ("_native",),
    ("_conv", "codecs"),
    ("_saved",),
    ("_analysis", "_flax", "memory"),
    ("equinox", "keras", "linen", "nnx", "plot", "spectral"),
    ("_renamed",),
    ("__init__",),
    ("__main__",),
)
SOURCES = {
    f"{folder}/{pattern}": sorted((ROOT / folder).rglob(pattern))
    for folder, pattern in (
        ("bandjax", "*.py"),
        ("experiments", "*.py"),
        ("tests", "*.py"),
        ("ffi", "*.h"),
        ("ffi", "*.cpp"),
        ("ffi", "*.cu"),
    )
}


def test_the_rooms_of_the_package_keep_their_floors():
    assert violations(ROOT / "bandjax", FLOORS, typing_only=False) == []


@pytest.mark.parametrize("kind", SOURCES)
def test_no_file_is_long(kind):
    lengths = {str(path.relative_to(ROOT)): len(lines(path)) for path in SOURCES[kind]}
    assert lengths
    assert {path: n for path, n in lengths.items() if n > LONGEST_FILE} == {}


@pytest.mark.parametrize("folder", ["bandjax", "experiments"])
def test_every_function_of_some_length_has_a_docstring(folder):
    paths = SOURCES[f"{folder}/*.py"]
    assert paths
    assert [name for path in paths for name in untold(path.read_text("utf-8"))] == []


def test_a_long_function_without_a_docstring_is_found():
    body = "\n".join(["    x = 1"] * LONGEST_UNTOLD)
    assert list(untold(f"def f():\n{body}\n")) == ["f"]
    assert list(untold(f'def f():\n    """Told."""\n{body}\n')) == []
    assert list(untold(f"class A:\n    def f(self):\n{body.replace('    ', '        ')}")) == ["f"]


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def untold(source: str) -> Iterator[str]:
    """Functions of more than LONGEST_UNTOLD lines that have no docstring.

    Those within a function are part of it, and a class tells of its constructor.
    """
    tree = ast.parse(source)
    inner = {
        node
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef)
        for node in ast.walk(outer)
        if node is not outer
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node not in inner and node.name != "__init__":
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > LONGEST_UNTOLD and ast.get_docstring(node) is None:
                yield node.name
