"""A ``flax.nnx`` model prepared for inference."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bandjax._conv.geometry import ConvGeometry
from bandjax._flax import fused
from bandjax._flax.classes import NnxBatchNorm, NnxConv, NnxConvTranspose, NnxLinear
from bandjax._flax.fold import INPUT, LAYER, NORM, NORM_OUTPUT, Flow, Statistics, mark
from bandjax._flax.nnx_layer import BandConv
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
from bandjax._flax.select import TRANSPOSED
from bandjax._flax.spectral_layer import metadata_with_planes

# Layers whose calls do what these methods do.
_CONVOLVE = (NnxConv.__call__, BandConv.__call__)
_NOTES = "_bandjax_notes"
_KIND = "_bandjax_kind"  # the class that a prepared model had
_CHANGED = ("kernel", "kernel_spectrum", "bias", "scale", "mean", "var")


class PreparedConv(BandConv):
    """A convolution layer prepared for inference; made by :func:`bandjax.nnx.prepare`.

    Attributes:
      prepared: how it is computed.
      kernel: its taps, or ``kernel_spectrum``, what is kept of them.
    """

    prepared: Prepared

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Applies the layer to ``(batch..., *spatial, in_features)``."""
        bias = None if self.bias is None else self.bias[...]
        filter_ = self.kernel if self.prepared.domain == "spatial" else self.kernel_spectrum
        return self.prepared(inputs, filter_[...], bias, out_sharding)

    def geometry(self, input_shape: Sequence[int]) -> ConvGeometry:
        """Returns grid, kept box and true compression for inputs of ``input_shape``."""
        return self.prepared.geometry(tuple(input_shape), self.kernel_shape)


class FoldedBatchNorm(NnxBatchNorm):
    """A batch norm that the layer before it does; made by :func:`bandjax.nnx.prepare`.

    Attributes:
      result_dtype: of what it returns.
    """

    result_dtype: Any

    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: Any = None
    ) -> jax.Array:
        """Returns ``x`` in the type that the norm gave.

        Raises:
          ValueError: the statistics of the batch are asked for.
        """
        asked = self.use_running_average if use_running_average is None else use_running_average
        if asked is False:
            raise ValueError(
                "this batch norm is folded into the layer before it and has no statistics: a "
                "prepared model is for inference, train the model that it was made of"
            )
        return jnp.asarray(x, self.result_dtype)


def prepare_model(
    model: Any, inputs: Sequence[Any], keywords: Mapping[str, Any], dtype: Any, measure: bool
) -> tuple[Any, PrepareReport]:
    """See :func:`bandjax.nnx.prepare`."""
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model must be a flax.nnx module, got {model!r}; for flax.linen there is "
            "bandjax.linen.prepare"
        )
    if not isinstance(measure, bool):
        raise TypeError(f"measure must be True or False, got {measure!r}")
    chooser = Chooser(measure, check_dtype(dtype))
    model = nnx.clone(model)
    object.__setattr__(model, "__class__", getattr(type(model), _KIND, type(model)))
    model.eval()
    layers, norms, flow = _found(model, inputs, keywords)
    changes, report = changes_of(layers, norms, flow, chooser)
    for path, change in changes.items():
        _apply({**layers, **norms}[path].layer, change)
    if not isinstance(model, PreparedConv):
        kind: Any = type(model)
        object.__setattr__(model, "__class__", _fusing(kind))
    return model, report


class _WritesError(Exception):
    """A call changes the state of the model."""


