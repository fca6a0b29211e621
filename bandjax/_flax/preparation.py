"""What a model's trace says of its layers, and what is to become of each, for both interfaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bandjax._flax.fold import Flow, Statistics, followed, unfoldable
from bandjax._flax.prepare_report import PreparedLayer, PrepareReport
from bandjax._flax.prepared import Chooser, Prepared, own_kernel, unpreparable
from bandjax._flax.select import shown


@dataclasses.dataclass
class Notes:
    """Where a layer notes its calls; hashed by identity, as a static attribute has to be.

    Attributes:
      path: of the layer.
      calls: shape of the input, and type of the output, of each call.
      running: of a batch norm, whether each call uses the running statistics.
    """

    path: str
    calls: list[tuple[tuple[int, ...], Any]] = dataclasses.field(default_factory=list)
    running: list[bool] = dataclasses.field(default_factory=list)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclasses.dataclass(frozen=True)
class Found:
    """A layer of a model.

    Attributes:
      layer: with its attributes.
      notes: of its calls.
      kernel: taps, spectrum or matrix; None for a norm and for what is left alone.
      bias: or None.
      statistics: of a batch norm.
      reason: why it is left alone; None if it may be changed.
      convolves: whether it is a convolution.
    """

    layer: Any
    notes: Notes
    kernel: jax.Array | None = None
    bias: jax.Array | None = None
    statistics: Statistics | None = None
    reason: str | None = None
    convolves: bool = False

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Of the spatial axes of the inputs."""
        size = self.layer.kernel_size
        rank = 1 if isinstance(size, int) else len(size)
        return [shape[-rank - 1 : -1] for shape, _ in self.notes.calls]

    @property
    def dtype(self) -> Any:
        """Of the results."""
        return self.notes.calls[0][1]

    def why_left(self) -> str | None:
        """Returns why the layer is left alone; None if it may be changed."""
        if self.reason is not None or not self.convolves:
            return self.reason
        if len({dtype for _, dtype in self.notes.calls}) > 1:
            return "its calls give several types"
        return unpreparable(self.layer, self.dtype, self.sizes)


@dataclasses.dataclass(frozen=True)
class Change:
    """What a layer becomes.

    Attributes:
      prepared: of a convolution, how it is computed.
      kernel: its filter, or the matrix of a linear layer.
      bias: or None.
      identity: of a batch norm that another layer does, the type of its result; else None.
    """

    prepared: Prepared | None = None
    kernel: jax.Array | None = None
    bias: jax.Array | None = None
    identity: Any = None


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of a pytree, each with its path."""
    flat, _ = jax.tree.flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def traced_flow(
    run: Callable[..., Any], given: dict[str, Any], arguments: Sequence[Any], kept: Sequence[str]
) -> Flow:
    """Traces a model.

    Args:
      run: takes a list of the model's state and ``arguments``, and returns a list of the state
        after the call, and the result.
      given: the state, by name.
      arguments: arrays or shapes.
      kept: names of the state after the call; ``run`` fills it.
    """
    flow = Flow.of(jax.make_jaxpr(run)(list(given.values()), *arguments))
    # State that the model hands back as it was is not read.
    before = dict(zip(given, flow.inputs, strict=False))
    after = zip(kept, flow.outputs, strict=False)
    flow.add_results([number for name, number in after if number != before.get(name)])
    flow.add_results(flow.outputs[len(kept) :])
    return flow


def check_dtype(dtype: Any) -> Any:
    """Returns the type in which spectra are to be kept, or None.

    Raises:
      TypeError: it is none.
      ValueError: another one than bfloat16 and float32.
    """
    if dtype is None:
        return None
    try:
        asked = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a type or None, got {dtype!r}") from None
    if asked not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"dtype must be bfloat16, float32 or None, got {asked}")
    return asked


def changes_of(
    layers: dict[str, Found], norms: dict[str, Found], flow: Flow, chooser: Chooser
) -> tuple[dict[str, Change], PrepareReport]:
    """Returns what layers and norms become, by path, and the report.

    Args:
      layers: convolutions and linear layers.
      norms: batch norms.
      flow: what reads what in the model.
      chooser: of the ways to compute a convolution.

    Raises:
      ValueError: there is no convolution, or one is not called.
    """
    met = {path: place for place, (_, path) in enumerate(flow.marked)}
    layers, norms = (
        dict(sorted(found.items(), key=lambda item: met.get(item[0], len(met))))
        for found in (layers, norms)
    )
    convolutions = {path: found for path, found in layers.items() if found.convolves}
    if not convolutions:
        raise ValueError("the model has no convolution layer to prepare")
    for path, found in convolutions.items():
        if not found.notes.calls and found.reason is None:
            raise ValueError(f"layer {shown(path)} is not called with these inputs")
    report = PrepareReport()
    reasons = {
        path: found.why_left() if found.notes.calls else found.reason or "it is not called"
        for path, found in layers.items()
    }
    folded: dict[str, str] = {}  # the norm of a layer
    changes: dict[str, Change] = {}
    for path, found in norms.items():
        into, why = _layer_of(path, found, flow, reasons)
        report.norms[path] = into
        if into is None:
            report.unfolded[path] = why
        else:
            folded[into] = path
            changes[path] = Change(identity=found.dtype)
    to_choose: dict[str, tuple[Prepared, tuple[int, ...], jax.Array, jax.Array | None]] = {}
    for path, found in layers.items():
        if reasons[path] is not None:
            if found.convolves:
                report.left[path] = str(reasons[path])
            continue
        kernel, bias, norm = found.kernel, found.bias, folded.get(path)
        assert kernel is not None
        if found.convolves:
            layer = Prepared.of(found.layer, kernel, found.sizes, found.dtype)
            kernel = own_kernel(found.layer, kernel, found.sizes)
        if norm is not None:
            statistics = norms[norm].statistics
            assert statistics is not None
            kernel, bias = statistics.into(kernel, bias)
        if found.convolves:
            shape = max((shape for shape, _ in found.notes.calls), key=lambda s: s[:1])
            to_choose[path] = layer, shape, kernel, bias
        elif norm is not None:
            changes[path] = Change(kernel=kernel, bias=bias)
    chooser.others = sum(
        layer.most_bytes(shape, kernel) for layer, shape, kernel, _ in to_choose.values()
    )
    for path, (layer, shape, kernel, bias) in to_choose.items():
        way, prepared, made, seconds = chooser.choose(layer, shape, kernel, bias)
        changes[path] = Change(prepared, made, bias)
        report.layers[path] = PreparedLayer(way, seconds, folded.get(path), made.nbytes)
    return changes, report


def _layer_of(
    path: str, norm: Found, flow: Flow, reasons: dict[str, str | None]
) -> tuple[str | None, str]:
    """Returns the layer that a norm is folded into, or None and why it is not."""
    if norm.reason is not None:
        return None, norm.reason
    into, why = followed(flow, path)
    if into is None:
        return None, why
    notes = norm.notes
    why_not = unfoldable(norm.layer, notes.running, [len(shape) for shape, _ in notes.calls])
    if why_not is None and len({dtype for _, dtype in notes.calls}) > 1:
        why_not = "its calls give several types"
    if why_not is not None:
        return None, why_not
    if reasons[into] is not None:
        return None, f"{shown(into)} is left alone: {reasons[into]}"
    return into, ""
