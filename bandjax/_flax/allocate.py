"""Allocation: boxes for the layers of a model, by the damage that each does, under one budget."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._bands.band import Bound, at_strides, resolve_modes
from bandjax._bands.boxes import candidate_boxes
from bandjax._bands.boxes import levels as levels_of
from bandjax._bands.frequencies import hermitian_weights
from bandjax._bands.plan import Budget, LayerPlan, Plan
from bandjax._conv.choose import choose
from bandjax._conv.complex_numbers import is_complex, parts_of_input, real_dtype, real_geometry
from bandjax._conv.counts import multiply_adds, residual_bytes
from bandjax._conv.geometry import ConvGeometry
from bandjax._conv.options import ConvSpec
from bandjax._flax.inputs import Observations, Seen, observed, run_batches, spectrum_of
from bandjax._flax.select import Where, shown

_STEPS = 1 << 12  # of a budget, in each of which few choices are followed

Boxes = tuple[tuple[int, ...], ...]


def allocate(
    model: Any,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], jax.Array],
    budget: float | Budget,
    *,
    variables: Any = None,
    where: Where = None,
    grid: int | Sequence[int] | None = None,
    progress: bool = False,
) -> Plan:
    """Finds one static band for each convolution layer: the least damage under one budget.

    The model runs on every batch as it is, in inference mode, forward and backward. To drop the
    frequencies outside a box from a layer's input ``x`` changes the loss of an example, to first
    order, by minus the sum over them of the products of the spectra of ``x`` and of the loss's
    gradient by it. The *damage* of a box is the mean square of that change over the examples, and
    at least that of any larger box. The plan has the least sum of damages, over all choices of a
    box for each layer whose costs stay within the budget: a knapsack problem, solved by dynamic
    programming. Of choices for the first layers whose costs differ by less than a 4096th part of
    the budget two are followed, so that a choice may be missed that is better by little; never for
    a budget that allows every frequency. What the budget leaves goes to larger boxes of no more
    damage.

    A layer's boxes are those of :class:`bandjax.Compression` on its grid, within ``at_most``. Costs
    are those of one example. A layer that is called several times costs and damages as often. The
    layers that ``vmap`` or ``scan`` stack are one layer, which costs once.

    Args:
      model: a ``flax.nnx`` module, which is not changed, or a ``flax.linen`` module with
        ``variables``; see :func:`bandjax.calibrate`. It should have been trained, for some epochs:
        gradients tell what it uses.
      batches: what ``loss`` takes, each an array ``(batch, ...)``, or a tuple or list of which the
        first is that. All examples have one shape.
      loss: called as ``loss(model, batch)``, the mean loss over the examples of a batch, a scalar.
        A model of ``flax.linen`` is bound to its variables.
      budget: the share of the bytes kept for the backward pass that the layers may keep together,
        of those with every frequency; or a :class:`bandjax.Budget`, of coefficients or of
        multiply-adds, or within a bound such as ``Nyquist()``.
      variables, where, grid: see :func:`bandjax.calibrate`.
      progress: show a bar, which needs rich.

    Returns:
      A :class:`bandjax.Plan`.

    Raises:
      TypeError: an argument of the wrong type; a loss that is no scalar.
      ValueError: as :func:`bandjax.calibrate`; or the smallest boxes exceed the budget.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(
      ...     nnx.Conv(1, 4, (3,), rngs=rngs), nnx.relu, nnx.Conv(4, 1, (3,), rngs=rngs)
      ... )
      >>> x = jax.random.normal(jax.random.key(0), (8, 32, 1))
      >>> plan = allocate(model, [x], lambda model, x: (model(x) ** 2).mean(), budget=0.5)
      >>> reals = [min(2 * layer.kept, 32) for layer in plan.layers.values()]
      >>> plan.band, reals[0] + 4 * reals[1] <= 0.5 * (32 + 4 * 32)  # of 1 and 4 channels
      (Budget(share=0.5, of='bytes', at_most=None), True)

    Source: the estimate is that of Theis et al., "Faster gaze prediction with dense networks and
    Fisher pruning", arXiv:1801.05787, section 2.1, for masks of frequencies in place of units.
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    if not callable(loss):
        raise TypeError(f"loss must be a function of a model and a batch, got {loss!r}")
    observer = _Damages(where, grid, budget.at_most)

    def gradient(model: Any, batch: Any) -> Any:
        observer.calls.clear()  # Batches of another size are another trace.

        # By a number that every layer's input seems to depend on, the first one's too.
        def seeded(seed: jax.Array) -> jax.Array:
            observer.seed = seed
            return loss(model, batch)

        return jax.grad(seeded)(jnp.zeros(()))

    run = observed(model, variables, gradient, observer, "allocate")
    input_shape = run_batches(batches, run, "allocating" if progress else None)
    return Plan(observer.plans(budget), input_shape, budget, observer.left_out)


