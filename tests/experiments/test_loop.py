"""The loop: determinism, evaluation, schedules, divergence."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import bandjax
from experiments import data
from experiments.config import settings_for
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.examples import place
from experiments.loop import Epoch, Trainer


@pytest.fixture(scope="module")
def small() -> Dataset:
    """200 training examples; 101 test examples, a prime number that no batch divides."""
    digits = data.load("digits")
    return Dataset(
        "small", digits.x_train[:200], digits.y_train[:200], digits.x_test[:101],
        digits.y_test[:101], 10,
    )  # fmt: skip


def _curve(trainer: Trainer, seed: int, epochs: int) -> list[Epoch]:
    state, rows = trainer.start(seed), []
    for epoch in range(1, epochs + 1):
        state, row = trainer.run_epoch(state, seed, epoch)
        rows.append(row._replace(seconds=0))
    return rows


def test_same_seed_same_curve(small):
    settings = settings_for("cnn", "digits", epochs=2, batch_size=32)
    trainer = Trainer(settings, place(small), bandjax.Compression(0.5))
    first = _curve(trainer, 3, 2)
    assert _curve(trainer, 3, 2) == first
    assert _curve(trainer, 4, 1) != first[:1]
    again = Trainer(settings, place(small), bandjax.Compression(0.5))
    assert _curve(again, 3, 2) == first
    assert first[1].train_loss < first[0].train_loss


def test_start_does_not_depend_on_the_band(small):
    settings = settings_for("cnn", "digits")
    dense, limited = (
        Trainer(settings, place(small), band).start(7).params
        for band in (None, bandjax.Modes(1, 1))
    )
    jax.tree.map(np.testing.assert_array_equal, dense, limited)


@pytest.mark.parametrize("batch", [7, 64, 101, 256])
def test_evaluation_counts_every_test_example_once(small, batch):
    settings = settings_for("cnn", "digits")
    trainer = Trainer(settings, place(small, evaluation_batch=batch), None)
    model = trainer.network.model(seed=2)
    logits = np.asarray(model(small.x_test), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(101), small.y_test]
    loss, accuracy = trainer.evaluate(trainer.start(2))
    assert accuracy == np.mean(logits.argmax(1) == small.y_test)
    assert loss == pytest.approx(losses.mean(), rel=1e-5)


def test_an_epoch_is_the_steps_it_says(small):
    """One epoch against a plain loop with Flax's own optimizer wrapper on the same batches."""
    settings = settings_for("cnn", "digits", batch_size=48, schedule="constant", optimizer="sgd")
    trainer = Trainer(settings, place(small), None)
    state, row = trainer.run_epoch(trainer.start(1), 1, 1)

    model = trainer.network.model(seed=1)
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        loss, gradient = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradient)
        return loss

    order = jax.random.permutation(jax.random.fold_in(jax.random.key(1), 1), 200)
    batches = np.asarray(order)[:192].reshape(4, 48)  # 8 of 200 are left out
    losses = [float(step(model, optimizer, small.x_train[b], small.y_train[b])) for b in batches]
    assert row.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        nnx.to_pure_dict(state.params),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        nnx.to_pure_dict(state.stats),
        nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)),
    )


def test_plateau_schedule_counts_epochs_not_steps(small):
    """With a rate so small that the loss stands still, each epoch after the first is a bad one."""
    settings = settings_for(
        "cnn", "digits", batch_size=50, learning_rate=1e-9,
        schedule="plateau", plateau_patience=2, plateau_factor=0.1, epochs=5,
    )  # fmt: skip
    # One batch is the whole set: the loss is the same in every epoch but for batch norm's rounding.
    rates = [
        row.learning_rate for row in _curve(Trainer(settings, place(small.limited(50)), None), 0, 5)
    ]
    np.testing.assert_allclose(rates, [1e-9, 1e-9, 1e-10, 1e-10, 1e-11], rtol=1e-5)


def test_cosine_schedule_ends_at_zero(small):
    settings = settings_for("cnn", "digits", epochs=2, batch_size=100)
    rates = [row.learning_rate for row in _curve(Trainer(settings, place(small), None), 0, 2)]
    np.testing.assert_allclose(rates, [5e-4, 0], atol=1e-9)


def test_divergence_stops_the_run(small):
    """One NaN in the input; ReLU may hide it from the loss, but not from the parameters."""
    settings = settings_for("cnn", "digits", epochs=3, batch_size=50)
    x = small.x_train.copy()
    x[11] = np.nan
    poisoned = Dataset("x", x, small.y_train, small.x_test, small.y_test, 10)
    trainer = Trainer(settings, place(poisoned), None)
    with pytest.raises(UserError, match=r"training diverged in epoch 1 \(seed 5\)"):
        trainer.run_epoch(trainer.start(5), 5, 1)


def test_batch_larger_than_the_training_set(small):
    with pytest.raises(UserError, match=r"batch_size must be at most .* 200, got 201"):
        Trainer(settings_for("cnn", "digits", batch_size=201), place(small), None)


def test_band_that_does_not_fit(small):
    with pytest.raises(UserError, match=r"model cnn: .*"):
        Trainer(settings_for("cnn", "digits"), place(small), bandjax.Modes(2))


def test_a_narrower_band_keeps_fewer_bytes(small):
    settings = settings_for("cnn", "digits")
    dense, half, quarter = (
        Trainer(settings, place(small), band).saved_bytes
        for band in (None, bandjax.Compression(0.5), bandjax.Compression(0.75))
    )
    assert dense > half > quarter > 0
