"""Bits fitted to what a function keeps, by the energies of its maps' frequencies."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from bandjax._conv.closed import array_leaves, traced
from bandjax._saved.plan import Plan
from bandjax.codecs._blocks import blocks_of
from bandjax.codecs._codec import Codec, check_bits
from bandjax.codecs._dct import allocated, energies, pack_blocks, unpack_blocks
from bandjax.codecs._words import Layout

_FORMAT = "bandjax codec 1"


@dataclasses.dataclass(frozen=True)
class FittedMap:
    """What was found of one array that a function keeps.

    Attributes:
      shape: of the array, without its first axis.
      strengths: of each coefficient of a block the root of its mean share in the block's energy.
    """

    shape: tuple[int, ...]
    strengths: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class FittedDct(Codec):
    """:class:`bandjax.codecs.Dct` with bits by the frequencies that each array was found to have.

    Made by :func:`bandjax.calibrate_codec`, for :func:`bandjax.compress_saved` of the same function
    alone: each array that the function keeps has its own bits. Another batch size is no matter.

    Args:
      bits: average bits a value.
      maps: of every array, in the order made.
    """

    bits: float
    maps: tuple[FittedMap, ...]

    def __repr__(self) -> str:
        return f"FittedDct(bits={self.bits:g}, {len(self.maps)} maps)"

    def each(self, shapes: Sequence[tuple[int, ...]]) -> Sequence[Codec]:
        """The codec of each array.

        Raises:
          ValueError: the arrays are not those that were calibrated.
        """
        found = [tuple(shape[1:]) for shape in shapes]
        fitted = [entry.shape for entry in self.maps]
        if found != fitted:
            pairs = zip([*found, None], [*fitted, None], strict=False)
            first = next(i for i, (a, b) in enumerate(pairs) if a != b)
            here, there = ([*maps, None][first] for maps in (found, fitted))
            raise ValueError(
                f"the codec was calibrated for another model: it is for {len(fitted)} maps, here "
                f"are {len(found)}; map {first} is {there} there and {here} here (without the "
                "first axis)"
            )
        return [_OneMap(self.bits, entry.strengths) for entry in self.maps]

    def _pack(self, x: jax.Array) -> tuple[jax.Array, ...]:
        raise ValueError("a calibrated codec is for compress_saved alone, not for single arrays")

    def _unpack(
        self, arrays: tuple[jax.Array, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> jax.Array:
        raise ValueError("a calibrated codec is for compress_saved alone, not for single arrays")

    def as_dict(self) -> dict[str, Any]:
        """The codec, ready for JSON."""
        maps = [{"shape": list(m.shape), "strengths": list(m.strengths)} for m in self.maps]
        return {"format": _FORMAT, "bits": self.bits, "maps": maps}

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Reads what :meth:`as_dict` wrote.

        Raises:
          ValueError: it is something else.
        """
        match content:
            case {"format": str(kind), "bits": float(bits) | int(bits), "maps": list(maps)}:
                if kind == _FORMAT:
                    check_bits("bits", bits, 0.5, 12)
                    return cls(bits, tuple(map(_read_map, maps)))
        raise ValueError(f"no calibrated codec: format must be {_FORMAT!r}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file."""
        Path(path).write_text(json.dumps(self.as_dict()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a JSON file that :meth:`save` wrote.

        Raises:
          OSError: it cannot be read.
          ValueError: it is something else.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


@dataclasses.dataclass(frozen=True)
class _OneMap(Codec):
    """The codec of one array."""

    bits: float
    strengths: tuple[float, ...]

    def __repr__(self) -> str:
        return f"FittedDct(bits={self.bits:g})"

    def _layout(self) -> Layout:
        return allocated(self.bits, self.strengths)

    def _pack(self, x: jax.Array) -> tuple[jax.Array, ...]:
        return pack_blocks(self._layout(), blocks_of(tuple(x.shape)), x)

    def _unpack(
        self, arrays: tuple[jax.Array, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> jax.Array:
        return unpack_blocks(self._layout(), blocks_of(shape), arrays, shape, dtype)


def calibrate_codec(
    f: Callable[..., Any],
    batches: Iterable[tuple[Any, ...]],
    bits: float = 4,
    *,
    differentiated: int | Sequence[int] = 0,
    argnums: int | Sequence[int] = (),
) -> FittedDct:
    """Fits the bits of each frequency to what a function keeps for its gradient.

    Args:
      f: function of pytrees of arrays, as for :func:`bandjax.compress_saved`.
      batches: arguments of ``f``, a tuple for each of a few calls; of the same shapes.
      bits: average bits a value, from 0.5 to 12, as of :class:`bandjax.codecs.Dct`.
      differentiated: positions of the arguments by which the gradient will be taken.
      argnums: as for :func:`bandjax.compress_saved`.

    Returns:
      A codec for ``compress_saved(f, codec)``. It refuses any other function that does not keep
      arrays of the same shapes in the same order.

    Raises:
      TypeError, ValueError: ``bits`` is out of range; there is no batch; ``f`` keeps nothing that a
        codec packs.

    Example:
      >>> def f(w, x):
      ...     return jnp.tanh(jnp.tanh(x @ w)).sum()
      >>> batch = jnp.eye(64), jnp.linspace(-1, 1, 2048).reshape(32, 64)
      >>> calibrate_codec(f, [batch], bits=6).bits
      6
    """
    check_bits("bits", bits, 0.5, 12)
    totals: list[np.ndarray] | None = None
    shapes: list[tuple[int, ...]] = []
    count = 0
    measure: Any = None
    for args in batches:
        if measure is None:
            measure, shapes = _measure(f, args, _positions(differentiated), _positions(argnums))
        found = [np.asarray(a, np.float64) for a in measure(*array_leaves(args))]
        totals = found if totals is None else [a + b for a, b in zip(totals, found, strict=True)]
        count += 1
    if totals is None:
        raise ValueError("batches must hold the arguments of at least one call, got none")
    if not totals:
        raise ValueError("f keeps nothing that a codec packs: it has no large maps")
    fitted = (
        FittedMap(shape[1:], tuple(float(f"{v:.4g}") for v in np.sqrt(total / count)))
        for shape, total in zip(shapes, totals, strict=True)
    )
    return FittedDct(bits, tuple(fitted))


def _positions(numbers: int | Sequence[int]) -> tuple[int, ...]:
    return (numbers,) if isinstance(numbers, int) else tuple(numbers)


def _measure(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    differentiated: tuple[int, ...],
    packed: tuple[int, ...],
) -> tuple[Callable[..., list[jax.Array]], list[tuple[int, ...]]]:
    """A function of the arguments' leaves that returns the energies of each map; their shapes."""
    flags: Mapping[str, list[bool]] = {
        name: [i in {n % len(args) for n in numbers} for i in range(len(args))]
        for name, numbers in (("moves", differentiated), ("packed", packed))
    }
    call = traced(f, args, {}, flags["packed"])
    moves = [m for arg, m in zip(args, flags["moves"], strict=True) for _ in array_leaves(arg)]
    inputs = [*call.constants, *call.leaves]
    moves = [False] * len(call.constants) + moves
    plan = Plan.of(call.whole, inputs, moves, call.packable)
    if plan is None:
        raise ValueError("differentiated must name an argument of f")
    maps = plan.maps()

    @jax.jit
    def measure(*leaves: Any) -> list[jax.Array]:
        found: dict[int, jax.Array] = {}

        def made(number: int, value: Any) -> Any:
            if number in maps:
                found[number] = energies(value)
            return value

        plan.run([*call.constants, *leaves], made)
        return [found[number] for number in maps]

    return measure, [plan.first.types[number].shape for number in maps]


def _read_map(entry: Any) -> FittedMap:
    match entry:
        case {"shape": list(shape), "strengths": list(strengths)}:
            values = blocks_of((1, *shape)).values
            if len(strengths) != values or not all(
                isinstance(s, float | int) and 0 <= s <= 1 for s in strengths
            ):
                raise ValueError(f"a map of shape {shape} needs {values} strengths from 0 to 1")
            return FittedMap(tuple(shape), tuple(map(float, strengths)))
    raise ValueError(f"a map needs shape and strengths, got {entry!r}")
