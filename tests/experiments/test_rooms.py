"""Which rooms of the experiments may import which, and that the rules find what breaks them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from import_rules import violations

import experiments

FLOORS = (
    ("__init__",),
    ("settings",),
    ("cluster",),
    ("data", "models"),
    ("training",),
    ("jobs",),
    ("benchmarks", "checks", "figures"),
    # the commands
    ("calibration", "devicetest", "fuzz", "killtest", "paper", "study", "sweep", "train"),
)


def test_the_experiments_keep_the_rules():
    assert violations(Path(experiments.__file__).parent, FLOORS, typing_only=True) == []


ROOF = "import house.low.a\nfrom house.high import b"


HOUSE = {
    **{f"{room}/__init__": "" for room in ("low", "beside", "high")},
    **{"low/a": "", "low/e": "import house.low.c", "high/b": "", "beside/d": "", "__init__": ROOF},
}


def rules_of(folder, changes, **options):
    for name, content in {**HOUSE, **changes}.items():
        path = folder / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return violations(folder / "house", [["low", "beside"], ["high"], ["__init__"]], **options)


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("high/b", "from house.low import a", []),
        ("high/b", "from ..low.a import thing", []),
        ("low/c", "from . import a", []),
        ("low/new/f", "from house.low import a", []),
        ("low/a", "import house.high.b", ["house.low.a imports house.high.b"]),
        ("low/a", "from house.high.b import thing", ["house.low.a imports house.high.b"]),
        ("low/a", "def f():\n    from ..high import b", ["house.low.a imports house.high.b"]),
        ("low/a", "from house import thing", ["house.low.a imports house,", "circle: "]),
        ("low/a", "from house.beside import d", ["house.low.a imports house.beside.d"]),
        ("low/a", "if 1:\n    import house.high.b", ["house.low.a imports house.high.b"]),
        ("low/c", "from house.low import a, e", ["circle: "]),
        ("new", "", ["new: on no floor"]),
    ],
)
def test_what_breaks_the_rules_is_found(tmp_path, module, text, found):
    lines = rules_of(tmp_path, {module: text})
    assert len(lines) == len(found)
    assert all(line.startswith(part) for line, part in zip(lines, found, strict=True))


def test_imports_for_types_alone_count_on_request(tmp_path):
    typed = {"low/a": "if TYPE_CHECKING:\n    import house.high.b"}
    assert rules_of(tmp_path, typed) == []
    (line,) = rules_of(tmp_path, typed, typing_only=True)
    assert line == "house.low.a imports house.high.b, which is not on a lower floor"


def test_a_circle_is_told_in_the_order_of_its_imports(tmp_path):
    edges = {"a": "c", "c": "e", "e": "a"}
    changes = {f"low/{name}": f"import house.low.{other}" for name, other in edges.items()}
    (line,) = rules_of(tmp_path, changes)
    names = line.removeprefix("circle: ").replace("house.low.", "").split(" imports ")
    assert sorted(names[1:]) == ["a", "c", "e"]
    assert all(edges[one] == other for one, other in pairwise(names))


def test_a_floor_for_a_room_that_is_not_there(tmp_path):
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "__init__.py").write_text("")
    assert violations(tmp_path / "house", [["__init__"], ["cellar"]]) == [
        "cellar: on a floor, but not there"
    ]
