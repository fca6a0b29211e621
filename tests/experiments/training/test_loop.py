"""The loop: determinism, evaluation, schedules, divergence."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bandjax
from experiments import data
from experiments.benchmarks.loop import main as benchmark
from experiments.data import Dataset, load_digits
from experiments.data.examples import place
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.training.augment import flip_and_crop
from experiments.training.loop import Epoch, Trainer
from experiments.training.network import all_finite
from experiments.training.optimizer import LossScale, learning_rate, make_optimizer, schedule

pytestmark = pytest.mark.usefixtures("quick_compile")


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


@pytest.mark.full
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


@pytest.mark.parametrize("batch", [7, 256])
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
        state.params,
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.stats,
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


def test_cosine_schedule_ends_at_zero():
    settings = settings_for("cnn", "digits", epochs=2)
    optimizer = make_optimizer(settings, 3)
    state, rates = optimizer.init(jnp.zeros(())), []
    for _ in range(6):
        _, state = optimizer.update(jnp.zeros(()), state, jnp.zeros(()), value=1.0)
        rates.append(learning_rate(settings, 3, state))
    np.testing.assert_allclose(rates[2::3], [5e-4, 0], atol=1e-9)


def test_divergence_names_the_step(small):
    """One NaN in the input; ReLU may hide it from the loss, but not from the gradient."""
    settings = settings_for("cnn", "digits", epochs=3, batch_size=50)
    examples = place(small)
    trainer = Trainer(settings, examples._replace(x=examples.x.at[11].set(jnp.nan)), None)
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(5), 2), 200)
    index = int(np.flatnonzero(np.asarray(order) == 11)[0]) // 50 + 1
    message = rf"diverged in step {4 + index} \(step {index} of epoch 2, seed 5\)"
    with pytest.raises(UserError, match=message):
        trainer.run_epoch(trainer.start(5), 5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": lambda y: np.where(y == 3, 10, y)}, r"labels must lie in 0 .. 9, got 10"),
        ({"y_test": lambda y: y - 1}, r"labels must lie in 0 .. 9, got -1 \(test example"),
        ({"x_train": lambda x: x[:-1]}, "with one label each"),
        ({"x_test": lambda x: x[:, :, :, 0]}, r"test examples are \(8, 8\), training"),
        ({"x_test": lambda x: x[:, :5]}, r"test examples are \(5, 8, 1\), training"),
        ({"x_train": lambda x: x[:0], "y_train": lambda y: y[:0]}, "no training examples"),
        ({"x_test": lambda x: x[:0], "y_test": lambda y: y[:0]}, "no test examples"),
        ({"x_test": lambda x: x / x.min()}, "test example 0 has NaN or infinity"),
    ],
)
def test_examples_that_would_train_a_wrong_network(small, changes, message):
    with np.errstate(all="ignore"):
        changed = {name: change(getattr(small, name)) for name, change in changes.items()}
    with pytest.raises(UserError, match=message):
        place(replace(small, **changed))


@pytest.mark.full
def test_bands_may_change_between_epochs(small):
    settings = settings_for("cnn", "digits", batch_size=100)
    examples = place(small)
    trainer = Trainer(settings, examples, None)
    half, whole = bandjax.Compression(0.5), bandjax.Compression(0.0)
    state = trainer.start(0)
    rows = []
    for epoch, band in enumerate((None, half, None, whole), 1):
        network = trainer.use(band)
        assert trainer.network is network
        if band is not whole:
            state, row = trainer.run_epoch(state, 0, epoch)
            rows.append(row)
    assert trainer.compilations == 2
    assert rows[2].train_loss < rows[0].train_loss
    same = [trainer.use(band).compression["total"] for band in (None, half)]
    assert same[0] == 0 < same[1]


def test_spectral_parameters_belong_to_their_band(small):
    settings = settings_for("cnn", "digits", batch_size=100, param_domain="spectral")
    trainer = Trainer(settings, place(small), bandjax.Compression(0.5))
    assert trainer.use(bandjax.Compression(0.5)) is trainer.network
    with pytest.raises(UserError, match="spectral parameters belong to one band"):
        trainer.use(None)
    with pytest.raises(UserError, match="a band of Energy"):
        Trainer(settings, place(small), bandjax.Energy(0.9))


def test_accumulated_gradients_are_those_of_a_larger_batch(small):
    """Of LeNet, which has no batch norm; images of 16x16."""
    grown = replace(
        small, x_train=small.x_train.repeat(2, 1).repeat(2, 2),
        x_test=small.x_test.repeat(2, 1).repeat(2, 2),
    )  # fmt: skip
    examples = place(grown)
    found = []
    for batch, accumulate in ((96, 1), (32, 3)):
        settings = settings_for(
            "lenet", "digits", batch_size=batch, accumulate=accumulate, learning_rate=0.1
        )
        trainer = Trainer(settings, examples, None)
        found.append(trainer.run_epoch(trainer.start(0), 0, 1))
    (one, row), (other, parts) = found
    assert parts.train_loss == pytest.approx(row.train_loss, rel=1e-5)
    assert parts.train_accuracy == row.train_accuracy
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        one.params, other.params,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"batch_size times accumulate must .* got 224"):
        Trainer(settings_for("lenet", "digits", batch_size=32, accumulate=7), examples, None)


@pytest.mark.full
@pytest.mark.parametrize("band", [None, bandjax.Compression(0.5)])
def test_half_precision(small, band):
    """A step is that of float32 to rounding, its state float32; fp16 keeps out of overflow."""
    examples = place(small.limited(64))
    steps = {}
    for precision in ("float32", "bf16", "fp16"):
        settings = settings_for("cnn", "digits", precision=precision, optimizer="sgd")
        trainer = Trainer(settings, examples, band)
        start = trainer.start(0)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(start) if leaf.dtype.kind == "f"}
        assert dtypes == {jnp.dtype("float32")}
        state, row = trainer.run_epoch(start, 0, 1)
        steps[precision] = state, row
        assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.dtype.kind == "f"} == dtypes

    begin = _flat(trainer.start(0).params)
    full = _flat(steps["float32"][0].params) - begin
    for precision, epsilon in (("bf16", 2**-7), ("fp16", 2**-10)):
        state, row = steps[precision]
        assert row.train_loss == pytest.approx(steps["float32"][1].train_loss, rel=4 * epsilon)
        gap = np.linalg.norm(_flat(state.params) - begin - full) / np.linalg.norm(full)
        assert 0 < gap < 20 * epsilon
        stats, exact = (_flat(s.stats) for s in (state, steps["float32"][0]))
        np.testing.assert_allclose(stats, exact, rtol=0.05, atol=4 * epsilon)
    scale = steps["fp16"][0].scale
    assert (float(scale.scale), int(scale.good)) == (2.0**15, 1)

    # The trainer is that of fp16: a gradient that overflows is left out and the scale halved.
    over = trainer.start(0)._replace(scale=LossScale(jnp.float32(2.0**24), jnp.int32(9)))
    state, row = trainer.run_epoch(over, 0, 1)
    np.testing.assert_array_equal(_flat(state.params), begin)
    assert (float(state.scale.scale), int(state.scale.good)) == (2.0**23, 0)
    assert np.isfinite(_flat(state.stats)).all()
    assert row.train_loss == steps["fp16"][1].train_loss


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_a_plateau_counts_steps_whose_gradient_overflows():
    """Else its means, which are of epochs, would begin within them from then on."""
    settings = settings_for(
        "cnn", "digits", limit=128, batch_size=32, epochs=2, precision="fp16", schedule="plateau"
    )
    trainer = Trainer(settings, place(load_digits().limited(128)), None)
    assert trainer.steps == 4
    over = trainer.start(0)._replace(scale=LossScale(jnp.float32(2.0**24), jnp.int32(0)))
    state, row = trainer.run_epoch(over, 0, 1)
    assert float(state.scale.scale) < 2.0**24
    parts = jax.tree.leaves(state.optimizer, is_leaf=lambda part: hasattr(part, "plateau_count"))
    (plateau,) = (part for part in parts if hasattr(part, "plateau_count"))
    assert int(plateau.count) == 0
    assert float(plateau.best_value) == pytest.approx(row.train_loss, rel=1e-5)


def test_every_number_that_is_not_finite_is_found():
    found = jax.jit(all_finite)
    rng = np.random.default_rng(0)
    for shape in ((), (1,), (7,), (3, 5, 33), (1029,)):
        other = {"empty": np.zeros((0, 3), np.float32), "half": np.full(3, 60_000, np.float16)}
        array = np.array(1e37 * rng.normal(size=shape), np.float32)
        assert found([array, other])
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            for index in {0, array.size // 2, array.size - 1, *rng.integers(0, array.size, 5)}:
                wrong = array.copy()
                wrong.reshape(-1)[index] = bad
                assert not found([wrong, other]), (shape, bad, index)
                assert not found([other, wrong])


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_loss_scale_grows_and_shrinks():
    scale = LossScale(jnp.float32(4), jnp.int32(998))
    yes, no = jnp.bool_(True), jnp.bool_(False)
    scale = scale.after(yes)
    assert (float(scale.scale), int(scale.good)) == (4, 999)
    scale = scale.after(yes)
    assert (float(scale.scale), int(scale.good)) == (8, 0)
    assert float(scale.after(no).scale) == 4
    assert float(LossScale(jnp.float32(1), jnp.int32(5)).after(no).scale) == 1
    largest = LossScale(jnp.float32(2.0**24), jnp.int32(999)).after(yes)
    assert float(largest.scale) == 2.0**24


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_textbooks(nesterov):
    settings = settings_for(
        "cnn", "digits", optimizer="sgd", learning_rate=0.1, momentum=0.8, weight_decay=0.03,
        nesterov=nesterov, schedule="constant",
    )  # fmt: skip
    optimizer = make_optimizer(settings, 5)
    rng = np.random.default_rng(0)
    w = rng.normal(size=7)
    params, velocity = jnp.float32(w), np.zeros(7)
    state = optimizer.init(params)
    for _ in range(4):
        gradient = rng.normal(size=7)
        updates, state = optimizer.update(jnp.float32(gradient), state, params, value=1.0)
        params = optax.apply_updates(params, updates)
        decayed = gradient + 0.03 * w
        velocity = 0.8 * velocity + decayed
        w = w - 0.1 * (decayed + 0.8 * velocity if nesterov else velocity)
    np.testing.assert_allclose(params, w, rtol=1e-5)
    assert learning_rate(settings, 5, state) == pytest.approx(0.1)


def test_onecycle_rises_and_falls():
    settings = settings_for(
        "cnn", "digits", epochs=4, schedule="onecycle", learning_rate=0.5, optimizer="sgd"
    )
    rate = schedule(settings, 25)
    found = [float(rate(step)) for step in (0, 15, 30, 65, 100)]
    middle = (0.5 / 25 + 0.5) / 2, (0.5 + 0.5 / 250_000) / 2
    np.testing.assert_allclose(found, [0.02, middle[0], 0.5, middle[1], 2e-6], rtol=1e-4)
    optimizer = make_optimizer(settings, 25)
    state = optimizer.init(jnp.zeros(()))
    for _ in range(3):
        _, state = optimizer.update(jnp.zeros(()), state, jnp.zeros(()), value=1.0)
    assert learning_rate(settings, 25, state) == pytest.approx(float(rate(3)))


@pytest.mark.full
def test_label_smoothing_is_a_cross_entropy_of_smoothed_labels(small):
    settings = settings_for("cnn", "digits", label_smoothing=0.3)
    trainer = Trainer(settings, place(small.limited(64)), None)
    state = trainer.start(0)
    x, y = small.x_train[:9], small.y_train[:9]
    found, (_, unscaled, _) = trainer.network.loss(
        state.params, state.stats, x, y, jnp.float32(8.0)
    )
    model = trainer.network.model(seed=0)
    model.train()
    logits = np.asarray(model(x), np.float64)
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = 0.7 * np.eye(10)[y] + 0.03
    expected = -(labels * logarithms).sum(1).mean()
    assert float(unscaled) == pytest.approx(expected, rel=1e-5)
    assert float(found) == pytest.approx(8 * expected, rel=1e-5)


def test_augmented_images_are_flipped_and_shifted():
    rng = np.random.default_rng(1)
    images = rng.uniform(1, 2, size=(600, 9, 7, 2)).astype(np.float32)
    found = np.asarray(jax.jit(flip_and_crop)(jax.random.key(3), images))
    assert found.shape == images.shape
    seen = set()
    for image, result in zip(images, found, strict=True):
        variants = {
            (flip, i, j)
            for flip in (False, True)
            for padded in [np.pad(image[:, ::-1] if flip else image, ((4, 4), (4, 4), (0, 0)))]
            for i in range(9)
            for j in range(9)
            if np.array_equal(padded[i : i + 9, j : j + 7], result)
        }
        assert len(variants) == 1
        seen |= variants
    # 600 draws of 162: each is missing with probability 0.024.
    assert len(seen) > 145
    assert {i for _, i, _ in seen} == {j for _, _, j in seen} == set(range(9))


@pytest.mark.full
def test_augmentation_is_drawn_anew_in_each_epoch(small):
    settings = settings_for("cnn", "digits", augment="flip-crop", batch_size=200)
    trainer = Trainer(settings, place(small), None)
    assert settings_for("cnn", "digits").augment == "none"
    assert settings_for("resnet18", "cifar10").augment == "flip-crop"
    losses = [trainer.run_epoch(trainer.start(0), 0, epoch)[1].train_loss for epoch in (1, 2, 1)]
    assert losses[0] == losses[2] != pytest.approx(losses[1], rel=1e-4)


def test_augment_needs_images(small):
    series = replace(small, x_train=small.x_train[:, 0], x_test=small.x_test[:, 0])
    with pytest.raises(UserError, match=r"augment needs images, got examples \(8, 1\)"):
        Trainer(settings_for("fcn", "digits", augment="flip-crop"), place(series), None)


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


@pytest.mark.full
def test_the_loop_is_measured_against_its_step(tmp_path, capsys):
    out = tmp_path / "loop.json"
    small = ["--model", "cnn", "--batch-size", "16", "--steps", "3", "--rounds", "2"]
    assert benchmark([*small, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    medians = result["medians"]
    assert result["ratio"] == medians["bare"] / medians["loop"] > 0
    assert [len(values) for values in result["seconds"].values()] == [2, 2]
    assert f"ratio {result['ratio']:.3f} (bound 0.95)" in capsys.readouterr().out
    assert benchmark(["--rounds", "0"]) == 2
    assert capsys.readouterr().err == "error: rounds must be at least 1, got 0\n"
    assert benchmark(["--model", "vgg"]) == 2