@functools.lru_cache
def _fusing(kind: Any) -> Any:
    """A subclass of a model's class whose compiled calls are :func:`fused.fused`."""

    def call(self: Any, *args: Any, **keywords: Any) -> Any:
        graph, state = nnx.split(self)
        if not fused.traced((state, args, keywords)):
            return kind.__call__(self, *args, **keywords)

        def each(state: Any, args: Any, keywords: Any) -> Any:
            before, copy = jax.tree.leaves(state), nnx.merge(graph, state)
            out = kind.__call__(copy, *args, **keywords)
            after, leaves = nnx.graphdef(copy), jax.tree.leaves(nnx.state(copy))
            if after != graph or any(a is not b for a, b in zip(before, leaves, strict=True)):
                raise _WritesError
            return out

        try:
            return fused.fused(each, state, args, keywords)
        except _WritesError:
            return kind.__call__(self, *args, **keywords)

    def reduced(self: Any, protocol: Any) -> Any:
        _, (_, *rest), *others = kind.__reduce_ex__(self, protocol)
        return _unpickled, (kind, *rest), *others

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, _KIND: kind}
    own = {"__call__": functools.wraps(kind.__call__)(call), "__reduce_ex__": reduced}
    return type(kind)(kind.__name__, (kind,), {**names, **own})


def _unpickled(kind: Any, *rest: Any) -> Any:
    """An instance of a model's prepared class, to be filled."""
    return object.__new__(_fusing(kind), *rest)


def _modules(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yields every convolution, linear layer and batch norm of a model once, by its first path."""
    kinds = NnxConv | NnxConvTranspose | NnxLinear | NnxBatchNorm
    for path, module in nnx.iter_modules(model):
        if isinstance(module, kinds):
            yield ".".join(map(str, path)), module


def _own_call(module: Any) -> bool:
    """Whether a layer's call is that of its class of Flax, or of ``BandConv``."""
    call: Any = type(module).__call__
    return call in (*_CONVOLVE, NnxLinear.__call__, NnxBatchNorm.__call__)


def _variables(layer: Any) -> dict[str, Any]:
    held = {name: vars(layer).get(name) for name in _CHANGED}
    return {name: value for name, value in held.items() if isinstance(value, nnx.Variable)}


@functools.lru_cache
def _noting(kind: Any) -> Any:
    """A subclass of a layer's class that notes each call and marks what it reads and gives."""
    roles = (NORM, NORM_OUTPUT) if issubclass(kind, NnxBatchNorm) else (INPUT, LAYER)

    def call(self: Any, *args: Any, **keywords: Any) -> Any:
        notes: Notes = getattr(self, _NOTES)
        name = next((n for n in ("inputs", "x") if not args and n in keywords), None)
        x = mark(args[0] if name is None else keywords[name], roles[0], notes.path)
        if name is None:
            args = x, *args[1:]
        else:
            keywords = {**keywords, name: x}
        if roles[0] == NORM:
            asked = args[1] if len(args) > 1 else keywords.get("use_running_average")
            notes.running.append((self.use_running_average if asked is None else asked) is True)
        out = mark(kind.__call__(self, *args, **keywords), roles[1], notes.path)
        notes.calls.append((tuple(x.shape), out.dtype))
        return out

    names = {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind)(kind.__name__, (kind,), names)


def _found(
    model: nnx.Module, inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[dict[str, Found], dict[str, Found], Flow]:
    """Traces a model; returns convolutions and linear layers, norms, and what reads what."""
    graph, state = nnx.split(model)
    traced, static = split_keywords(keywords)
    notes: dict[str, Notes] = {path: Notes(path) for path, _ in _modules(model)}
    reads: dict[str, list[int]] = {}
    given = dict(named_leaves(state))
    kept: list[str] = []

    def run(leaves: list[Any], arguments: Any, traced: Any) -> Any:
        copy = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))
        number = {id(leaf): i for i, leaf in enumerate(leaves)}
        for path, module in list(_modules(copy)):
            if not _own_call(module):
                continue
            own = (number.get(id(v[...])) for v in _variables(module).values())
            reads[path] = [i for i in own if i is not None]
            object.__setattr__(module, "__class__", _noting(type(module)))  # type: ignore[arg-type]
            setattr(module, _NOTES, notes[path])
        out = jax.tree.leaves(copy(*arguments, **traced, **static))
        after = dict(named_leaves(nnx.state(copy)))
        kept.extend(after)
        return list(after.values()), out

    flow = traced_flow(run, given, (tuple(map(abstract, inputs)), traced), kept)
    layers: dict[str, Found] = {}
    norms: dict[str, Found] = {}
    for path, module in _modules(model):
        elsewhere = any(flow.read_elsewhere(flow.inputs[i]) for i in reads.get(path, ()))
        found = _describe(module, notes[path], elsewhere)
        (norms if isinstance(module, NnxBatchNorm) else layers)[path] = found
    return layers, norms, flow


