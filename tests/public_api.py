"""The public names of bandjax and their signatures, one a line. ``python -m tests.public_api``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

# What is neither a class nor a function, and what is imported when asked for.
MORE = {
    "": (
        *("Band", "BandConv", "NATIVE_TARGETS", "equinox", "keras", "linen", "nnx"),
        "save_spectra",
    )
}
MODULES = ("", ".codecs", ".equinox", ".keras", ".linen", ".memory", ".nnx", ".plot")
MODULES += (".schedule", ".spectral")


def _signature(value: Any) -> str:
    """Names, kinds and defaults of the parameters, without annotations."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    told = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", told)


def _members(kind: type) -> Iterator[str]:
    """The fields, properties and methods that a class itself defines, or a base of this package."""
    fields = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    own: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("bandjax"):
            own |= vars(base)
    for name in sorted({*fields, *(n for n in own if not n.startswith("_"))}):
        value = own.get(name)
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        yield name + (_signature(value) if isinstance(value, types.FunctionType) else "")


def lines() -> Iterator[str]:
    """Every public name: what each module lists in ``__all__``, or else defines."""
    for suffix in MODULES:
        module = importlib.import_module("bandjax" + suffix)
        listed = getattr(module, "__all__", None) or _defined(module)
        for name in sorted({*listed, *MORE.get(suffix, ())}):
            value = getattr(module, name)
            full = f"{module.__name__}.{name}"
            if isinstance(value, type) and value.__module__.startswith("bandjax"):
                yield full + _signature(value.__init__)
                yield from (f"{full}.{member}" for member in _members(value))
            else:
                yield full + (_signature(value) if isinstance(value, types.FunctionType) else "")


def _defined(module: types.ModuleType) -> Iterator[str]:
    for name in dir(module):
        value = getattr(module, name)
        where = (
            value.__name__
            if isinstance(value, types.ModuleType)
            else value.__module__
            if (isinstance(value, type | types.FunctionType))
            else ""
        )
        public = not name.startswith("_") and not where.rpartition(".")[2].startswith("__")
        if public and where.startswith(module.__name__):
            yield name


if __name__ == "__main__":
    print("\n".join(lines()))
