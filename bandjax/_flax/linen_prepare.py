"""A ``flax.linen`` model prepared for inference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta, unfreeze

from bandjax._flax.classes import (
    LinenBatchNorm,
    LinenConv,
    LinenConvLocal,
    LinenConvTranspose,
    LinenDense,
)
from bandjax._flax.fold import INPUT, LAYER, NORM, NORM_OUTPUT, Flow, Statistics, mark
from bandjax._flax.fused import fused
from bandjax._flax.layer import arguments_of
from bandjax._flax.linen_layer import BandConv
from bandjax._flax.linen_models import UNSHARED, changed, left, limited_as
from bandjax._flax.observe import abstract, split_keywords
from bandjax._flax.preparation import (
    Change,
    Found,
    Notes,
    changes_of,
    check_dtype,
    named_leaves,
    traced_flow,
)
from bandjax._flax.prepare_report import PrepareReport
from bandjax._flax.prepared import Chooser, Prepared
from bandjax._flax.select import TRANSPOSED, shown

_CALLS = tuple(kind.__call__ for kind in (LinenConv, BandConv, LinenDense, LinenBatchNorm))
_ELSEWHERE = "its parameters are read elsewhere too"
_KINDS = (LinenConv, LinenConvTranspose, LinenConvLocal, LinenDense, LinenBatchNorm)


def prepare_model(
    model: Any,
    variables: Any,
    inputs: Sequence[Any],
    keywords: Mapping[str, Any],
    rngs: Any,
    dtype: Any,
    measure: bool,
) -> tuple[Callable[..., Any], Any, PrepareReport]:
    """See :func:`bandjax.linen.prepare`."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a flax.linen module, got {model!r}; for flax.nnx there is "
            "bandjax.nnx.prepare"
        )
    if not isinstance(measure, bool):
        raise TypeError(f"measure must be True or False, got {measure!r}")
    chooser = Chooser(measure, check_dtype(dtype))
    variables = unfreeze(variables)
    layers, norms, flow = _found(model, variables, inputs, keywords, rngs)
    changes, report = changes_of(layers, norms, flow, chooser)
    variables = jax.tree.map(lambda leaf: leaf, variables)  # containers of its own
    for path, change in changes.items():
        _apply(variables, path, change)
    steps = {path: _Step.of(change) for path, change in changes.items()}

    def each(variables: Any, args: Any, kwargs: Any) -> Any:
        with left(), nn.intercept_methods(functools.partial(_intercept, steps)):
            return model.apply(variables, *args, **kwargs)

    def apply(variables: Any, *args: Any, **kwargs: Any) -> Any:
        return fused(each, variables, args, kwargs)

    return apply, {name: tree for name, tree in variables.items() if tree}, report


@dataclasses.dataclass(frozen=True)
class _Step:
    """What is done in the place of a layer's call.

    Attributes:
      prepared: of a convolution.
      identity: of a batch norm that another layer does, the type of its result.
      bias: whether the layer has one.
    """

    prepared: Prepared | None
    identity: Any
    bias: bool

    @classmethod
    def of(cls, change: Change) -> _Step:
        """What a change is for calls."""
        return cls(change.prepared, change.identity, change.bias is not None)


def _intercept(
    steps: Mapping[str, _Step], method: Callable[..., Any], args: Any, keywords: Any, context: Any
) -> Any:
    """Calls a method of a module; where it is that of a prepared layer, what it has become."""
    module = context.module
    path = "/".join(module.path)
    if context.method_name != "__call__" or not isinstance(module, _KINDS) or path not in steps:
        return method(*args, **keywords)
    step = steps[path]
    if step.identity is not None:
        asked = args[1] if len(args) > 1 else keywords.get("use_running_average")
        if (module.use_running_average if asked is None else asked) is False:
            raise ValueError(
                f"batch norm {shown(path)} is folded into the layer before it and has no "
                "statistics: a prepared model is for inference"
            )
        return jnp.asarray(args[0] if args else keywords["x"], step.identity)
    if step.prepared is None:
        with changed(module, {"use_bias": step.bias}):
            return method(*args, **keywords)
    name = "kernel" if step.prepared.domain == "spatial" else "kernel_spectrum"
    kernel, bias = (meta.unbox(module.get_variable("params", n)) for n in (name, "bias"))
    if kernel is None or (bias is None) == step.bias:
        raise ValueError(
            f"layer {shown(path)} does not have the variables that bandjax.linen.prepare returned"
        )
    return step.prepared(args[0] if args else keywords["inputs"], kernel, bias)


@dataclasses.dataclass
class _Met:
    """A layer that the trace met.

    Attributes:
      layer: as it is called, with the attributes that contexts give it.
      notes: of its calls.
      own_call: whether its call is that of its class of Flax, or of ``BandConv``.
      features: of its input.
      alike: whether all its calls had the same attributes.
    """

    layer: Any
    notes: Notes
    own_call: bool
    features: int
    alike: bool = True