def _describe(module: Any, notes: Notes, elsewhere: bool) -> Found:
    """What a layer holds, and why it is left alone, if it is."""
    convolves = isinstance(module, NnxConv | NnxConvTranspose)
    reason = None
    if isinstance(module, NnxConvTranspose):
        reason = TRANSPOSED
    elif isinstance(module, PreparedConv | FoldedBatchNorm):
        reason = "it is prepared already"
    elif not _own_call(module):
        reason = "its class has a call of its own"
    elif _stacked(module):
        reason = "it is stacked, for vmap or scan"
    elif elsewhere:
        reason = "its parameters are read elsewhere too"
    elif isinstance(module, NnxLinear) and not _is_plain(module):
        reason = "it has a product of its own"
    if reason is not None:
        return Found(module, notes, reason=reason, convolves=convolves)
    held = {name: variable[...] for name, variable in _variables(module).items()}
    if isinstance(module, NnxBatchNorm):
        scale, bias = held.get("scale"), held.get("bias")
        statistics = Statistics(held["mean"], held["var"], scale, bias, module.epsilon)
        return Found(module, notes, statistics=statistics)
    kernel = held["kernel"] if "kernel" in held else held["kernel_spectrum"]
    return Found(module, notes, kernel, held.get("bias"), convolves=convolves)


def _stacked(module: Any) -> bool:
    if isinstance(module, NnxBatchNorm):
        return bool(module.mean.shape != (module.num_features,))
    if isinstance(module, NnxLinear):
        return bool(module.kernel.shape != (module.in_features, module.out_features))
    if getattr(module, "param_domain", "spatial") == "spectral":
        return module.kernel_spectrum.ndim != len(module.kernel_shape) + 1
    return bool(module.kernel.shape != tuple(module.kernel_shape))


def _is_plain(module: Any) -> bool:
    return module.dot_general is jax.lax.dot_general and module.preferred_element_type is None


def _apply(module: Any, change: Change) -> None:
    """Makes a layer what it is to become."""
    if change.identity is not None:
        object.__setattr__(module, "__class__", FoldedBatchNorm)
        for name in _variables(module):
            delattr(module, name)
        module.result_dtype = change.identity
        return
    metadata = module.kernel.get_metadata() if hasattr(module, "kernel") else None
    if change.bias is not None:
        known = {} if module.bias is None else module.bias.get_metadata()
        module.bias = nnx.Param(change.bias, **known)
        module.use_bias = True
    if change.prepared is None:
        module.kernel = nnx.Param(change.kernel, **(metadata or {}))
        return
    prepared = change.prepared
    object.__setattr__(module, "__class__", PreparedConv)
    module.prepared = prepared
    for name, value in prepared.spec.attributes().items():
        setattr(module, name, value)
    module.saved, module.mask, module.conv_general_dilated = (
        None,
        None,
        jax.lax.conv_general_dilated,
    )
    module.param_domain, module.spectral_decay = "prepared", 0.0
    if prepared.domain == "spatial":
        module.kernel = nnx.Param(change.kernel, **(metadata or {}))
    elif metadata is not None:
        planes = metadata_with_planes(metadata, planes=True)
        module.kernel_spectrum = nnx.Param(change.kernel, **planes)
        del module.kernel
    else:
        module.kernel_spectrum = nnx.Param(change.kernel, **module.kernel_spectrum.get_metadata())
