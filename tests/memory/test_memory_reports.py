"""What a compiled program needs, and the tables and pictures of what is kept."""

from __future__ import annotations

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from memory_cases import SAVE_SPECTRA, SPECTRUM, array, band_conv

from bandjax import memory


def test_compiled_bytes():
    x, w = array(64, 32), array(32, 16)
    used = memory.compiled_bytes(lambda x, w: jnp.tanh(x @ w), x, w)
    assert used.argument == 4 * (64 * 32 + 32 * 16)
    assert used.output == 4 * 64 * 16
    assert used.alias == 0
    if jax.default_backend() == "cpu":
        assert used.peak is None
    else:
        assert used.peak >= used.output
    # A matrix product between two others must be stored.
    chain = memory.compiled_bytes(lambda x, w: ((x @ w) @ w.T) @ w, x, w)
    assert chain.temporary >= 4 * 64 * 16
    donated = memory.compiled_bytes(jax.jit(lambda x: x + 1, donate_argnums=0), x)
    assert donated.alias == donated.output == 4 * 64 * 32
    assert donated == memory.compiled_bytes(lambda x: x + 1, x, donate_argnums=0)


def test_compiled_bytes_passes_options_on():
    with pytest.raises(TypeError, match="jit-compiled already, so that donate_argnums cannot"):
        memory.compiled_bytes(jax.jit(jnp.sin), array(3), donate_argnums=0)
    with pytest.raises(Exception, match="no_such_option"):
        memory.compiled_bytes(jnp.sin, array(3), compiler_options={"no_such_option": True})


@pytest.fixture
def reports():
    args = array(2, 16, 16, 3), array(3, 3, 3, 4)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(band_conv(x, kernel)))

    return {
        "plain [a]": memory.saved_bytes(loss, *args),
        "kept": memory.saved_bytes(jax.checkpoint(loss, policy=SAVE_SPECTRA), *args),
    }


def printed(table):
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables(reports):
    plain, checkpointed = reports.values()
    rows = printed(memory.table(reports)).splitlines()
    assert any("plain [a]" in row and "100.0%" in row for row in rows)
    share = checkpointed.total / plain.total
    assert any("kept" in row and f"{share:.1%}" in row for row in rows)
    text = printed(plain.table())
    assert "bandjax_spectrum" in text
    assert "cos (other)" in text
    assert str(plain).startswith(f"{plain.total / 2**20:.4g} MiB kept in {len(plain.tensors)} ")
    with pytest.raises(ValueError, match="reports must hold"):
        memory.table({})


def test_plot(reports, tmp_path):
    axes = memory.plot(reports, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["spectra", "cos"]
    for row, saved in enumerate(reports.values()):
        widths = [bars[row].get_width() for bars in axes.containers]
        assert sum(widths) == pytest.approx(saved.total / 2**20)
        assert widths[0] == pytest.approx(SPECTRUM / 2**20)
    plain, checkpointed = reports.values()
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == f"{plain.total / 2**20:.3g} MiB"
    assert f"({checkpointed.total / plain.total:.0%})" in texts[1]
    assert memory.plot(reports, ax=axes) is axes
    with pytest.raises(ValueError, match="reports must hold"):
        memory.plot({})


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_missing_packages_are_named(monkeypatch, reports, package, tmp_path):
    for module in (f"{package}.table", f"{package}.figure", f"{package}.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    draw = {
        "rich": lambda: memory.table(reports),
        "matplotlib": lambda: memory.plot(reports, tmp_path / "x.png"),
    }
    with pytest.raises(ImportError, match=rf"pip install 'bandjax\[report\]', or {package}"):
        draw[package]()


def test_importing_needs_neither_flax_nor_rich_nor_matplotlib():
    code = (
        "import sys, bandjax; bandjax.memory.saved_bytes;"
        "print(sorted({'flax', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
