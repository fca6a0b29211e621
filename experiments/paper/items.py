"""All figures and tables, by name."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.paper import (
    densenet,
    errors,
    fcn,
    layers,
    lenet,
    ranks,
    resnet,
    resources,
    robustness,
    spectra,
    train_test,
)
from experiments.paper.item import Item
from experiments.settings.errors import UserError

ITEMS: tuple[Item, ...] = (
    densenet.ITEM,
    resnet.PRECISION_ITEM,
    resources.ITEM,
    spectra.ITEM,
    resnet.ENERGY_ITEM,
    errors.BATCH_ITEM,
    lenet.ITEM,
    ranks.ITEM,
    errors.ONE_ITEM,
    fcn.ITEM,
    train_test.ITEM,
    robustness.ITEM,
    layers.ITEM,
)


def find(names: Sequence[str]) -> list[Item]:
    """The items that the command line names, each once, in the order of the paper.

    Args:
        names: of items or of their figures (``12``, ``fig12``, ``table1``, ``2.12``), or ``all``.

    Raises:
        UserError: there is no such figure.
    """
    chosen = set()
    for name in names:
        wanted = name.lower().removeprefix("figure").removeprefix("fig").strip()
        found = [item for item in ITEMS if wanted in ("all", item.name, *item.figures)]
        if not found:
            every = ", ".join(figure for item in ITEMS for figure in item.figures)
            raise UserError(f"no figure {name!r}; there are {every}, all and report")
        chosen.update(item.name for item in found)
    return [item for item in ITEMS if item.name in chosen]
