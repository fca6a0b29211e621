"""Training whose residuals are compressed."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.data import load
from experiments.data.examples import place
from experiments.settings.config import settings_for
from experiments.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_a_compressed_run_begins_as_a_dense_one_and_goes_its_own_way():
    examples = place(load("digits").limited(128))
    found = {}
    for saved in ("none", "dct:8bits"):
        settings = settings_for("cnn", "digits", batch_size=128, saved=saved)
        trainer = Trainer(settings, examples, None)
        state, row = trainer.run_epoch(trainer.start(0), 0, 1)
        found[saved] = state, row, trainer.saved_bytes
    dense, packed = found["none"], found["dct:8bits"]
    assert packed[1].train_loss == dense[1].train_loss  # Of the first step: the forward is exact.
    assert packed[2] < dense[2] / 3
    pairs = zip(*(jax.tree.leaves(f[0].params) for f in (dense, packed)), strict=True)
    apart = [np.abs(a - b).max() / np.abs(a).max() for a, b in pairs]
    assert 0 < max(apart) < 0.1