class _Damages(Observations):
    """What dropping each level of frequencies does to the loss, for the input of each layer.

    Attributes:
      seed: see :func:`_watched`; of the trace under way.
    """

    def __init__(self, where: Where, grid: Any, at_most: Bound) -> None:
        super().__init__(where, grid)
        self.seed: Any = None
        self._at_most = at_most
        self._damage: dict[str, np.ndarray] = {}
        self._energy: dict[str, np.ndarray] = {}
        self._rows: dict[str, int] = {}

    def boxes(self, geometry: ConvGeometry) -> Boxes:
        """The boxes that a layer may have, each within the next."""
        strides = [axis.stride for axis in geometry.axes]
        bound = resolve_modes(at_strides(self._at_most, geometry.grid, strides), geometry.grid)
        within = (
            tuple(min(pair) for pair in zip(box, bound, strict=True))
            for box in candidate_boxes(geometry.grid)
        )
        return tuple(dict.fromkeys(within))

    def watch(self, path: str, geometry: ConvGeometry, x: jax.Array) -> jax.Array:
        """Has the damage done to each input estimated on the way back."""
        return _watched(_Watch(self, path, geometry), self.seed, x)

    def add(self, path: str, *values: np.ndarray) -> None:
        """Adds what one call gave: changes of the loss ``(rows, levels)``, energies."""
        changes, energies = values
        beyond = np.cumsum(changes[:, ::-1], axis=1)[:, ::-1]  # of a level and all above it
        # Dropping what is above a level: the last box that can be kept drops the very last level.
        squares = (beyond[:, 1:] ** 2).sum(0)
        self._damage[path] = self._damage.get(path, 0) + squares
        self._energy[path] = self._energy.get(path, 0) + energies
        self._rows[path] = self._rows.get(path, 0) + len(changes)

    def plans(self, budget: Budget) -> dict[str, LayerPlan]:
        """Returns the plan of every layer."""
        self.check()
        boxes = {path: self.boxes(seen.geometry) for path, seen in self.seen.items()}
        damages, costs, whole = [], [], 0
        for path, seen in self.seen.items():
            damage = self._damage[path] / self._rows[path] * self.calls[path]
            if not np.isfinite(damage).all():
                raise ValueError(f"input or gradient of layer {shown(path)} is not finite")
            # To drop more never counts as better: what cancels here need not elsewhere.
            damages.append(np.maximum.accumulate(damage[::-1])[::-1])
            of_layer = [self.calls[path] * _cost(seen, box, budget.of) for box in boxes[path]]
            costs.append(np.array(of_layer, np.int64))
            full = tuple(g // 2 for g in seen.grid)
            whole += self.calls[path] * _cost(seen, full, budget.of)
        allowed = math.floor(budget.share * whole)
        chosen = cheapest(damages, costs, allowed)
        if chosen is None:
            least = sum(int(of_layer.min()) for of_layer in costs)
            raise ValueError(
                f"a budget of {budget.share:g} allows {allowed} {budget.of} an example, but the "
                f"smallest boxes take {least} of {whole}: give at least {least / whole:.4f}"
            )
        plans = {}
        for (path, seen), index in zip(self.seen.items(), chosen, strict=True):
            energy = self._energy[path]
            total = energy.sum()
            held = float(min(energy[: index + 1].sum() / total, 1.0)) if total else 1.0
            modes = boxes[path][index]
            plans[path] = LayerPlan(seen.kernel_shape, seen.size, seen.grid, modes, held)
        return plans


@dataclasses.dataclass(frozen=True, eq=False)
class _Watch:
    """One call of a layer, as it is looked at."""

    damages: _Damages
    path: str
    geometry: ConvGeometry

    def look(self, x: jax.Array, ct: jax.Array) -> None:
        """Takes the input of a call, and the loss's gradient by it."""
        geometry = self.geometry
        if is_complex(x.dtype):  # JAX's cotangent is that of re + i im, so that -im has a part's.
            x, ct = parts_of_input(x, 1), parts_of_input(jnp.conj(ct), 1)
        boxes = self.damages.boxes(geometry)
        half = tuple(g // 2 for g in geometry.grid)
        place = jnp.asarray(levels_of(geometry.grid, half, boxes)).ravel()
        once = hermitian_weights(geometry.grid[-1], half[-1])
        weights = jnp.asarray(once.reshape((1,) * len(half) + (-1,)), jnp.float32)
        # Not reflected: the gradient is that of the map as it is, its copies counted in.
        spectrum, gradient = (spectrum_of(a, geometry, reflect=False) for a in (x, ct))
        # Parseval's theorem, row by row; the loss is a mean over rows.
        products = jnp.real(jnp.conj(gradient) * spectrum).sum(-1) * weights
        changes = products.reshape(len(x), -1).T * (len(x) / math.prod(geometry.grid))
        energy = (jnp.abs(spectrum) ** 2).sum((0, -1)) * weights[0]
        sums = functools.partial(
            jax.ops.segment_sum, segment_ids=place, num_segments=len(boxes) + 1
        )
        note = functools.partial(self.damages.note, self.path)
        jax.debug.callback(note, sums(changes).T, sums(energy.ravel()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(watch: _Watch, seed: jax.Array, x: jax.Array) -> jax.Array:
    """Returns ``x``, as if it depended on ``seed``: then its gradient is computed, and seen."""
    return x


def _forward(watch: _Watch, seed: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, x


def _backward(watch: _Watch, x: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    watch.look(x, ct)
    return jnp.zeros(()), ct


_watched.defvjp(_forward, _backward)


def _cost(seen: Seen, box: tuple[int, ...], of: str) -> int:
    """What one example costs in a layer, by a box."""
    pairs = zip(seen.geometry.axes, box, strict=True)
    axes = tuple(dataclasses.replace(axis, limit=limit) for axis, limit in pairs)
    geometry = real_geometry(dataclasses.replace(seen.geometry, axes=axes), seen.dtype)
    dtype = real_dtype(seen.dtype)
    if of == "coefficients":
        return geometry.kept * geometry.in_features
    method = choose(geometry, ConvSpec(), dtype)
    if of == "bytes":
        return residual_bytes(method, geometry, ConvSpec(), dtype, "spatial")
    return sum(multiply_adds(method, geometry, "spatial"))


def cheapest(
    damages: Sequence[np.ndarray], costs: Sequence[np.ndarray], allowed: int
) -> list[int] | None:
    """Chooses one entry of each layer, with the least sum of damages whose costs are allowed.

    Args:
      damages: of each layer's entries, not negative.
      costs: of the same, integers.
      allowed: the most that the chosen costs may sum to.

    Returns:
      The index of each layer's entry, of those without more damage the last; None where no choice
      is allowed.
    """
    unit = max(1, math.ceil(allowed / _STEPS))
    cost, damage = np.zeros(1, np.int64), np.zeros(1)
    followed = []
    for of_layer, price in zip(damages, costs, strict=True):
        # What was chosen so far, by each entry of this layer; of equal costs the least damage.
        sums, hurt = (np.add.outer(*pair).ravel() for pair in ((cost, price), (damage, of_layer)))
        order = np.lexsort((hurt, sums))
        order = order[sums[order] <= allowed]
        if not len(order):
            return None
        # Those that nothing cheaper surpasses; of those within a step the first and the last.
        least = np.minimum.accumulate(hurt[order])
        order = order[np.concatenate([[True], least[1:] < least[:-1]])]
        step = sums[order] // unit
        new = step[1:] != step[:-1]
        order = order[np.concatenate([[True], new]) | np.concatenate([new, [True]])]
        cost, damage = sums[order], hurt[order]
        followed.append(np.divmod(order, len(price)))
    chosen = []
    place = len(cost) - 1  # The most expensive one has the least damage.
    left = allowed - int(cost[place])
    for before, entry in reversed(followed):
        chosen.append(int(entry[place]))
        place = before[place]
    chosen.reverse()
    for layer, (of_layer, price) in enumerate(zip(damages, costs, strict=True)):
        now = chosen[layer]
        larger = (of_layer[now:] <= of_layer[now]) & (price[now:] <= price[now] + left)
        chosen[layer] = now + int(np.flatnonzero(larger)[-1])
        left -= int(price[chosen[layer]] - price[now])
    return chosen
