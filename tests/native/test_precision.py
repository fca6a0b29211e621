"""How the CUDA kernels multiply, by what JAX is asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandjax._spectra.precision import matrix_unit_precision

P = jax.lax.Precision
ALGORITHM = jax.lax.DotAlgorithmPreset


@pytest.mark.parametrize(
    ("asked", "arithmetic"),
    [
        # XLA on GPUs takes HIGH for TF32 as it does DEFAULT.
        (None, "tf32"),
        (P.DEFAULT, "tf32"),
        ("default", "tf32"),
        (P.HIGH, "tf32"),
        ("high", "tf32"),
        ("tensorfloat32", "tf32"),
        (ALGORITHM.TF32_TF32_F32, "tf32"),
        (P.HIGHEST, "tf32x3"),
        ("float32", "tf32x3"),
        (ALGORITHM.F32_F32_F32, "tf32x3"),
        ("F32_F32_F32", "tf32x3"),
        (ALGORITHM.TF32_TF32_F32_X3, "tf32x3"),
        ((P.HIGHEST, P.HIGHEST), "tf32x3"),
        ((P.DEFAULT, P.HIGHEST), "tf32x3"),
        ((P.DEFAULT, P.HIGH), "tf32"),
        (ALGORITHM.BF16_BF16_F32, "bf16"),
    ],
)
def test_float32_operands(asked, arithmetic):
    assert matrix_unit_precision(asked, np.dtype(np.float32)) == arithmetic


def test_bfloat16_operands_and_the_default_that_the_user_has_set():
    assert matrix_unit_precision(None, jnp.dtype(jnp.bfloat16)) == "bf16"
    assert matrix_unit_precision(P.HIGHEST, jnp.dtype(jnp.bfloat16)) == "tf32x3"
    with jax.default_matmul_precision("float32"):
        assert matrix_unit_precision(None, np.dtype(np.float32)) == "tf32x3"
        assert matrix_unit_precision(P.DEFAULT, np.dtype(np.float32)) == "tf32"


def test_a_precision_that_they_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"no precision.*ANY_F8"):
        matrix_unit_precision(ALGORITHM.ANY_F8_ANY_F8_F32, np.dtype(np.float32))
