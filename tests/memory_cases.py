"""A convolution, and arguments by shape alone, for the tests of memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import bandjax

F32 = jnp.float32
SAVE_SPECTRA = jax.checkpoint_policies.save_only_these_names("bandjax_spectrum")


def array(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


# Seven rows of frequencies, -3 to 3, and three columns: of -2 to 2 half is the other's conjugate.
MODES = bandjax.Modes(3, 2)
SPECTRUM = 2 * 4 * (7 * 3) * 2 * 3  # real and imaginary, 4 bytes, (box, N, C)


def band_conv(x, kernel):
    return bandjax.band_conv(x, kernel, MODES, method="dft", implementation="xla")
