"""A compiled function for each band, with a bound on their number."""

from __future__ import annotations

import functools
import numbers
import warnings
from collections.abc import Callable
from typing import Any

import jax

from bandjax._bands.serialise import band_key


class Compiled:
    """One jitted function for each band, their compilations counted and bounded.

    Args:
      make_step: called once with each band, returns the function to compile.
      max_bands: how many bands there may be, for instance ``schedule.max_bands``.
      beyond: what to do with one more, "raise" or "warn".
      jit_options: of ``jax.jit``, such as ``donate_argnums``.

    Attributes:
      compilations: how often a function was traced, and so compiled: once for each band, and again
        for arguments of other shapes or types.

    Raises:
      TypeError, ValueError: an argument of the wrong type or out of range.

    Example:
      >>> def make_step(band):
      ...     return lambda x, kernel: band_conv(x, kernel, band).sum()
      >>> steps = Compiled(make_step, max_bands=2)
      >>> x, kernel = jnp.ones((1, 9, 2)), jnp.ones((3, 2, 2))
      >>> for step in range(4):
      ...     out = steps(schedule.ramp(0, 0.5, steps=3, levels=2)(step), x, kernel)
      >>> steps.bands, steps.compilations
      ((Compression(rate=0.0), Compression(rate=0.5)), 2)
    """

    def __init__(
        self,
        make_step: Callable[[Any], Callable[..., Any]],
        max_bands: int = 8,
        *,
        beyond: str = "raise",
        **jit_options: Any,
    ) -> None:
        check_integer("max_bands", max_bands, 1)
        if beyond not in ("raise", "warn"):
            raise ValueError(f"beyond must be 'raise' or 'warn', got {beyond!r}")
        self.compilations = 0
        self._make_step = make_step
        self._max_bands = max_bands
        self._beyond = beyond
        self._jit_options = jit_options
        self._steps: dict[Any, tuple[Any, Any]] = {}

    @property
    def bands(self) -> tuple[Any, ...]:
        """The bands so far, in the order of their first use."""
        return tuple(band for band, _ in self._steps.values())

    def step(self, band: Any) -> Any:
        """Returns the jitted function of a band, the same one each time.

        Raises:
          RuntimeError: the band is one more than ``max_bands``; it names all of them.
        """
        key = band_key(band)
        if key not in self._steps:
            if len(self._steps) >= self._max_bands:
                bands = ", ".join(map(str, (*self.bands, band)))
                message = (
                    f"{len(self._steps) + 1} bands, each a compilation of its own, and max_bands "
                    f"is {self._max_bands}: {bands}"
                )
                if self._beyond == "raise":
                    raise RuntimeError(message)
                warnings.warn(message, stacklevel=2)
            self._steps[key] = band, jax.jit(self._counted(band), **self._jit_options)
        return self._steps[key][1]

    def __call__(self, band: Any, *args: Any, **keywords: Any) -> Any:
        """Calls the jitted function of a band."""
        return self.step(band)(*args, **keywords)

    def _counted(self, band: Any) -> Callable[..., Any]:
        fun = self._make_step(band)

        @functools.wraps(fun)
        def traced(*args: Any, **keywords: Any) -> Any:
            self.compilations += 1
            return fun(*args, **keywords)

        return traced


def check_integer(name: str, value: Any, least: int) -> None:
    """Raises TypeError or ValueError unless ``value`` is an integer, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
