"""What the documentation says is true: its examples run, its commands, links and figures hold."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import bandjax

ROOT = Path(__file__).parents[1]
# Pages of the site alone are made of others, and its notebooks are run when it is built.
ON_SITE = [p for p in sorted((ROOT / "docs").rglob("*.md")) if p.parent.name != "site"]
GUIDE = [ROOT / "README.md", *ON_SITE]
PAGES = [*GUIDE, *(ROOT / name for name in ("BUILD.md", "CHANGELOG.md", "CONTRIBUTING.md"))]
PAGES += [ROOT / "CODE_OF_CONDUCT.md", ROOT / "ffi" / "README.md", ROOT / "ffi/cuda/README.md"]
RESULTS = ROOT / "experiments" / "results"

FENCE = re.compile(r"^```(\w*|\{[\w-]+\}.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULES = [
    found.name
    for found in pkgutil.walk_packages(bandjax.__path__, "bandjax.")
    if found.name != "bandjax._ffi"
    and ">>> " in Path(importlib.util.find_spec(found.name).origin).read_text()
]


def named(path):
    return str(path.relative_to(ROOT))


def headings(page):
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# -------------------------------------------------------------------------------------- examples


@pytest.mark.thin(4)
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    # The examples use the public names as somebody would who has imported them.
    public = {name: getattr(bandjax, name) for name in dir(bandjax) if not name.startswith("_")}
    names = {**public, "BandConv": bandjax.BandConv, **vars(module)}
    names |= {"jax": jax, "jnp": jnp, "nn": linen, "nnx": nnx}
    with jax.numpy_dtype_promotion("standard"):  # as a reader has it
        results = doctest.testmod(module, globs=names)
    assert results.attempted > 0
    assert results.failed == 0


def blocks(page):
    """The Python of a page: line number and text; of a change first the old text, then the new."""
    text = page.read_text()
    for fence in FENCE.finditer(text):
        language, code = fence.groups()
        line = text[: fence.start()].count("\n") + 1
        if language == "python":
            yield line, code
        elif language == "diff":
            for dropped in "+-":
                kept = [each[2:] for each in code.splitlines() if not each.startswith(dropped)]
                yield line, "\n".join(kept)


@pytest.mark.parametrize(
    "page",
    # By default the pages that a newcomer reads first.
    [
        pytest.param(page, marks=[pytest.mark.full] * (page.stem not in ("README", "start")))
        for page in GUIDE
        if any(True for _ in blocks(page))
    ],
    ids=named,
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    with jax.numpy_dtype_promotion("standard"):  # as a reader has it
        for line, code in blocks(page):
            exec(compile("\n" * line + code, str(page), "exec"), names)


def test_pages_with_python_are_found():
    pages = {page.name for page in GUIDE if any(True for _ in blocks(page))}
    assert {"README.md", "convolution.md", "models.md", "memory.md", "devices.md"} <= pages
    assert sum(1 for page in GUIDE for _ in blocks(page)) >= 20
    assert len(MODULES) >= 15


# -------------------------------------------------------------------------------------- commands


def commands():
    """What the pages tell to start: a program of ``experiments`` and its options."""
    found = set()
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for program, options in re.findall(r"python -m (experiments[\w.]*)([^`\n#]*)", text):
            words = shlex.split(options.replace("...", ""))
            found.add((program, *words))
    return sorted(found)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_the_pages_is_understood(command):
    tyro = pytest.importorskip("tyro")
    program, *words = command
    module = importlib.import_module(program)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{program}.__main__")
    options = sys.modules[module.main.__module__].Options
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            tyro.cli(options, args=words)
    else:
        tyro.cli(options, args=words)


# ------------------------------------------------------------------------------ links and places


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in headings(file), target


@pytest.mark.parametrize("page", GUIDE, ids=named)
def test_a_page_stays_short(page):
    lines = page.read_text().splitlines()
    assert len(lines) <= 300
    contents = [anchor for line in lines for anchor in re.findall(r"^- \[.*\]\(#(.*)\)$", line)]
    assert len(contents) == len(set(contents))
    if page.name == "status.md":
        rows = [line.replace("|", " ").split() for line in lines if line.startswith("| ")]
        assert max(map(len, rows)) <= 25


def test_the_rooms_in_build_md_are_those_of_the_package():
    text = (ROOT / "BUILD.md").read_text().split("The rooms of `bandjax/`")[1].split("\n\n| to")[0]
    second_column = re.findall(r"^\| *\d* *\| (`.*?`) \|", text, re.MULTILINE)
    told = re.findall(r"`([\w./]+)`", " ".join(second_column))
    there = [
        *(
            f"{path.name}/"
            for path in (ROOT / "bandjax").iterdir()
            if (path / "__init__.py").exists()
        ),
        *(path.name for path in (ROOT / "bandjax").glob("*.py") if path.stem.strip("_") != "init"),
    ]
    assert sorted(told) == sorted(set(there) - {"_built.py"})


def test_files_that_are_named_exist():
    missing = [
        f"{page.name}: {path}"
        for page in PAGES
        for path in re.findall(
            r"`((?:bandjax|experiments|ffi|tests|docs)/[\w./-]+)[` ]", page.read_text()
        )
        if not (ROOT / path).exists()
    ]
    assert missing == []


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = {
        target
        for page in [*GUIDE, ROOT / "BUILD.md"]
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"train", "test", "lint"} <= told
    assert told <= targets


# --------------------------------------------------------------------------------------- figures


def record(name):
    return json.loads((RESULTS / name).read_text())


def faster(name, candidate, peer, group="stages"):
    """Geometric mean of the peer's time over the candidate's, output and both gradients."""
    (row,) = (
        row
        for row in record(name)["geometric_means"]
        if (row["group"], row["direction"]) == (group, "train")
        and (row["candidate"], row["peer"]) == (f"bandjax {candidate}", peer)
    )
    return row["ratio"]


def medians(name, workload, direction="train"):
    (row,) = (
        row
        for row in record(name)["rows"]
        if (row["workload"], row["direction"]) == (workload, direction)
    )
    return {
        each["name"]: each["seconds"]["median"] for each in row["candidates"] if each["seconds"]
    }


def fastest(times, side):
    return min(seconds for name, seconds in times.items() if name.startswith(side))


def saved_mib(name="memory.json", network="resnet18"):
    return {
        (row["band"], row["variant"]): row["saved_bytes"] / 2**20
        for row in record(name)["rows"]
        if row["network"] == network
    }


def test_figures_in_the_readme_are_those_of_the_records():
    half = "compression=0.5"
    network = medians("benchmark-network.json", "resnet18")
    step = network[f"bandjax {half}"]
    depthwise = medians("benchmark-depthwise.json", "depthwise31")
    users = [
        fastest(times, "lax") / times["bandjax none"]
        for times in (
            medians("benchmark-users-avx512.json", case)
            for case in ("up-3d", "grouped", "depthwise3")
        )
    ]
    saved = saved_mib()
    bands = record("ucr/results.json")["overall"]
    late = [100 * bands[band]["late"]["mean"] for band in ("none", half, "compression=0.75")]
    plain = record("benchmark-layers-batch128.json")["geometric_mean"]["auto 0.5"]
    layers = faster("benchmark.json", half, "lax")
    expected = [
        f"exact {faster('benchmark.json', 'none', 'lax'):.1f}×, at 50 % {layers:.1f}× faster than",
        f"{network['flax dense'] / step:.1f}× faster than Flax, "
        f"{fastest(network, 'torch') / step:.1f}× than PyTorch",
        f"{fastest(depthwise, 'lax') / depthwise['bandjax none']:.0f}× faster than `jax.lax`",
        f"{', '.join(f'{each:.0f}×' for each in users)} faster than `jax.lax`",
        f"{saved['none', 'plain']:.0f} MiB dense; at 50 % {saved[half, 'spectra']:.1f}, "
        f"in 8 bits {saved[half, 'int8']:.1f}",
        f"keeps {saved['none', 'blocks']:.0f} MiB of the {saved['none', 'plain']:.0f}",
        "dense {:.1f} %, at 50 % {:.1f} %, at 75 % {:.1f} %".format(*late),
        f"{plain:.1f}× in place of {layers:.1f}×",
    ]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert [each for each in expected if each not in text] == []


def test_figures_of_memory_are_those_of_the_records():
    halves = ["none", "compression=0.5", "compression=0.75"]
    saved = saved_mib()
    rows = {(row["band"], row["variant"]): row for row in record("memory-batch128.json")["rows"]}
    text = (ROOT / "docs" / "memory.md").read_text().replace("*", "")

    def told(row, number, variant):
        values = [number(band, variant) for band in halves if (band, variant) in rows]
        expected = [""] * (3 - len(values)) + values
        cells = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", text, re.MULTILINE)[0].split("|")
        assert [cell.strip() for cell in cells] == expected

    def counted(band, variant):
        return f"{saved[band, variant]:.0f}"

    def temporary(band, variant):
        return f"{rows[band, variant]['compiled']['temporary'] / 2**20:.0f}"

    def milliseconds(band, variant):
        return f"{1e3 * rows[band, variant]['seconds']['median']:.0f}"

    told("everything", counted, "plain")
    told("the input of each block (`jax.checkpoint`)", counted, "blocks")
    told("spectra alone", lambda *key: f"{saved[key]:.1f}", "spectra")
    for unit, number in (("MiB", temporary), ("ms", milliseconds)):
        told(f"everything kept: {unit}", number, "plain")
        told(f"`jax.checkpoint` of each block: {unit}", number, "blocks")
        told(f"`bandjax.nnx.remat` of each block: {unit}", number, "spectra-blocks")


def test_the_citation_names_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == bandjax.__version__
    assert re.search(r"^cff-version: 1.2.0$", text, re.MULTILINE)
