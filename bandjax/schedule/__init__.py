"""Bands that change during training: a schedule maps a step to a band.

Schedules are called on the host, between steps, and never inside a jitted function: a band is
static, and each new one is a compilation. A schedule therefore knows the finite set of its bands,
or a bound on their number. What a step is, a batch or an epoch, is for the caller to say::

    schedule = ramp(0, 0.5, steps=10, levels=6)
    steps = Compiled(make_step, max_bands=schedule.max_bands)   # make_step(band) -> a function
    for epoch in range(30):
        band = schedule(epoch)
        for batch in batches:
            state = steps(band, state, batch)
"""

from __future__ import annotations

from bandjax._bands.serialise import band_key
from bandjax.schedule._compiled import Compiled
from bandjax.schedule._schedules import (
    Piecewise,
    Recalibrated,
    Schedule,
    constant,
    from_dict,
    from_json,
    piecewise,
    ramp,
    recalibrated,
)

__all__ = [
    "Compiled",
    "Piecewise",
    "Recalibrated",
    "Schedule",
    "band_key",
    "constant",
    "from_dict",
    "from_json",
    "piecewise",
    "ramp",
    "recalibrated",
]
