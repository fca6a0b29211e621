"""What becomes of a convolution's results on their way to memory.

    z = clip(y + bias + residual, low, high)

The bias of a layer, the sum with another branch of a network and a rectifier each read and write a
whole map. Done by the kernel that stores ``y``, they cost the reading of ``residual`` alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._native.call import by_platform
from bandjax._parallel.partition import Arrays, Operation, partitioned


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """What is static of it; the operands are the bias and the residual, those that there are.

    Attributes:
      bias: whether a number for each channel is added, ``(O,)``.
      residual: whether an array like the results is added.
      low, high: the limits of what results; no number is below or above what is none.
    """

    bias: bool = False
    residual: bool = False
    low: float = -math.inf
    high: float = math.inf

    def __call__(
        self, y: Float[Array, "N *spatial O"], *operands: Array
    ) -> Float[Array, "N *spatial O"]:
        """Returns ``z``, step by step."""
        for operand in operands:
            shape = (1,) * (y.ndim - operand.ndim) + operand.shape
            y = y + operand.astype(y.dtype).reshape(shape)
        if self.low > -math.inf:
            y = jnp.maximum(y, jnp.asarray(self.low, y.dtype))
        return jnp.minimum(y, jnp.asarray(self.high, y.dtype)) if self.high < math.inf else y

    def attributes(self) -> dict[str, Any]:
        """Those that tell handlers of it."""
        limits = {"low": np.float64(self.low), "high": np.float64(self.high)}
        return {"bias": self.bias, "residual": self.residual, **limits}

    def typed(self, operands: Sequence[Array], sums: Any, results: Any) -> list[Array]:
        """The operands in the types that kernels take: of the sums, and of the results."""
        types = [sums] * self.bias + [results] * self.residual
        return [a.astype(dtype) for a, dtype in zip(operands, types, strict=True)]

    def operation(
        self,
        target: str,
        out_types: Callable[..., Any],
        plain: Operation,
        *,
        local: Operation,
        rule: str,
        shared: Sequence[str],
        attributes: Callable[[str, np.dtype[Any]], dict[str, Any]],
    ) -> Operation:
        """An operation of one result with the epilogue, whose operands come last.

        Args:
          target: name of the CPU's kernel.
          out_types: see :func:`by_platform`.
          plain: the operation without it, with its rules for sharding and ``vmap``.
          local: the same on one device's share.
          rule: of ``plain``, see :func:`partitioned`.
          shared: axes that devices may share; over none of them is summed.
          attributes: of the kernel's handler, without those of the epilogue.
        """
        operands, result = rule.split("->")
        names = [result.split()[-1]] * self.bias + [result.strip()] * self.residual

        def batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
            return jax.vmap(self._after(plain), [0 if b else None for b in batched])(*args)

        return partitioned(
            by_platform(
                target,
                out_types,
                self._after(local),
                attributes=lambda platform, dtype: {
                    **attributes(platform, dtype),
                    **self.attributes(),
                },
                platforms=("cpu",),
            ),
            f"{', '.join([operands.strip(), *names])} -> {result.strip()}",
            shared=shared,
            batching=batch,
        )

    def _after(self, plain: Operation) -> Operation:
        """Both, one after the other."""

        def call(*args: Array) -> Arrays:
            first = len(args) - self.bias - self.residual
            (y,) = plain(*args[:first])
            return (self(y, *args[first:]),)

        return call


@dataclasses.dataclass(frozen=True)
class Finish:
    """An epilogue and its operands."""

    epilogue: Epilogue
    operands: tuple[Array, ...]

    def __call__(self, y: Float[Array, "N *spatial O"]) -> Float[Array, "N *spatial O"]:
        """Returns ``z``, step by step."""
        return self.epilogue(y, *self.operands)
