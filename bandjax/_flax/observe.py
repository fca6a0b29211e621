"""Which convolution layers a Flax model calls, in which order, on inputs of which shapes.

The model runs on shapes alone, in a trace of its own. Layers of ``flax.linen`` are seen by Flax's
own interceptors. ``flax.nnx`` has none: there a copy of the model runs whose convolution layers are
instances of subclasses that note their calls. What they note to is a static attribute, which lives
through all that ``nnx.split`` and ``nnx.merge`` do to a module, under ``remat``, ``scan`` and
``jit``; and as it is a new one each time, JAX takes no earlier trace of a jitted method for it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
      path: of the layer in the model, "blocks.0.conv" (nnx) or "Block_0/Conv_1" (linen).
      layer: the layer; one of linen is not bound to variables.
      input: shape and type of its argument.
      output: of its result.
    """

    path: str
    layer: Any
    input: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct


def observe(
    model: Any,
    inputs: Sequence[Any],
    keywords: Mapping[str, Any],
    variables: Any = None,
    rngs: Any = None,
) -> tuple[list[Call], list[str]]:
    """Returns the calls of convolution layers, and the paths of those that were not called.

    Args:
      model: a module of ``flax.nnx`` or ``flax.linen``; it is not changed.
      inputs: arguments, pytrees of arrays or ``jax.ShapeDtypeStruct``; a tuple of integers is the
        shape of a float32 array.
      keywords: further arguments. Arrays (and pytrees of nothing else) are traced, the others are
        passed as they are.
      variables: of a linen model; None for those that its ``init`` makes.
      rngs: of a linen model, as ``init`` and ``apply`` take them.

    Raises:
      TypeError: no Flax module, or ``variables`` or ``rngs`` for one of nnx; no inputs, or other
        than arrays.
    """
    # Without Flax there is no module of Flax.
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    arguments = tuple(map(abstract, inputs))
    if not arguments and not keywords:
        raise TypeError("inputs are missing: the model's arguments, arrays or their shapes")
    for value in arguments:
        numbers = (int, float, complex)
        if not all(hasattr(a, "shape") or isinstance(a, numbers) for a in jax.tree.leaves(value)):
            raise TypeError(
                "inputs must be arrays, jax.ShapeDtypeStruct, pytrees of these, or shapes as "
                f"tuples, got {value!r}"
            )
    traced, static = split_keywords(keywords)
    if nnx is not None and isinstance(model, nnx.Module):
        for name, value in (("variables", variables), ("rngs", rngs)):
            if value is not None:
                raise TypeError(f"{name} are for a flax.linen model; one of flax.nnx has its own")
        return _observe_nnx(model, arguments, traced, static)
    if linen is not None and isinstance(model, linen.Module):
        return _observe_linen(model, arguments, traced, static, variables, rngs), []
    raise TypeError(
        f"model must be a flax.nnx.Module or a flax.linen.Module, got {type(model).__name__}"
    )


def abstract(x: Any) -> Any:
    """A tuple of integers as the float32 array of this shape; anything else as it is."""
    if isinstance(x, tuple | list) and all(type(n) is int for n in x):
        return jax.ShapeDtypeStruct(tuple(x), "float32")
    return x


def split_keywords(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments that are arrays, or pytrees of nothing else, and the others."""
    traced = {name: value for name, value in keywords.items() if _is_arrays(value)}
    return traced, {name: value for name, value in keywords.items() if name not in traced}


def _is_arrays(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(hasattr(a, "shape") and hasattr(a, "dtype") for a in leaves)


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


# flax.nnx


class _Notes:
    """Where one layer notes its calls; hashed by identity, as a static attribute has to be."""

    def __init__(self, path: str, calls: list[tuple[str, Any, Any]]) -> None:
        self.path = path
        self.calls = calls


@functools.lru_cache
def _noting(kind: type[Any]) -> type[Any]:
    """A subclass of a layer's class that notes each call."""

    def call(self: Any, inputs: Any, *args: Any, **keywords: Any) -> Any:
        out = kind.__call__(self, inputs, *args, **keywords)
        notes = self._bandjax_notes
        notes.calls.append((notes.path, _shape_of(inputs), _shape_of(out)))
        return out

    names = {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


def _observe_nnx(
    model: Any, arguments: tuple[Any, ...], traced: dict[str, Any], static: dict[str, Any]
) -> tuple[list[Call], list[str]]:
    """Calls a copy of an nnx model on shapes; returns the calls, and layers without one."""
    from flax import nnx

    from bandjax._flax.classes import NnxConv, NnxConvTranspose

    def layers_of(module: nnx.Module) -> dict[str, Any]:
        return {
            ".".join(map(str, path)): layer
            for path, layer in nnx.iter_modules(module)
            if isinstance(layer, NnxConv | NnxConvTranspose)
        }

    noted: list[tuple[str, Any, Any]] = []
    graph, state = nnx.split(model)

    def run(state: Any, arguments: tuple[Any, ...], traced: dict[str, Any]) -> Any:
        copy = nnx.merge(graph, state)  # of this trace, so that it may be changed here
        for path, layer in layers_of(copy).items():
            object.__setattr__(layer, "__class__", _noting(type(layer)))  # type: ignore[arg-type]
            layer._bandjax_notes = _Notes(path, noted)
        return copy(*arguments, **traced, **static)

    jax.eval_shape(run, state, arguments, traced)
    layers = layers_of(model)
    called = {path for path, _, _ in noted}
    return (
        [Call(path, layers[path], given, out) for path, given, out in noted],
        [path for path in layers if path not in called],
    )


# flax.linen


def _observe_linen(
    model: Any,
    arguments: tuple[Any, ...],
    traced: dict[str, Any],
    static: dict[str, Any],
    variables: Any,
    rngs: Any,
) -> list[Call]:
    """Calls a linen model on shapes, and returns the calls of its convolutions."""
    from flax import linen as nn

    from bandjax._flax.classes import LinenConv, LinenConvTranspose
    from bandjax._flax.linen_models import limited_as

    calls: list[Call] = []

    def interceptor(method: Any, args: Any, keywords: Any, context: Any) -> Any:
        out = method(*args, **keywords)
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, LinenConv | LinenConvTranspose):
            given = args[0] if args else keywords["inputs"]
            path = "/".join(layer.path)
            seen = limited_as(layer)
            seen = layer.clone(parent=None) if seen is layer else seen
            calls.append(Call(path, seen, _shape_of(given), _shape_of(out)))
        return out

    if rngs is None:  # Any stream without a key of its own draws from this one.
        rngs = {"params": jax.eval_shape(lambda: jax.random.key(0))}
    if variables is None:
        init = functools.partial(model.init, **static)
        variables = jax.eval_shape(
            lambda rngs, arguments, traced: init(rngs, *arguments, **traced),
            rngs,
            arguments,
            traced,
        )

    def run(variables: Any, rngs: Any, arguments: Any, traced: Any) -> Any:
        changing = nn.DenyList("params")
        return model.apply(variables, *arguments, rngs=rngs, mutable=changing, **traced, **static)

    with nn.intercept_methods(interceptor):
        jax.eval_shape(run, variables, rngs, arguments, traced)
    return calls
