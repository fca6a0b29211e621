"""What a call changes in a module, found in a copy and written into the module itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

Path = tuple[Any, ...]


def arrays_of(module: nnx.Module) -> dict[Path, list[Any]]:
    """The arrays of each variable, by its path."""
    return {path: jax.tree.leaves(each) for path, each in nnx.to_flat_state(nnx.state(module))}


def changed_state(before: Mapping[Path, list[Any]], module: nnx.Module) -> Any:
    """The variables that are new, or hold other arrays than before."""
    changed = []
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        ids = [id(leaf) for leaf in jax.tree.leaves(variable)]
        if path not in before or [id(leaf) for leaf in before[path]] != ids:
            changed.append((path, variable))
    return nnx.from_flat_state(changed)


def fixed_attributes(module: nnx.Module) -> dict[Path, dict[str, Any]]:
    """By the path of each module within one its attributes that hold neither arrays nor modules."""
    return {
        path: {
            name: value
            for name, value in vars(inner).items()
            if not name.startswith("_pytree__") and not inner._pytree__nodes.get(name, False)
        }
        for path, inner in nnx.iter_modules(module)
    }


def write_attributes(
    module: nnx.Module,
    before: Mapping[Path, Mapping[str, Any]],
    after: Mapping[Path, Mapping[str, Any]],
) -> None:
    """Sets the attributes that a call has changed or added.

    Raises:
      ValueError: the call has made new modules.
    """
    new = [path for path in after if path not in before]
    if new:
        names = ", ".join(".".join(map(str, path)) for path in new)
        raise ValueError(
            f"the call makes new modules ({names}), which would be lost: make them beforehand"
        )
    modules = dict(nnx.iter_modules(module))
    for path, attributes in after.items():
        for name, value in attributes.items():
            if name not in before[path] or before[path][name] is not value:
                setattr(modules[path], name, value)
