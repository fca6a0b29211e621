"""Which frequencies a band-limited convolution keeps."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Self, TypeAlias

from bandjax._bands.boxes import Grid, candidate_boxes, nearest_box


@dataclasses.dataclass(frozen=True)
class Compression:
    """Drop the share ``rate`` of the half spectrum's coefficients.

    The kept frequencies form a box ``|u_i| <= U_i`` that has the proportions of the grid: among the
    boxes ``U_i = m * (g_i // 2) // (g_j // 2)``, for every axis ``j`` and every
    ``0 <= m <= g_j // 2``, the one whose discarded share of the
    ``g_1 * ... * (g_last // 2 + 1)`` coefficients is nearest to ``rate``; on a tie the one that
    keeps more. The arithmetic is exact: ``rate`` is read as the decimal number that prints it.

    Small grids are coarse: on a grid of 5 x 5 only 0, 60 and 93 % can be dropped. The true share is
    what :func:`bandjax.conv_geometry` reports.

    Args:
      rate: share to drop, ``0 <= rate < 1``. 0 keeps every frequency: an exact convolution.

    Raises:
      TypeError: ``rate`` is not a real number.
      ValueError: ``rate`` lies outside ``[0, 1)`` or is not a number.

    Example:
      >>> Compression(0.5).modes((33, 33))
      (11, 11)

    Source: the static compression of Dziedzic et al. (ICML 2019), there with a label that differs
    from the true share.
    """

    rate: float | Fraction

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, numbers.Real):
            raise TypeError(f"rate must be a real number, got {self.rate!r}")
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate must satisfy 0 <= rate < 1, got {self.rate}")
        # One form of a number: equal bands hash alike and print alike.
        if not isinstance(self.rate, Fraction):
            object.__setattr__(self, "rate", float(self.rate))

    def modes(self, grid: Grid) -> tuple[int, ...]:
        """Returns the limit ``U_i`` of every axis of ``grid``."""
        rate = self.rate if isinstance(self.rate, Fraction) else Fraction(repr(self.rate))
        return nearest_box(rate, tuple(grid))


@dataclasses.dataclass(frozen=True, init=False)
class Modes:
    """Keep the frequencies ``|u_i| <= U_i``, one limit for each spatial axis.

    A limit is no count: ``Modes(12)`` keeps ``u = -12 ... 12``, which are 25 coefficients on an
    axis that holds both signs, and 13 on the last one, of which a real input needs ``u >= 0``
    alone. Neural operators count coefficients: for their ``n_modes`` see :meth:`from_n_modes`.

    Args:
      *limits: the limits ``U_i``, non-negative integers, at most ``g_i // 2`` on a grid of ``g_i``.

    Raises:
      TypeError: a limit is not an integer.
      ValueError: there is no limit, or one is negative. A limit beyond the grid, or a number of
        limits other than the number of spatial axes, raises where the band meets a convolution.
    """

    limits: tuple[int, ...]

    def __init__(self, *limits: int) -> None:
        if not limits:
            raise ValueError("Modes needs one limit for each spatial axis, got none")
        for limit in limits:
            if isinstance(limit, bool) or not isinstance(limit, numbers.Integral):
                raise TypeError(f"Modes takes integers, one for each spatial axis, got {limit!r}")
            if limit < 0:
                raise ValueError(f"Modes limits must be >= 0, got {limit}")
        object.__setattr__(self, "limits", tuple(int(limit) for limit in limits))

    @classmethod
    def from_n_modes(cls, *n_modes: int) -> Self:
        """Returns the band of neural operators' ``n_modes``, which count both signs.

        The limits are ``n_modes[i] // 2``. Everything that ``n_modes`` keeps is kept; of an even
        number ``n`` they keep ``-n/2 ... n/2 - 1``, and this band, which is symmetric, ``n/2`` too.

        Args:
          *n_modes: coefficients of each axis, at least 1.

        Raises:
          TypeError: a count is not an integer.
          ValueError: there is no count, or one is below 1.

        Example:
          >>> Modes.from_n_modes(24, 25)
          Modes(12, 12)
        """
        for count in n_modes:
            if isinstance(count, bool) or not isinstance(count, numbers.Integral):
                raise TypeError(f"n_modes must consist of integers, got {count!r}")
            if count < 1:
                raise ValueError(f"n_modes must be >= 1, got {count}")
        return cls(*(count // 2 for count in n_modes))

    def __repr__(self) -> str:
        return f"Modes({', '.join(map(str, self.limits))})"

    def modes(self, grid: Grid) -> tuple[int, ...]:
        """Returns the limits, checked against ``grid``."""
        if len(self.limits) != len(grid):
            raise ValueError(
                f"{self!r} has {len(self.limits)} limits, but there are {len(grid)} spatial axes"
            )
        for axis, (limit, g) in enumerate(zip(self.limits, grid, strict=True)):
            if limit > g // 2:
                raise ValueError(
                    f"{self!r} keeps |u| <= {limit} on spatial axis {axis}, but its grid of {g} "
                    f"has no frequency above {g // 2}; to count coefficients of both signs, use "
                    f"Modes.from_n_modes"
                )
        return self.limits


@dataclasses.dataclass(frozen=True)
class Nyquist:
    """Keep of a band what the sampling of the output can carry: strides that do not alias.

    Outputs that lie ``s`` points apart on a circle of ``g`` carry the frequencies
    ``|u| <= g / (2 s)``. Higher ones would fold down upon them. They are dropped: the limit of each
    axis is ``min(U, g // (2 s))``, with ``U`` that of ``band``. Where ``s`` is 1 that is ``band``.

    Such a convolution is the dense one of stride 1, followed by an ideal low-pass filter and by the
    choice of every ``s``-th sample, all on the circle. Of its frequencies about ``1 / s`` of each
    axis are kept, so that it computes less, too.

    Args:
      band: a :class:`Compression`, :class:`Modes`, or None for all that the output can carry. For
        a band by energy write ``Energy(share, at_most=Nyquist())``.

    Raises:
      TypeError: ``band`` is none of these.

    Example:
      >>> Nyquist().modes((33, 33), strides=(2, 1))
      (8, 16)
      >>> Nyquist(Compression(0.5)).modes((33, 33), strides=2)
      (8, 8)

    Source: Rippel, Snoek and Adams, "Spectral representations for convolutional neural networks",
    NeurIPS 2015 (spectral pooling); Zhang, "Making convolutional networks shift-invariant again",
    ICML 2019 (why strides should not alias).
    """

    band: Compression | Modes | None = None

    def __post_init__(self) -> None:
        if self.band is not None and not isinstance(self.band, Compression | Modes):
            hint = (
                f"; write bandjax.Energy({self.band.share}, at_most=bandjax.Nyquist())"
                if isinstance(self.band, Energy)
                else ""
            )
            raise TypeError(
                f"Nyquist takes bandjax.Compression, bandjax.Modes or None, got {self.band!r}{hint}"
            )

    def modes(self, grid: Grid, strides: int | Sequence[int] = 1) -> tuple[int, ...]:
        """Returns the limits for outputs that lie ``strides`` points of ``grid`` apart."""
        grid = tuple(grid)
        steps = (strides,) * len(grid) if not isinstance(strides, Iterable) else tuple(strides)
        if any(step < 1 for step in steps):
            raise ValueError(f"strides must be >= 1, got {strides!r}")
        limits = zip(resolve_modes(self.band, grid), grid, steps, strict=True)
        return tuple(min(limit, g // (2 * s)) for limit, g, s in limits)


@dataclasses.dataclass(frozen=True)
class Energy:
    """Keep the smallest box that holds the share ``share`` of the input's spectral energy.

    The box is found anew in every call, inside the jitted function, from the energy
    ``sum c_u |X[u]|^2`` over batch and channels (``c_u`` the Hermitian weights): a mask on arrays
    of static shape. Input and filter are cut alike, and derivatives treat the cut as a constant.
    The candidates are the boxes of :class:`Compression`. Without ``at_most`` every coefficient is
    computed and kept, and only the result is that of a smaller band; ``at_most`` bounds the box,
    and with it memory and time.

    Args:
      share: of the energy to keep, ``0 < share <= 1``.
      at_most: a :class:`Compression`, :class:`Modes` or :class:`Nyquist` that bounds the box. Where
        the share is not reached within it, all of it is kept. None for no bound.

    Raises:
      TypeError: ``share`` is not a real number, or ``at_most`` is no static band.
      ValueError: ``share`` lies outside ``(0, 1]``.

    Example:
      >>> Energy(0.9, at_most=Compression(0.5)).modes((33, 33))
      (11, 11)

    Source: the dynamic compression of Dziedzic et al. (ICML 2019), section 3.3.
    """

    share: float
    at_most: Compression | Modes | Nyquist | None = None

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not isinstance(self.share, numbers.Real):
            raise TypeError(f"share must be a real number, got {self.share!r}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must satisfy 0 < share <= 1, got {self.share}")
        check_bound(self.at_most)
        object.__setattr__(self, "share", float(self.share))

    def modes(self, grid: Grid) -> tuple[int, ...]:
        """Returns the limits of the largest box that can be kept."""
        return resolve_modes(self.at_most, tuple(grid))

    def boxes(self, grid: Grid) -> tuple[tuple[int, ...], ...]:
        """Returns the limits of every box that can be kept, each within the next."""
        bound = self.modes(grid)
        within = (
            tuple(min(pair) for pair in zip(box, bound, strict=True))
            for box in candidate_boxes(tuple(grid))
        )
        return tuple(dict.fromkeys(within))


Bound: TypeAlias = Compression | Modes | Nyquist | None
Band: TypeAlias = Compression | Modes | Nyquist | Energy | None


def check_band(band: object) -> None:
    """Raises TypeError unless ``band`` is one of the kinds of band, or None."""
    if band is not None and not isinstance(band, Compression | Modes | Nyquist | Energy):
        raise TypeError(
            "band must be bandjax.Compression, bandjax.Modes, bandjax.Nyquist, bandjax.Energy or "
            f"None, got {band!r}"
        )


def check_bound(at_most: object) -> None:
    """Raises TypeError unless ``at_most`` is a band that is the same in every call, or None."""
    if at_most is not None and not isinstance(at_most, Compression | Modes | Nyquist):
        raise TypeError(
            "at_most must be bandjax.Compression, bandjax.Modes, bandjax.Nyquist or None, "
            f"got {at_most!r}"
        )


def at_strides(
    band: Band, grid: Grid, strides: Sequence[int]
) -> Compression | Modes | Energy | None:
    """Returns the band of a convolution of these strides, in terms of its grid alone."""
    if isinstance(band, Nyquist):
        return Modes(*band.modes(grid, strides))
    if isinstance(band, Energy) and isinstance(band.at_most, Nyquist):
        return dataclasses.replace(band, at_most=Modes(*band.at_most.modes(grid, strides)))
    return band


def resolve_modes(band: Band, grid: Grid) -> tuple[int, ...]:
    """Returns the limits ``U_i`` that ``band`` sets on ``grid``; None keeps everything.

    Those of :class:`Energy` are the bound that its box cannot exceed, those of :class:`Nyquist`
    what it keeps without strides.
    """
    if band is None:
        return tuple(g // 2 for g in grid)
    return band.modes(grid)