def _found(
    model: nn.Module,
    variables: Any,
    inputs: Sequence[Any],
    keywords: Mapping[str, Any],
    rngs: Any,
) -> tuple[dict[str, Found], dict[str, Found], Flow]:
    """Traces a model; returns convolutions and linear layers, norms, and what reads what."""
    met: dict[str, _Met] = {}

    def intercept(method: Any, args: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, _KINDS):
            return method(*args, **keywords)
        norm = isinstance(module, LinenBatchNorm)
        name = None if args else "x" if norm else "inputs"
        x = args[0] if name is None else keywords[name]
        path = "/".join(module.path)
        seen = limited_as(module)
        seen = module.clone(parent=None) if seen is module else seen
        own = type(module).__call__ in _CALLS
        now = met.setdefault(path, _Met(seen, Notes(path), own, x.shape[-1]))
        if isinstance(module, LinenConv):
            now.alike &= arguments_of(now.layer) == arguments_of(seen)
        if own:
            x = mark(x, NORM if norm else INPUT, path)
        args, keywords = ((x, *args[1:]), keywords) if name is None else ((), {**keywords, name: x})
        out = method(*args, **keywords)
        now.notes.calls.append((tuple(x.shape), out.dtype))
        if norm:
            asked = args[1] if len(args) > 1 else keywords.get("use_running_average")
            now.notes.running.append(
                (module.use_running_average if asked is None else asked) is True
            )
        return mark(out, NORM_OUTPUT if norm else LAYER, path) if own else out

    traced, static = split_keywords(keywords)
    given, kept = dict(named_leaves(variables)), list[str]()
    structure = jax.tree.structure(variables)

    def run(leaves: list[Any], arguments: Any, traced: Any) -> Any:
        whole = jax.tree.unflatten(structure, leaves)
        out, after = model.apply(
            whole, *arguments, rngs=rngs, mutable=nn.DenyList("params"), **traced, **static
        )
        changed = dict(named_leaves(after))
        kept.extend(changed)
        return list(changed.values()), jax.tree.leaves(out)

    with nn.intercept_methods(intercept):
        flow = traced_flow(run, given, (tuple(map(abstract, inputs)), traced), kept)
    number = dict(zip(given, flow.inputs, strict=False))
    layers: dict[str, Found] = {}
    norms: dict[str, Found] = {}
    for path, each in met.items():
        own = [number[name] for name in given if _belongs(name, path)]
        elsewhere = any(flow.read_elsewhere(n) for n in own)
        norm = isinstance(each.layer, LinenBatchNorm)
        (norms if norm else layers)[path] = _describe(each, variables, elsewhere)
    return layers, norms, flow


def _belongs(name: str, path: str) -> bool:
    """Whether a leaf of the variables is one of a layer's own."""
    _, _, within = name.partition("]")  # without the collection
    start = "".join(f"[{part!r}]" for part in path.split("/") if part)
    return within.startswith(start) and within.removeprefix(start).count("[") == 1


def _holder(variables: Any, collection: str, path: str) -> dict[str, Any]:
    """The variables of a layer in a collection."""
    tree = variables.get(collection, {})
    for part in filter(None, path.split("/")):
        tree = tree.get(part, {})
    return tree


def _describe(met: _Met, variables: Any, elsewhere: bool) -> Found:
    """What a layer holds, and why it is left alone, if it is."""
    layer, path = met.layer, met.notes.path
    kind = getattr(layer, "_module", layer)
    convolves = isinstance(kind, LinenConv | LinenConvTranspose | LinenConvLocal)
    held = meta.unbox(dict(_holder(variables, "params", path)))
    kernel = held.get("kernel", held.get("kernel_spectrum"))
    reason = None
    if isinstance(kind, LinenConvTranspose):
        reason = TRANSPOSED
    elif isinstance(kind, LinenConvLocal):
        reason = UNSHARED
    elif not met.own_call:
        reason = "its class has a call of its own"
    elif not met.alike:
        reason = "its calls differ in more than their inputs"
    elif isinstance(kind, LinenBatchNorm):
        if elsewhere:
            return Found(layer, met.notes, reason=_ELSEWHERE)
        statistics = meta.unbox(dict(_holder(variables, "batch_stats", path)))
        if {"mean", "var"} <= statistics.keys() and statistics["mean"].shape == (met.features,):
            mean, var = statistics["mean"], statistics["var"]
            scale = held.get("scale") if layer.use_scale else None
            bias = held.get("bias") if layer.use_bias else None
            whole = Statistics(mean, var, scale, bias, layer.epsilon)
            return Found(layer, met.notes, statistics=whole)
        reason = "it is stacked, for vmap or scan, or normalises another axis"
    elif kernel is None or kernel.ndim != _rank(layer, met, held):
        reason = "it is stacked, for vmap or scan"
    elif isinstance(kind, LinenDense) and (layer.dot_general, layer.dot_general_cls) != (None,) * 2:
        reason = "it has a product of its own"
    elif elsewhere:
        reason = _ELSEWHERE
    if reason is not None:
        return Found(layer, met.notes, reason=reason, convolves=convolves)
    bias = held.get("bias") if layer.use_bias else None
    return Found(layer, met.notes, kernel, bias, convolves=convolves)


def _rank(layer: Any, met: _Met, held: Mapping[str, Any]) -> int:
    """Axes of the filter of a layer that is called as it is."""
    size = getattr(layer, "kernel_size", ())
    rank = 1 if isinstance(size, int) else len(size)
    return rank + 2 + ("kernel" not in held)


def _apply(variables: dict[str, Any], path: str, change: Change) -> None:
    """Makes the variables of a layer what they are to become."""
    if change.identity is not None:
        for collection in ("params", "batch_stats"):
            _drop(variables.get(collection, {}), [part for part in path.split("/") if part])
        return
    held = _holder(variables, "params", path)
    for name in ("kernel", "kernel_spectrum", "bias"):
        held.pop(name, None)
    spatial = change.prepared is None or change.prepared.domain == "spatial"
    held["kernel" if spatial else "kernel_spectrum"] = change.kernel
    if change.bias is not None:
        held["bias"] = change.bias


def _drop(tree: dict[str, Any], path: list[str]) -> None:
    """Removes a branch, and what is empty without it."""
    if not path:
        tree.clear()
        return
    inner = tree.get(path[0])
    if inner is None:
        return
    _drop(inner, path[1:])
    if not inner:
        del tree[path[0]]
