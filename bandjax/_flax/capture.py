"""What goes through one layer of a ``flax.nnx`` model: its input, filter, output and gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LayerSignals:
    """The signals of one convolution, as samples.

    Attributes:
      input: ``(batch..., *spatial, in)``.
      kernel: ``(*taps, in, out)``.
      output: ``(batch..., *spatial_out, out)``.
      gradient: the loss's derivative by the output, of the output's shape.
      grid: points on the circle of each axis; None where the layer has no :class:`ConvGeometry`.
      modes: the largest kept frequency of each axis, None likewise.
      path: of the layer in its model.
    """

    input: Any
    kernel: Any
    output: Any
    gradient: Any
    grid: tuple[int, ...] | None = None
    modes: tuple[int, ...] | None = None
    path: str = ""

    def __post_init__(self) -> None:
        rank = np.ndim(self.kernel) - 2
        if rank not in (1, 2, 3):
            raise ValueError(
                "kernel must have 1, 2 or 3 spatial axes, as (*taps, in, out), got shape "
                f"{np.shape(self.kernel)}"
            )
        for name in ("input", "output", "gradient"):
            shape = np.shape(getattr(self, name))
            if len(shape) < rank + 1:
                raise ValueError(
                    f"{name} must be (batch..., *spatial, channels) with the {rank} spatial axes "
                    f"of the kernel, got shape {shape}"
                )


def joined(path: str | Iterable[Hashable]) -> str:
    """A path in a model as one text, ``"convs.0"``."""
    return path.replace("/", ".") if isinstance(path, str) else ".".join(map(str, path))


def layer_signals(
    model: Any, layer: str | Iterable[Hashable], loss: Callable[..., Any], *batch: Any
) -> LayerSignals:
    """Returns the input, filter, output and output's gradient of one layer, for one batch.

    The model is copied: its parameters, statistics and random state stay as they are.

    Args:
      model: a ``flax.nnx`` module that holds the layer.
      layer: its path in the model, as ``flax.nnx.iter_modules`` gives it or as text, "convs.0".
        A layer with a ``kernel`` (where its parameter is a spectrum, ``bandjax.nnx.to_spatial``
        first), called once in ``loss`` with its input as first argument, outside of ``jax.jit``,
        ``jax.checkpoint`` and the like.
      loss: ``loss(model, *batch)`` returns a scalar, or a tuple that begins with it.
      *batch: further arguments of ``loss``.

    Raises:
      ImportError: Flax is not installed.
      ValueError: there is no such layer, it has no kernel, or ``loss`` does not call it just once.

    Example:
      >>> layer = BandConv(3, 8, (3, 3), band=Compression(0.5), rngs=nnx.Rngs(0))
      >>> model = nnx.Sequential(layer, nnx.relu)
      >>> found = layer_signals(
      ...     model, "layers.0", lambda model, x: model(x).sum(), jnp.ones((2, 8, 8, 3))
      ... )
      >>> found.input.shape, found.kernel.shape, found.gradient.shape, found.grid
      ((2, 8, 8, 3), (3, 3, 3, 8), (2, 8, 8, 8), (9, 9))
    """
    from flax import nnx

    name = joined(layer)
    model = nnx.clone(model)
    chosen = _find(nnx, model, name)
    kernel = np.asarray(chosen.kernel[...])
    geometry = getattr(chosen, "geometry", None)
    calls: list[tuple[jax.Array, jax.Array]] = []
    shifts: list[jax.Array] = []

    def probed(self: Any, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
        y = kind.__call__(self, x, *args, **options)
        calls.append((x, y))
        return y + shifts[0] if shifts else y

    kind = type(chosen)
    object.__setattr__(chosen, "__class__", type(kind.__name__, (kind,), {"__call__": probed}))
    graph, state = nnx.split(model)

    def run(shift: jax.Array | None, state: Any, batch: Any) -> Any:
        calls.clear()
        shifts[:] = [] if shift is None else [shift]
        value = loss(nnx.merge(graph, state, copy=True), *batch)
        if len(calls) != 1:
            raise ValueError(f"loss must call layer {name!r} once, got {len(calls)} calls")
        return value[0] if isinstance(value, tuple) else value, calls[0]

    _, (_, shape) = jax.eval_shape(lambda *args: run(None, *args), state, batch)
    # Adding zero to the output makes the derivative by it one by an argument.
    shift = jnp.zeros(shape.shape, shape.dtype)
    gradient, (x, y) = jax.jit(jax.grad(run, has_aux=True))(shift, state, batch)
    found = None if geometry is None else geometry(x.shape)
    return LayerSignals(
        np.asarray(x),
        kernel,
        np.asarray(y),
        np.asarray(gradient),
        None if found is None else found.grid,
        None if found is None else found.modes,
        name,
    )


def _find(nnx: Any, model: Any, name: str) -> Any:
    """The layer of a path, which must have a kernel."""
    layers = {
        joined(path): module
        for path, module in nnx.iter_modules(model)
        if hasattr(module, "kernel")
    }
    if name not in layers:
        raise ValueError(
            f"layer must be one with a kernel, {', '.join(layers) or 'of which there are none'}; "
            f"got {name!r}"
        )
    return layers[name]
