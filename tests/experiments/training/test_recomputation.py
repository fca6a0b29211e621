"""What a step keeps, and what it needs on its way, where it recomputes."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

import bandjax
from experiments import models
from experiments.data import Dataset
from experiments.data.examples import place
from experiments.models.resnet import PaddedBlock, ResNet
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def deep(monkeypatch):
    """A network of four equal blocks, by the name ``deep``."""
    make = functools.partial(ResNet, widths=(4,), blocks=(4,), block=PaddedBlock)
    monkeypatch.setitem(models.MODELS, "deep", make)


@pytest.fixture(scope="module")
def examples():
    random = np.random.default_rng(3)
    x = random.normal(size=(32, 12, 13, 2)).astype(np.float32)
    y = random.integers(0, 3, 32).astype(np.int32)
    return place(Dataset("noise", x, y, x[:5], y[:5], 3))


@pytest.mark.full
@pytest.mark.usefixtures("deep")
def test_what_is_recomputed_is_the_same_and_needs_less(examples):
    found = {}
    for remat in ("none", "spectra", "blocks"):
        settings = settings_for("deep", "noise", optimizer="sgd", batch_size=32, remat=remat)
        trainer = Trainer(settings, examples, bandjax.Compression(0.5))
        assert trainer.network.temporary_bytes is None  # before the first step
        state, row = trainer.run_epoch(trainer.start(0), 0, 1)
        kept, temporary = trainer.saved_bytes, trainer.network.temporary_bytes
        found[remat] = state, row, kept, temporary
    state, row, kept, temporary = found["none"]
    for remat in ("spectra", "blocks"):
        other = found[remat]
        assert other[1].train_loss == pytest.approx(row.train_loss, rel=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
            (state.params, state.stats), (other[0].params, other[0].stats),
        )  # fmt: skip
        assert other[2] < kept / 4
    assert found["blocks"][2] == found["spectra"][2]
    # Around the whole loss all layers are recomputed at once.
    assert found["blocks"][3] < 0.9 * min(found["spectra"][3], temporary)


def test_a_network_without_blocks(examples):
    settings = settings_for("lenet", "noise", batch_size=32, remat="blocks")
    with pytest.raises(UserError, match="lenet has no blocks to recompute one by one, choose rema"):
        Trainer(settings, examples, None)
