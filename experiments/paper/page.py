"""The page of all figures, from their records alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.paper.item import BUDGETS, Budget, Item, Verdict
from experiments.settings.errors import UserError
from experiments.settings.records import Record

_BUDGET_NAMES = {
    "full": "the paper's settings",
    "cpu": "the CPU budget",
    "short": "the short budget, until that of the CPU was run",
    "smoke": "smoke: minutes, on stand-ins for the data, too short to tell",
}
_INTRODUCTION = """# The paper, figure by figure

The figures of Dziedzic et al., "Band-limited Training and Inference for Convolutional Neural
Networks", [ICML 2019](https://proceedings.mlr.press/v97/dziedzic19a.html), remade beside the
paper's own numbers, and what agrees with them.

Each figure of the supplement is remade by one command, `python -m experiments.paper FIGURE
--data-dir DIR`, with `FIGURE` as in the tables; `--list` tells cost and state of each. This
page is written by `python -m experiments.paper report` from the records beside it.

The budgets are `full` (the paper's settings, for a GPU), `cpu` (fewer epochs, one-cycle schedules;
hours on two cores), `short` (fewer still; minutes to an hour) and `smoke` (seconds to a minute, on
data that packages ship); each caption tells the epochs. Shown is the largest that was run.
"""


def record_path(out: Path, budget: Budget, item: Item) -> Path:
    """Where an item's record lies; its picture has the ending ``.png``."""
    return out / budget / f"{item.name}.json"


def read_record(path: Path, item: Item) -> Record | None:
    """A record; None where there is none.

    Raises:
        UserError: it is damaged, or of another item.
    """
    if not path.is_file():
        return None
    try:
        record: Record = json.loads(path.read_text("utf-8"))
        if record["item"] != item.name:
            raise ValueError(f"it is of {record['item']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a record of {item.name}: {error!r}") from error
    return record


def best_record(out: Path, item: Item) -> Record | None:
    """That of the largest budget there is."""
    found = (read_record(record_path(out, budget, item), item) for budget in BUDGETS)
    return next((record for record in found if record is not None), None)


def judged(item: Item, record: Record) -> Verdict:
    """The verdict; of a smoke run nothing is claimed."""
    verdict = item.judge(record)
    if record["budget"] != "smoke":
        return verdict
    return Verdict("smoke", "Too short to tell.", verdict.rows, verdict.claims)


def page(out: Path, items: Sequence[Item]) -> str:
    """The page in Markdown.

    Raises:
        UserError: a record is damaged.
    """
    records = {item.name: best_record(out, item) for item in items}
    made, missing = [], []
    for item in items:
        record, name = records[item.name], f"`{item.name}`"
        if record is None:
            missing.append(_row(item.heading, item.title, item.costs["cpu"], name))
        else:
            link = f"[{item.title}](#{_anchor(_title(item))})"
            word = f"**{judged(item, record).word}**"
            made.append(_row(item.heading, link, word, record["budget"], name))
    lines = [_INTRODUCTION]
    if made:
        lines += [
            _row("in the paper", "what", "verdict", "budget", "`FIGURE`"),
            _row(*["---"] * 5),
            *made,
        ]
    if missing:
        lines += ["", "Not run yet, and what each costs with the budget `cpu`:", ""]
        lines += [_row("in the paper", "what", "cost", "`FIGURE`"), _row(*["---"] * 4), *missing]
    for item in items:
        record = records[item.name]
        if record is not None:
            lines += ["", *_section(item, record)]
    return "\n".join(lines).rstrip() + "\n"


def _section(item: Item, record: Record) -> Iterable[str]:
    """One item: caption, picture, numbers beside the paper's, claims, and how it was made."""
    verdict = judged(item, record)
    budget = record["budget"]
    yield from (f"## {_title(item)}", "", f"**{verdict.word.capitalize()}.** {verdict.line}", "")
    yield from (f"![{item.title}]({budget}/{item.name}.png)", "")
    yield f"{item.paper} Shown: {_BUDGET_NAMES[budget]}."
    if verdict.rows:
        yield from ("", "| | paper | here |", "| --- | --- | --- |")
        yield from (_row(row.what, row.paper, row.ours) for row in verdict.rows)
    if verdict.claims:
        yield from ("", "| the paper's claim | holds here | by |", "| --- | --- | --- |")
        for claim in verdict.claims:
            yield _row(claim.text, claim.answer, claim.evidence)
    yield from ("", f"[Record]({budget}/{item.name}.json): {_provenance(record)}.")


def _row(*cells: str) -> str:
    """A line of a table; a bar within a cell would end it."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _provenance(record: Record) -> str:
    """With what a record was made."""
    versions, machine = record["versions"], record["machine"]
    runs = [run for job in record.get("jobs", []) for run in job["runs"]]
    parts = [
        f"{record['date'][:10]}, {machine['cores']} cores ({machine['cpu']})",
        f"jax {versions['jax']}, bandjax {versions['bandjax']}",
    ]
    if runs:
        seeds = sorted({run["seed"] for run in runs})
        epochs = sorted({job["settings"]["epochs"] for job in record["jobs"]})
        parts.append(
            f"{len(runs)} runs, seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))}, "
            f"{', '.join(map(str, epochs))} epochs"
        )
    return "; ".join(parts)


def _title(item: Item) -> str:
    return f"{item.heading}: {item.title}"


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
