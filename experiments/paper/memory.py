"""What a training step of a trained network keeps, counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bandjax
from experiments.data.examples import Examples
from experiments.settings.config import Settings
from experiments.settings.records import Record
from experiments.training.loop import Trainer


def kept(settings: Settings, examples: Examples, band: Any, remat: str) -> Record:
    """Bytes between forward and backward: in all, and on average over a step.

    Args:
        settings: of the network.
        examples: the task.
        band: of its convolutions, or a plan.
        remat: what is kept, as in the settings.
    """
    trainer = Trainer(replace(settings, remat=remat), examples, band)
    state = trainer.start(0)
    batch = examples.head(settings.batch_size)
    saved = bandjax.memory.saved_bytes(
        trainer.network.loss, state.params, state.stats, *batch, argnums=0, has_aux=True
    )
    return {"total": saved.total, "average": saved.average}
