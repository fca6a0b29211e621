"""The options of a convolution: one record of them, checked, that is handed through whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax.numpy as jnp

from bandjax._bands.band import Band, check_band
from bandjax._conv.classes import CLASSES
from bandjax._conv.geometry import listed

METHODS = ("auto", *sorted({c.name for c in CLASSES}))
IMPLEMENTATIONS = (None, "xla", "native", "jax")
RESIDUAL_DTYPES = tuple(map(jnp.dtype, ("int8", "bfloat16", "float16", "float32", "float64")))


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """What a convolution keeps and how it is computed, whatever its shapes.

    Frozen and hashable. The arguments are those of :func:`bandjax.band_conv`, and layers have
    attributes of the same names.

    Raises:
      TypeError, ValueError: an option that no input could go with.
    """

    band: Band = None
    grid: int | Sequence[int] | None = None
    method: str = "auto"
    implementation: str | None = None
    residual_dtype: Any = None
    recompute_filter: bool = True

    @classmethod
    def of(cls, layer: Any, **changes: Any) -> Self:
        """Returns the options that a layer has as attributes."""
        own = {field.name: getattr(layer, field.name) for field in dataclasses.fields(cls)}
        return cls(**{**own, **changes})

    def attributes(self) -> dict[str, Any]:
        """Returns the options by name, as a layer has them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __post_init__(self) -> None:
        """Checks every option, and gives equal options one form."""
        check_band(self.band)
        grid = listed("grid", self.grid)
        object.__setattr__(self, "grid", tuple(grid) if isinstance(grid, list) else grid)
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(
                "implementation must be None, 'xla', 'native' or 'jax', "
                f"got {self.implementation!r}"
            )
        if not isinstance(self.recompute_filter, bool):
            raise TypeError(
                f"recompute_filter must be True or False, got {self.recompute_filter!r}"
            )
        if self.implementation == "native" and not self.recompute_filter:
            raise ValueError(
                "recompute_filter=False needs implementation None or 'xla': the native kernels "
                "never hold the filter's spectrum, got implementation='native'"
            )
        if self.implementation == "jax":
            self._check_plain()
        if self.residual_dtype is not None:
            # One form of all spellings of a type: equal options compare equal.
            object.__setattr__(self, "residual_dtype", _residual_dtype(self.residual_dtype))

    def _check_plain(self) -> None:
        for name, plain in (("residual_dtype", None), ("recompute_filter", True)):
            if getattr(self, name) is not plain:
                raise ValueError(
                    f"{name} does not go with implementation='jax', where JAX chooses what the "
                    f"backward pass keeps, got {getattr(self, name)!r}"
                )
        if self.method not in ("auto", "direct"):
            raise ValueError(
                f"method must be 'auto' or 'direct' with implementation='jax', got {self.method!r}"
            )


def _residual_dtype(asked: Any) -> Any:
    try:
        dtype = jnp.dtype(asked)
    except TypeError:
        raise TypeError(f"residual_dtype must be a type, got {asked!r}") from None
    if dtype not in RESIDUAL_DTYPES:
        raise ValueError(
            f"residual_dtype must be one of {', '.join(map(str, RESIDUAL_DTYPES))}, got {dtype}"
        )
    return dtype
