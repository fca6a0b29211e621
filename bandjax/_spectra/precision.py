"""What a matrix product's precision means on the matrix units of a GPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# How tensor cores multiply, by what JAX is asked for. On GPUs XLA takes both "default" and "high"
# for TF32; what is more accurate than that is computed as float32 is.
_TF32 = ("default", "fastest", "bfloat16", "high", "tensorfloat32", "bfloat16_3x", "tf32_tf32_f32")
_FLOAT32 = ("highest", "float32", "f32_f32_f32", "tf32_tf32_f32_x3", "bf16_bf16_f32_x3")
_EXACT = ("bf16_bf16_f32_x6", "bf16_bf16_f32_x9")


def matrix_unit_precision(precision: Any, dtype: Any) -> str:
    """How tensor cores multiply: as accurately as JAX's own products of that precision on a GPU.

    Raises:
      ValueError: a precision that the kernels do not have.
    """
    if isinstance(precision, tuple):
        # Of two operands XLA takes the higher one for both.
        found = [matrix_unit_precision(one, dtype) for one in precision]
        return "tf32x3" if "tf32x3" in found else found[0]
    asked = precision
    if precision is None:
        asked = jax.config.values["jax_default_matmul_precision"]
    name = "default" if asked is None else str(getattr(asked, "name", asked)).lower()
    if name in (*_FLOAT32, *_EXACT):
        return "tf32x3"
    if name == "bf16_bf16_f32":
        return "bf16"
    if name not in _TF32:
        raise ValueError(
            f"the native kernels have no precision {asked!r}; they have default, high and highest"
        )
    return "bf16" if dtype == jnp.bfloat16 else "tf32"
