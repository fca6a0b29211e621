"""The site's own code: links that lead out of docs/, and links that lead nowhere."""

from __future__ import annotations

import importlib.util
import re
import sys
import zipfile
from pathlib import Path

import pytest

import bandjax

ROOT = Path(__file__).parents[1]
CONF = ROOT / "docs" / "conf.py"


def loaded(path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "text", "wanted"),
    [
        ("method", "[a](../BUILD.md#benchmarks)", "[a](site/building.md#benchmarks)"),
        ("faq", "[a](README.md)", "[a](index.md)"),
        ("howto/band", "[a](../models.md#plans)", "[a](../models.md#plans)"),
        ("results", "[a](../experiments/results/memory.json)", None),
        ("faq", "[a](https://example.org/x)", None),
        ("faq", "[x[0]](../BUILD.md)", "[x[0]](site/building.md)"),
        ("results", "[records](../experiments/results)", "records in `experiments/results`"),
        ("faq", "[experiments/results](../experiments/results)", "`experiments/results`"),
        ("faq", "[results](../experiments/results)", "`experiments/results`"),
    ],
)
def test_links_out_of_the_docs_lead_to_the_site(page, text, wanted, monkeypatch):
    source = [text]
    loaded(CONF, monkeypatch)._lead_within_the_site(None, page, source)
    assert source[0].startswith(text if wanted is None else wanted)


def test_a_page_from_elsewhere_is_that_page(monkeypatch):
    source = [(ROOT / "docs/site/building.md").read_text()]
    loaded(CONF, monkeypatch)._lead_within_the_site(None, "site/building", source)
    assert source[0].startswith("# Building and developing")
    assert "](../memory.md#the-allocator-of-the-c-library)" in source[0]


def test_every_page_is_in_the_index():
    told = (ROOT / "docs" / "index.md").read_text()
    entries = {line for line in told.splitlines() if re.fullmatch(r"[\w/]+", line)}
    there = {
        str(path.relative_to(ROOT / "docs").with_suffix(""))
        for path in (ROOT / "docs").rglob("*.md")
    }
    within = {name for name in there if name.startswith("api/") and name != "api/index"}
    assert there - within - {"index", "README"} <= entries
    assert entries <= there


def test_every_public_name_is_in_the_reference():
    told = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    told = set(re.findall(r"^\.\. auto\w+:: bandjax\.(\w+)", told, re.MULTILINE))
    public = {
        name
        for name in dir(bandjax)
        if not name.startswith("_")
        and getattr(getattr(bandjax, name), "__module__", "").startswith("bandjax.")
    }
    elsewhere = {"BandConv", "spectral_pool"}  # of nnx
    assert public - elsewhere <= told
    in_index = (ROOT / "docs" / "api" / "index.md").read_text().split()
    assert {page.stem for page in (ROOT / "docs" / "api").glob("*.md")} - {"index"} <= set(in_index)


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        (
            "function",
            ["So that, at u,", "", "    y = x", ""],
            ["So that, at u,", "", "::", "", "    y = x", ""],
        ),
        ("function", ["One::", "", "    y = x"], ["One::", "", "    y = x"]),
        (
            "function",
            ["Args:", "  x: one", "", "    >>> 1"],
            ["Args:", "  x: one", "", "    >>> 1"],
        ),
        ("function", ["Source: a", "", "    b"], ["Source: a", "", "    b"]),
        ("property", ["Bytes: all."], ["..", "", "Bytes: all."]),
    ],
)
def test_formulas_are_set_apart(kind, text, wanted, monkeypatch):
    loaded(CONF, monkeypatch)._set_formulas_apart(None, kind, "", None, None, text)
    assert text == wanted


def test_dead_links_are_found(tmp_path, monkeypatch, capsys):
    links = loaded(ROOT / "docs" / "check_links.py", monkeypatch)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.html").write_text(
        '<p id="here"><a href="../two.html#there">x</a><a href="#here">x</a>'
        '<img src="https://example.org/none.png"><a href="../b%20c.txt">x</a></p>'
    )
    (tmp_path / "two.html").write_text('<a name="there"></a><a href="a/one.html#gone">x</a>')
    (tmp_path / "b c.txt").write_text("")
    assert links.dead(tmp_path) == ["two.html: a/one.html#gone"]
    (tmp_path / "b c.txt").unlink()
    assert links.dead(tmp_path) == ["a/one.html: ../b%20c.txt", "two.html: a/one.html#gone"]
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path)])
    assert links.main() == 1
    assert "gone" in capsys.readouterr().out


def test_pictures_without_words_are_found(tmp_path, monkeypatch, capsys):
    links = loaded(ROOT / "docs" / "check_links.py", monkeypatch)
    (tmp_path / "a.png").write_text("")
    (tmp_path / "a.html").write_text(
        '<img src="a.png" alt="_images/19bcc10c7b.png"><img alt="A wave, twice" src="a.png">'
    )
    assert links.wordless(tmp_path) == ["a.html: a.png has no alternative text"]
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path)])
    assert links.main() == 1
    assert "alternative text" in capsys.readouterr().out


def test_a_number_keeps_its_unit(monkeypatch):
    unit = loaded(CONF, monkeypatch).UNIT
    told = unit.sub("_", "at 50 %, 8 MiB, 3 ms, 2 seconds, 7.1 ± 0.2 %")
    assert told == "at 50_%, 8_MiB, 3_ms, 2 seconds, 7.1_±_0.2_%"


def test_a_wheel_that_lacks_something_is_found(tmp_path, monkeypatch):
    check = loaded(ROOT / ".ci" / "check_wheel.py", monkeypatch)
    name = "bandjax-0-cp311-cp311-manylinux_2_28_x86_64.whl"
    tracked = [p for p in (ROOT / "bandjax").rglob("*") if p.suffix in {".py", ".typed"}]

    def made(name, left_out=(), **changed):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for source in tracked:
                inside = str(source.relative_to(ROOT))
                if inside not in left_out:
                    archive.writestr(inside, changed.get(source.stem, source.read_bytes()))
            archive.writestr("bandjax/_ffi.cpython-311.so", b"")
            archive.writestr("bandjax/codecs/", b"")
            if not (ROOT / "bandjax" / "_built.py").exists():
                archive.writestr("bandjax/_built.py", b"")
        return path

    assert check.problems(made(name)) == []
    assert check.problems(made(name, {"bandjax/nnx.py"})) == ["missing: bandjax/nnx.py"]
    assert check.problems(made(name, linen=b"other")) == ["differs: bandjax/linen.py"]
    if sys.platform.startswith("linux"):
        (told,) = check.problems(made("bandjax-0-cp311-cp311-linux_x86_64.whl"))
        assert "of this machine alone" in told
