"""Schedules: the bands of a training run, step by step."""

from __future__ import annotations

import abc
import dataclasses
import json
import numbers
import operator
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, SupportsIndex

from bandjax._bands.band import Band, Bound, Compression, Energy, Modes, Nyquist
from bandjax._bands.plan import Plan, band_or_plan_from_json
from bandjax._bands.serialise import band_to_json, distinct
from bandjax.schedule._compiled import check_integer

FORMAT, VERSION = "bandjax.schedule", 1
_BANDS = (Compression, Modes, Nyquist, Energy, Plan, type(None))


class Schedule(abc.ABC):
    """What all schedules have in common; a loop that obeys it can take any of them.

    .. code-block:: python

        if schedule.due(epoch):
            schedule.update(epoch, bandjax.calibrate(model, batches, schedule.energy))
        band = schedule(epoch)
    """

    @abc.abstractmethod
    def __call__(self, step: SupportsIndex) -> Any:
        """Returns the band of a step, counted from 0.

        Raises:
          TypeError: ``step`` is no integer; one that is traced by JAX is none.
          ValueError: it is negative.
          RuntimeError: a calibration is due first.
        """

    @property
    @abc.abstractmethod
    def bands(self) -> tuple[Any, ...]:
        """The distinct bands that are known, in the order of their steps."""

    @property
    def max_bands(self) -> int:
        """How many distinct bands there can be, and so how many compilations of a step."""
        return len(self.bands)

    def due(self, step: SupportsIndex) -> bool:
        """Whether the schedule needs a calibrated plan before it tells the band of ``step``."""
        del step
        return False

    def update(self, step: SupportsIndex, plan: Any) -> None:
        """Takes the plan that is due at ``step``.

        Raises:
          ValueError: none is due.
        """
        raise ValueError(f"no calibration is due at step {operator.index(step)}, got {plan!r}")

    def state_dict(self) -> dict[str, Any]:
        """What has changed since the schedule was made, ready for JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` returned.

        Raises:
          ValueError: it is not the state of such a schedule.
        """
        if state:
            raise ValueError(f"state must be empty for a {type(self).__name__}, got {state!r}")

    @abc.abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """The schedule and its state, ready for JSON; :func:`from_dict` makes it again."""

    def to_json(self) -> str:
        """:meth:`as_dict` as text; :func:`from_json` makes the schedule again."""
        return json.dumps(self.as_dict())


@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """A band from each of some steps on, made by :func:`constant`, :func:`piecewise`, :func:`ramp`.

    Attributes:
      pieces: pairs of a step and the band from there on; the steps ascend from 0.

    Raises:
      TypeError: a step is no integer, or something else stands for a band or a plan.
      ValueError: there are no pieces, or their steps do not ascend from 0.
    """

    pieces: tuple[tuple[int, Any], ...]

    def __post_init__(self) -> None:
        pieces: list[tuple[int, Any]] = []
        steps = [operator.index(step) for step, _ in self.pieces]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"the steps of a schedule must ascend from 0, got {steps}")
        for step, (_, band) in zip(steps, self.pieces, strict=True):
            if not isinstance(band, _BANDS):
                raise TypeError(f"a band must be bandjax.Compression or its like, got {band!r}")
            if not pieces or pieces[-1][1] != band:
                pieces.append((step, band))
        object.__setattr__(self, "pieces", tuple(pieces))

    def __call__(self, step: SupportsIndex) -> Any:
        """Returns the band of a step, counted from 0."""
        step = _step(step)
        return [band for start, band in self.pieces if start <= step][-1]

    @property
    def bands(self) -> tuple[Any, ...]:
        """The distinct bands, in the order of their steps."""
        return distinct(band for _, band in self.pieces)

    def as_dict(self) -> dict[str, Any]:
        """The schedule, ready for JSON."""
        pieces = [[step, band_to_json(band)] for step, band in self.pieces]
        return {"format": FORMAT, "version": VERSION, "kind": "piecewise", "pieces": pieces}


def constant(band: Any) -> Piecewise:
    """Returns the schedule of one band.

    Example:
      >>> constant(Compression(0.5))(7)
      Compression(rate=0.5)
    """
    return Piecewise(((0, band),))


def piecewise(bands: Mapping[int, Any]) -> Piecewise:
    """Returns a schedule of several bands.

    Args:
      bands: each from the step on that is its key; the least key is 0.

    Raises:
      TypeError, ValueError: as :class:`Piecewise`.

    Example:
      >>> schedule = piecewise({0: None, 1000: Compression(0.5)})
      >>> schedule(999), schedule(1000), schedule.max_bands
      (None, Compression(rate=0.5), 2)
    """
    return Piecewise(tuple(sorted(bands.items(), key=operator.itemgetter(0))))


