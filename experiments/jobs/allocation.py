"""Plans of the study's allocated variants: from a dense network of a few epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from rich.console import Console

import bandjax
from experiments import data
from experiments.data.examples import Examples, place
from experiments.jobs.runs import train_only
from experiments.jobs.study import Group, StudyRun
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.training.loop import Trainer

EXAMPLES = 1024  # of the training set, to estimate the damage with
SEED = 1000  # of the network that is allocated: none of the study's


def make_plan(run: StudyRun, path: Path, data_dir: Path | None, console: Console) -> None:
    """Trains a dense network for the group's warm-up, allocates every plan of the group, saves all.

    Test examples take no part. Each layer's box stays within what its output can carry, so that no
    stride aliases.

    Args:
        run: an allocated one.
        path: where its plan is to lie; those of the group's other budgets lie beside it.
        data_dir: folder of the data.
        console: where progress is shown.

    Raises:
        UserError: a data file is not usable, or the budget cannot be met.
    """
    model, batches = _warm(run.group, data_dir, console)
    path.parent.mkdir(parents=True, exist_ok=True)
    for variant in run.group.variants:
        if variant.budget is None:
            continue
        budget = bandjax.Budget(variant.budget, at_most=bandjax.Nyquist())
        try:
            plan = bandjax.allocate(model, batches, _loss, budget, progress=console.is_terminal)
        except ValueError as error:
            raise UserError(f"{variant.name}: {error}") from error
        plan.save(path.with_name(f"{variant.band}.json"))
        console.print(plan.table())


def _warm(group: Group, data_dir: Path | None, console: Console) -> tuple[nnx.Module, list[Any]]:
    """A dense network after its warm-up, and batches of training examples."""
    options = {**group.options, "epochs": group.warm_up}
    settings = settings_for(group.model, group.data, **options)
    examples = place(data.load(group.data, data_dir, None))
    assert isinstance(examples, Examples)
    trainer = Trainer(settings, examples, None)
    state, _ = train_only(trainer, SEED, f"dense, {group.warm_up} epochs", console)
    model = trainer.network.model()
    nnx.update(model, state.params, state.stats)
    x, y = examples.head(min(EXAMPLES, examples.count))
    size = settings.batch_size
    pairs = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x) - size + 1, size)]
    return model, pairs


def _loss(model: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
