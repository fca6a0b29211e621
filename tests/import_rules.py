"""Which parts of a package may import which: floors, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def violations(
    package: Path, floors: Sequence[Sequence[str]], *, typing_only: bool = False
) -> list[str]:
    """What breaks the rules of a package, one line each.

    A room is a module or a sub-package that lies directly in the package; the package's own
    ``__init__.py`` is the room ``__init__``. A room imports from lower floors alone, and no module
    imports another that leads back to it. Imports within functions count like all others.

    Args:
        package: folder of the package.
        floors: the rooms of each floor, the lowest first. Rooms of one floor do not know each
            other.
        typing_only: whether to look at imports under ``if TYPE_CHECKING:`` too.
    """
    modules = {_name(path, package): path for path in sorted(package.rglob("*.py"))}
    floor_of = {room: level for level, rooms in enumerate(floors) for room in rooms}
    rooms = {_room(name) for name in modules}
    found = [f"{room}: on no floor" for room in sorted(rooms - floor_of.keys())]
    found += [f"{room}: on a floor, but not there" for room in sorted(floor_of.keys() - rooms)]
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = set(_imports(path, name, modules, typing_only))
        graph[name] = targets - {name}
        for target in sorted(targets):
            here, there = _room(name), _room(target)
            if here != there and floor_of.get(there, -1) >= floor_of.get(here, len(floors)):
                found.append(f"{name} imports {target}, which is not on a lower floor")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # graphlib lists what is imported before what imports it.
        found.append("circle: " + " imports ".join(reversed(error.args[1])))
    return found


def _name(path: Path, package: Path) -> str:
    """The dotted name of a module: ``package.room.module``, a sub-package by its own name."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(name: str) -> str:
    _, room, *_ = [*name.split("."), "__init__"]
    return room


def _imports(path: Path, name: str, modules: dict[str, Path], typing_only: bool) -> Iterator[str]:
    """The package's own modules that a module names in its imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set() if typing_only else _for_types_alone(tree)
    within = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: one dot is the package that the module lies in
                above = within.split(".")[: len(within.split(".")) + 1 - node.level]
                base = ".".join([*above, *filter(None, [node.module])])
            # What is imported is a module, or else something that the module before it has.
            wanted = [
                full if (full := f"{base}.{alias.name}") in modules else base
                for alias in node.names
            ]
        else:
            continue
        yield from (each for each in wanted if each in modules)


def _for_types_alone(tree: ast.Module) -> set[ast.AST]:
    """The nodes under ``if TYPE_CHECKING:``."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