def ramp(
    start: float | Band,
    stop: float | Band,
    steps: int,
    *,
    levels: int = 8,
    begin: int = 0,
) -> Piecewise:
    """Returns a linear ramp from one band to another, in stairs.

    The ramp from ``start`` at step ``begin`` to ``stop`` at ``begin + steps`` is rounded down to
    ``levels`` equidistant values, both ends among them: the i-th begins where the ramp reaches it,
    at ``begin + ceil(i * steps / (levels - 1))``. There are thus at most ``levels`` compilations.

    Args:
      start, stop: rates of :class:`bandjax.Compression`; or two bands of one kind, ``Compression``,
        ``Modes`` (whose limits are rounded to integers), ``Energy`` with the same ``at_most``, or
        ``Nyquist`` of such; None stands for ``Compression(0)``.
      steps: length of the ramp, at least 1.
      levels: number of values, at least 2.
      begin: the ramp's first step; before it the band is ``start``.

    Raises:
      TypeError, ValueError: an argument of the wrong type or out of range, or bands of two kinds.

    Example:
      >>> schedule = ramp(0, 0.5, steps=10, levels=3)
      >>> [(step, band.rate) for step, band in schedule.pieces]
      [(0, 0.0), (5, 0.25), (10, 0.5)]
    """
    first, last = (_as_band(name, band) for name, band in (("start", start), ("stop", stop)))
    for name, value, least in (("steps", steps, 1), ("levels", levels, 2), ("begin", begin, 0)):
        check_integer(name, value, least)
    bands: dict[int, Any] = {0: first}
    for i in range(levels):
        share = Fraction(i, levels - 1)
        bands[begin + -(-i * steps // (levels - 1))] = _between(first, last, share)
    return piecewise(bands)


class Recalibrated(Schedule):
    """Dynamic, then static bands, calibrated anew as training goes on; see :func:`recalibrated`.

    Unlike other schedules it has a state, the plans. It equals no other one, and goes on after a
    restart by :meth:`state_dict` and :meth:`load_state_dict`, or as a whole by :meth:`to_json` and
    :func:`from_json`.

    Attributes:
      energy: the band before the first calibration, and what to calibrate for.
      every: steps from one calibration to the next.
      times: number of calibrations.
      dynamic: step of the first one.
      plans: the steps at which plans were calibrated, with the plans.
    """

    def __init__(self, energy: Energy, every: int, times: int, dynamic: int) -> None:
        for name, value, least in (
            ("every", every, 1),
            ("times", times, 1),
            ("dynamic", dynamic, 0),
        ):
            check_integer(name, value, least)
        if not isinstance(energy, Energy):
            raise TypeError(f"energy must be bandjax.Energy, got {energy!r}")
        self.energy = energy
        self.every = every
        self.times = times
        self.dynamic = dynamic
        self.plans: tuple[tuple[int, Any], ...] = ()

    def __call__(self, step: SupportsIndex) -> Any:
        """Returns the band of a step, counted from 0.

        Raises:
          RuntimeError: a plan is due first.
        """
        step = _step(step)
        if self.due(step):
            raise RuntimeError(
                f"a calibration is due at step {step}: first call update({step}, plan) with the "
                f"plan of bandjax.calibrate(model, batches, {self.energy!r})"
            )
        return [self.energy, *(plan for start, plan in self.plans if start <= step)][-1]

    @property
    def bands(self) -> tuple[Any, ...]:
        """The distinct bands that are known: the energy band, if it is ever used, and the plans."""
        dynamic = [self.energy] if self.dynamic else []
        return distinct([*dynamic, *(plan for _, plan in self.plans)])

    @property
    def max_bands(self) -> int:
        """How many distinct bands there can be: one for each calibration, and the energy band."""
        return self.times + (self.dynamic > 0)

    def due(self, step: SupportsIndex) -> bool:
        """Whether a plan is to be calibrated before ``step``."""
        step = _step(step)
        if step < self.dynamic:
            return False
        number = min((step - self.dynamic) // self.every, self.times - 1)
        last = self.plans[-1][0] if self.plans else -1
        return last < self.dynamic + number * self.every

    def update(self, step: SupportsIndex, plan: Any) -> None:
        """Takes the plan that is due at ``step``.

        Raises:
          TypeError: it is no :class:`bandjax.Plan`.
          ValueError: none is due.
        """
        step = _step(step)
        if not self.due(step):
            super().update(step, plan)
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be that of bandjax.calibrate, got {plan!r}")
        self.plans = (*self.plans, (step, plan))

    def state_dict(self) -> dict[str, Any]:
        """The plans, ready for JSON."""
        return {"plans": [[step, band_to_json(plan)] for step, plan in self.plans]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` returned.

        Raises:
          ValueError: it is not the state of a schedule with these calibrations.
        """
        loaded = Recalibrated(self.energy, self.every, self.times, self.dynamic)
        try:
            for step, plan in state["plans"]:
                loaded.update(step, band_or_plan_from_json(plan))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of {self!r}: {error!r}") from error
        self.plans = loaded.plans

    def as_dict(self) -> dict[str, Any]:
        """The schedule and its plans, ready for JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": "recalibrated",
            "energy": band_to_json(self.energy),
            "every": self.every,
            "times": self.times,
            "dynamic": self.dynamic,
            **self.state_dict(),
        }

    def __repr__(self) -> str:
        return (
            f"Recalibrated({self.energy!r}, every={self.every}, times={self.times}, "
            f"dynamic={self.dynamic})"
        )


def recalibrated(
    share: float,
    every: int,
    times: int,
    *,
    dynamic: int | None = None,
    at_most: Bound = None,
) -> Recalibrated:
    """Returns a schedule of dynamic bands for a start, then of static ones that are renewed.

    Up to step ``dynamic`` the band is ``Energy(share, at_most)``. There, and then every ``every``
    steps, ``times`` times in all, the loop calibrates the model (:func:`bandjax.calibrate`) and
    hands over the plan, which holds until the next one. Equal plans compile once.

    Args:
      share: of the energy to keep.
      every: steps between two calibrations.
      times: number of calibrations, at least 1: with it the number of compilations is bounded.
      dynamic: steps of dynamic bands, by default ``every``; 0 calibrates the untrained model.
      at_most: bound of the box, as of :class:`bandjax.Energy`.

    Raises:
      TypeError, ValueError: an argument of the wrong type or out of range.

    Example:
      >>> schedule = recalibrated(0.95, every=2, times=3)
      >>> schedule(1), schedule.due(1), schedule.due(2), schedule.max_bands
      (Energy(share=0.95, at_most=None), False, True, 4)

    Source: Dziedzic et al. (ICML 2019), who find the boxes of static compression from the energy
    that a network's maps hold.
    """
    energy = Energy(share, at_most)
    return Recalibrated(energy, every, times, every if dynamic is None else dynamic)


def from_dict(content: Mapping[str, Any]) -> Schedule:
    """Returns the schedule of ``Schedule.as_dict``, with its state.

    Raises:
      ValueError: it is none, a damaged one, or one of another version.
    """
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ValueError(f'not a schedule: there is no "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise ValueError(
            f"a schedule of version {content.get('version')!r}, this bandjax reads {VERSION}"
        )
    try:
        if content["kind"] == "piecewise":
            return Piecewise(
                tuple((step, band_or_plan_from_json(band)) for step, band in content["pieces"])
            )
        if content["kind"] == "recalibrated":
            energy = band_or_plan_from_json(content["energy"])
            if not isinstance(energy, Energy):
                raise ValueError(f"energy must be an energy band, got {energy!r}")
            made = Recalibrated(energy, *(content[name] for name in ("every", "times", "dynamic")))
            made.load_state_dict({"plans": content["plans"]})
            return made
    except (KeyError, TypeError) as error:
        raise ValueError(f"a damaged schedule: {error!r}") from error
    raise ValueError(f"a schedule of unknown kind {content['kind']!r}")


def from_json(text: str) -> Schedule:
    """Returns the schedule of ``Schedule.to_json``, with its state.

    Raises:
      ValueError: it is none, a damaged one, or one of another version.

    Example:
      >>> schedule = ramp(0, 0.5, steps=10)
      >>> from_json(schedule.to_json()) == schedule
      True
    """
    return from_dict(json.loads(text))


def _step(step: SupportsIndex) -> int:
    step = operator.index(step)
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    return step


# Ramps.


def _as_band(name: str, band: Any) -> Compression | Modes | Nyquist | Energy:
    if band is None:
        return Compression(0)
    if isinstance(band, Nyquist):
        return Nyquist(band.band or Compression(0))
    if isinstance(band, Compression | Modes | Energy):
        return band
    if isinstance(band, numbers.Real):
        return Compression(float(band) if not isinstance(band, Fraction) else band)
    raise TypeError(f"{name} must be a rate or a band, got {band!r}")


def _between(start: Any, stop: Any, share: Fraction) -> Band:
    """The band at a share of the way from one to another of the same kind."""

    def number(a: Any, b: Any) -> Any:
        exact = [n if isinstance(n, Fraction) else Fraction(repr(n)) for n in (a, b)]
        between = exact[0] + share * (exact[1] - exact[0])
        return between if isinstance(a, Fraction) and isinstance(b, Fraction) else float(between)

    match start, stop:
        case Compression(), Compression():
            return Compression(number(start.rate, stop.rate))
        case Energy(), Energy() if start.at_most == stop.at_most:
            return Energy(number(start.share, stop.share), start.at_most)
        case Modes(), Modes() if len(start.limits) == len(stop.limits):
            pairs = zip(start.limits, stop.limits, strict=True)
            return Modes(*(round(a + share * (b - a)) for a, b in pairs))
        case Nyquist(), Nyquist():
            inner: Any = _between(start.band, stop.band, share)
            return Nyquist(inner)
    raise ValueError(
        f"start and stop must be of one kind, Modes with as many limits and Energy with the same "
        f"at_most, got {start!r} and {stop!r}"
    )
