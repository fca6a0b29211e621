"""A filter that is given by its spectrum, ``(2, *box, C / groups, O)``, as the kernels take it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._spectra.partial_dft import PartialDFT


def turned(dft: PartialDFT, w: jax.Array, *, back: bool = False) -> jax.Array:
    """A given spectrum, measured from the filter's centre, to what the kernels take, or back."""
    if not any(dft.shift):
        return w
    axes = [dft.matrix(axis)[:, 0] for axis in range(len(dft.grid))]
    turn = functools.reduce(np.multiply.outer, axes)
    turn = turn.conj() if back else turn
    c, s = (jnp.asarray(a[..., None, None], w.dtype) for a in (turn.real, turn.imag))
    return jnp.stack([w[0] * c - w[1] * s, w[0] * s + w[1] * c])


def of_real_filter(dft: PartialDFT, w: jax.Array) -> jax.Array:
    """What of a spectrum, as the kernels take it, counts: that of a real filter.

    Where all frequencies but that of the first axis are 0, those of that axis stand twice, and a
    real output has the mean of what one gives and the conjugate of what the other gives. At
    frequency 0 it is real.
    """
    others = len(dft.grid) - 1
    if others == 0:
        return w
    twice = (slice(None), slice(None), *(0,) * others)
    part = w[twice]
    twin = jnp.roll(part[:, ::-1], 1, axis=1) * jnp.array([1, -1], w.dtype)[:, None, None, None]
    if dft.box[0] % 2 == 0:  # The last frequency, which stands once.
        twin = twin.at[:, dft.box[0] // 2].set(part[:, dft.box[0] // 2])
    return w.at[twice].set((part + twin) / 2)
