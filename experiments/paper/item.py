"""What a figure of the paper is to the program: how it is made, drawn and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from experiments.paper.store import Job, Store
from experiments.settings.records import Record

Budget = Literal["full", "cpu", "short", "smoke"]
BUDGETS: tuple[Budget, ...] = ("full", "cpu", "short", "smoke")  # the most first
Answer = Literal["yes", "no", "not told apart", "not tested"]
SMOKE_SIZE = 32
"""Height and width of the digits that take the place of CIFAR's images."""


@dataclass(frozen=True)
class Row:
    """A number of the paper beside ours."""

    what: str
    paper: str
    ours: str


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, whether it holds here, and by which numbers."""

    text: str
    answer: Answer
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """What a record tells.

    Attributes:
        word: ``agrees``, ``agrees in part``, ``differs`` or ``smoke`` (too short to tell).
        line: in a sentence or two: by how much, and why.
        rows: numbers beside the paper's.
        claims: of the paper, each tested.
    """

    word: str
    line: str
    rows: tuple[Row, ...] = ()
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Context:
    """What making a figure may use.

    Attributes:
        budget: how much it may take.
        store: of trained networks.
        console: where progress is shown.
    """

    budget: Budget
    store: Store
    console: Console


@dataclass(frozen=True)
class Item:
    """Figures of the paper that are made together.

    Attributes:
        name: on the command line.
        figures: their names in the paper; any of them names the item too.
        title: in a few words.
        paper: what the paper did, and how ours differs at each budget.
        costs: of each budget, in words.
        jobs: what is trained for it at a budget.
        measure: makes its record, all but the provenance.
        draw: a picture from a record.
        judge: a record.
    """

    name: str
    figures: tuple[str, ...]
    title: str
    paper: str
    costs: Mapping[Budget, str]
    measure: Callable[[Context], Record]
    draw: Callable[[Record], Any]
    judge: Callable[[Record], Verdict]
    jobs: Callable[[Budget], list[Job]] = lambda _: []

    @property
    def heading(self) -> str:
        """The figures by name: ``Figures 12, 13``."""
        numbers = [name for name in self.figures if name[0].isdigit() and "." not in name]
        others = [name for name in self.figures if name not in numbers]
        parts = [f"Figure{'s'[: len(numbers) > 1]} {', '.join(numbers)}"] if numbers else []
        parts += [_SPELLED.get(name, f"Supplement {name}") for name in others]
        return "; ".join(parts)


_SPELLED = {"table1": "Table 1"}


def percent(share: float, digits: int = 2) -> str:
    """A share as it is written in tables."""
    return f"{100 * share:.{digits}f} %"


def word_of(claims: tuple[Claim, ...]) -> str:
    """The word of a verdict by its claims."""
    answers = [claim.answer for claim in claims if claim.answer != "not tested"]
    if answers and all(answer == "yes" for answer in answers):
        return "agrees"
    return "agrees in part" if "yes" in answers else "differs"


def energy_band(preserved: float) -> str:
    """The band that preserves so many per cent of the energy; 100 is every frequency."""
    return "none" if preserved == 100 else f"energy={preserved / 100:g}"
