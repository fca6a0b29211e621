"""Optimizers, learning rates and the scale of a loss in float16."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.settings.config import Settings

# Micikevicius et al., "Mixed precision training", ICLR 2018: halve when a gradient overflows,
# double after so many steps without.
FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
STEPS_TO_DOUBLE = 1000


class LossScale(NamedTuple):
    """What a loss is multiplied by before its gradient is taken, and what has become of it.

    Attributes:
        scale: float32, from 1 to ``LARGEST_SCALE``.
        good: steps since the scale changed or a gradient overflowed, int32.
    """

    scale: jax.Array
    good: jax.Array

    @staticmethod
    def first() -> LossScale:
        """The scale of the first step."""
        return LossScale(jnp.float32(FIRST_SCALE), jnp.int32(0))

    def after(self, finite: jax.Array) -> LossScale:
        """The scale after a step whose gradient was finite, or overflowed."""
        grow = self.good + 1 >= STEPS_TO_DOUBLE
        up = jnp.where(grow, jnp.minimum(self.scale * 2, LARGEST_SCALE), self.scale)
        down = jnp.maximum(self.scale / 2, 1)
        good = jnp.where(finite & ~grow, self.good + 1, 0)
        return LossScale(jnp.where(finite, up, down), good)


def make_optimizer(settings: Settings, steps: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run with ``steps`` steps an epoch; its update takes ``value=loss``."""
    rate = schedule(settings, steps)
    parts = []
    if settings.weight_decay:
        parts.append(optax.add_decayed_weights(settings.weight_decay))
    if settings.optimizer == "adam":
        parts.append(optax.adam(rate))
    else:
        parts.append(optax.sgd(rate, momentum=settings.momentum, nesterov=settings.nesterov))
    if settings.schedule == "plateau":
        parts.append(
            optax.contrib.reduce_on_plateau(
                settings.plateau_factor,
                settings.plateau_patience,
                accumulation_size=steps,  # compare means over epochs
            )
        )
    return optax.with_extra_args_support(optax.chain(*parts))


def schedule(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate by the number of steps taken; that of ``plateau`` before its factor."""
    total = settings.epochs * steps
    if settings.schedule == "cosine":
        return optax.cosine_decay_schedule(settings.learning_rate, total)
    if settings.schedule == "onecycle":
        return optax.cosine_onecycle_schedule(total, settings.learning_rate)
    return optax.constant_schedule(settings.learning_rate)


def learning_rate(settings: Settings, steps: int, optimizer: Any) -> float:
    """The learning rate of the next step, from an optimizer's state."""
    factor = float(optimizer[-1].scale) if settings.schedule == "plateau" else 1.0
    counts = optax.tree_utils.tree_get_all_with_path(optimizer, "count")
    taken = int(counts[0][1]) if counts else 0
    return factor * float(schedule(settings, steps)(taken))
