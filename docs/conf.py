"""The documentation site: ``make docs``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
# Notebooks and docstrings are run and read in processes of their own.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bandjax  # noqa: E402

project = "bandjax"
author = "The bandjax contributors"
copyright = "The bandjax contributors, Apache-2.0"  # noqa: A001
version = release = bandjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["README.md", "**/.ipynb_checkpoints"]
templates_path: list[str] = []

# ------------------------------------------------------------------------------- pages, notebooks

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # as on GitHub
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs" / "notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# Pages of the site that lie elsewhere in the repository.
PAGES = {
    "../BUILD.md": "site/building.md",
    "../CHANGELOG.md": "site/changes.md",
    "../CODE_OF_CONDUCT.md": "site/conduct.md",
    "../CONTRIBUTING.md": "site/contributing.md",
    "../README.md": "index.md",
    "../experiments/results/paper/README.md": "site/paper.md",
    "../ffi/README.md": "site/kernels.md",
    "../ffi/cuda/README.md": "site/cuda.md",
    "README.md": "index.md",
}
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def _lead_within_the_site(app: Any, name: str, source: list[str]) -> None:
    """Links that hold in the repository lead to the page of the site, or become a name.

    Records and pictures among them are copied; a folder cannot be.
    """
    page = HERE / f"{name}.md"
    if not page.exists():
        return
    included = re.search(r"^```\{include\} (\S+)$", source[0], re.MULTILINE)
    if included:
        page = (page.parent / included[1]).resolve()
        source[0] = page.read_text("utf-8")

    def lead(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = (page.parent / target).resolve()
        for elsewhere, there in PAGES.items():
            if path == (HERE / elsewhere).resolve():
                path = HERE / there
                # The README's text is not the site's first page.
                anchor = "" if there == "index.md" else anchor
        if path.is_dir():
            return f"] (`{path.relative_to(ROOT)}` of the repository)"
        relative = os.path.relpath(path, (HERE / f"{name}.md").parent)
        return f"]({relative}{anchor})"

    text = LINK.sub(lead, source[0])
    # What became of a link to a folder: its text, without brackets.
    source[0] = re.sub(r"\[([^\]]*)\] (\(`[^`]*` of the repository\))", r"\1 \2", text)


# --------------------------------------------------------------------------------- API reference

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = True
python_maximum_signature_line_length = 72  # longer ones: a line for each parameter

# "Args:", "Source: ...": what is indented below is text.
SECTION = re.compile(r"^[A-Z][a-z]+( [a-z]+)?:( |$)")


def _set_formulas_apart(
    app: Any, kind: str, name: str, at: Any, options: Any, text: list[str]
) -> None:
    """Formulas are indented blocks of a docstring: their lines and spaces stay as they are.

    Of a property's first line Napoleon would take what comes before a colon for its type.
    """
    if kind in ("property", "attribute", "data"):
        text.insert(0, "")
    before, found = "", []
    for here, after in zip(text, [*text[1:], ""], strict=True):
        found.append(here)
        if here.strip():
            before = here
            continue
        top = bool(before) and not before.startswith((" ", "-")) and not before.endswith("::")
        top = top and not SECTION.match(before)
        if top and after.startswith("    ") and not after.lstrip().startswith((">>>", "-")):
            found += ["::", ""]
    text[:] = found


def _name_arrays_shortly(
    app: Any,
    kind: str,
    name: str,
    at: Any,
    options: Any,
    arguments: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """``Float[Array, ...]``, as the sources have it."""

    def short(text: str | None) -> str | None:
        return text and re.sub(r"\b(jaxlib\._jax|jax)\.Array\b", "Array", text)

    return short(arguments), short(returned)


# ------------------------------------------------------------------------------------------ looks

html_theme = "sphinx_book_theme"
html_title = "bandjax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = True
html_show_sourcelink = True
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
}


def setup(app: Any) -> None:
    """Registers what rewrites links and docstrings."""
    app.connect("source-read", _lead_within_the_site)
    app.connect("autodoc-process-signature", _name_arrays_shortly)
    app.connect("autodoc-process-docstring", _set_formulas_apart, priority=100)  # before napoleon
