"""Calibration: the spectral energy that reaches each convolution layer, and boxes that hold it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._bands.band import Energy, at_strides
from bandjax._bands.boxes import smallest_box
from bandjax._bands.frequencies import hermitian_weights
from bandjax._bands.plan import LayerPlan, Plan
from bandjax._conv.complex_numbers import is_complex, parts_of_input
from bandjax._conv.geometry import ConvGeometry
from bandjax._flax.inputs import Observations, observed, run_batches, spectrum_of
from bandjax._flax.select import Where, shown


def calibrate(
    model: Any,
    batches: Iterable[Any],
    band: Energy,
    *,
    variables: Any = None,
    where: Where = None,
    grid: int | Sequence[int] | None = None,
    call: Callable[[Any, jax.Array], Any] | None = None,
    progress: bool = False,
) -> Plan:
    """Finds one static band for each convolution layer of a model, by the energy of its inputs.

    The model runs on every batch as it is, in inference mode, while the inputs of its convolutions
    are observed. The spectral energy ``sum c_u |X[u]|^2`` of each layer's input, summed over all
    batches, examples and channels (``c_u`` the Hermitian weights), decides: the layer's box is the
    smallest of ``band.boxes(grid)`` that holds ``band.share`` of the total, or the largest of them
    where none does. A layer that sees nothing but zeros keeps the largest.

    A layer that is called several times, one that is shared for instance, has the sum of the
    energies of all its calls. The layers that ``vmap`` or ``scan`` stacks are one layer.

    Args:
      model: a ``flax.nnx`` module, which is not changed: a copy of it runs, after its ``eval()``;
        or a ``flax.linen`` module, with ``variables``. Layers are ``Conv`` and ``BandConv``.
      batches: inputs, each ``(batch, ...)``, or tuples or lists of which the first is that. All
        examples have one shape; the number of examples may differ.
      band: the share of energy to keep; ``at_most`` bounds every box.
      variables: of a ``flax.linen`` model: parameters and the other collections.
      where: which layers, see :func:`bandjax.nnx.band_limit`. None for all.
      grid: see :func:`bandjax.band_conv`; by default each layer's own. Periodic layers keep theirs.
      call: how the model is called, ``call(model, x)``; by default ``model(x)``. In ``flax.linen``
        the model is bound to its variables, so that ``lambda model, x: model(x, train=False)`` is
        an example of use. It is compiled by ``jax.jit``.
      progress: show a bar, which needs rich.

    Returns:
      A :class:`bandjax.Plan`.

    Raises:
      TypeError: an argument of the wrong type, ``batches`` a single array for instance.
      ValueError: no batch; examples of different shapes; no convolution layer is selected; a layer
        is never called, or called on inputs of different sizes; energy that is not finite.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(
      ...     nnx.Conv(1, 4, (3,), rngs=rngs), nnx.relu, nnx.Conv(4, 4, (3,), rngs=rngs)
      ... )
      >>> t = jnp.arange(32) / 32
      >>> batches = [jnp.sin(2 * jnp.pi * k * t)[None, :, None] for k in (1, 2)]
      >>> plan = calibrate(model, batches, Energy(0.9))
      >>> {path: (layer.grid, layer.modes) for path, layer in plan.layers.items()}
      {'layers.0': ((33,), (2,)), 'layers.2': ((33,), (2,))}

    Source: Dziedzic et al. (ICML 2019), section 3.3 (the energy) and 4.1 (found once, then static).
    """
    if not isinstance(band, Energy):
        raise TypeError(f"band must be a bandjax.Energy, got {band!r}")
    observer = _Powers(where, grid)
    call = (lambda model, x: model(x)) if call is None else call
    run = observed(model, variables, call, observer, "calibrate")

    def run_first(batch: Any) -> Any:
        return run(jnp.asarray(batch[0] if isinstance(batch, tuple | list) else batch))

    input_shape = run_batches(batches, run_first, "calibrating" if progress else None)
    return Plan(observer.plans(band), input_shape, band, observer.left_out)


class _Powers(Observations):
    """The spectral energy of each layer's input, summed over all calls."""

    def __init__(self, where: Where, grid: Any) -> None:
        super().__init__(where, grid)
        self._power: dict[str, np.ndarray] = {}

    def watch(self, path: str, geometry: ConvGeometry, x: jax.Array) -> jax.Array:
        """Has the energy of each input added up."""
        jax.debug.callback(functools.partial(self.note, path), spectral_power(x, geometry))
        return x

    def add(self, path: str, *values: np.ndarray) -> None:
        """Adds the spectral energy of a call."""
        (power,) = values
        self._power[path] = self._power.get(path, 0) + power

    def plans(self, band: Energy) -> dict[str, LayerPlan]:
        """Returns the plan of every layer."""
        self.check()
        plans = {}
        for path, seen in self.seen.items():
            power = self._power[path]
            if not np.isfinite(power).all():
                raise ValueError(f"the input of layer {shown(path)} is not finite")
            energy = power * hermitian_weights(seen.grid[-1], seen.grid[-1] // 2)
            settled = at_strides(band, seen.grid, seen.strides)
            assert isinstance(settled, Energy)
            boxes = settled.boxes(seen.grid)
            modes, kept = smallest_box(energy, seen.grid, boxes, band.share)
            plans[path] = LayerPlan(seen.kernel_shape, seen.size, seen.grid, modes, kept)
        return plans


def spectral_power(x: jax.Array, geometry: ConvGeometry) -> jax.Array:
    """Returns ``sum |X[u]|^2`` over batch and channels, on the half spectrum of the grid.

    Args:
      x: ``(batch, *spatial, channels)``.
      geometry: where its samples lie.

    Returns:
      ``(g_1, ..., g_last // 2 + 1)``, of float32, or float64 for such an input.
    """
    if is_complex(x.dtype):  # The powers of both parts are added.
        x = parts_of_input(x, groups=1)
    spectrum = spectrum_of(x, geometry)
    power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
    return power.sum(axis=(0, -1))
