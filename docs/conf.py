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
    "sphinx_copybutton",
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
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def _lead_within_the_site(app: Any, name: str, source: list[str]) -> None:
    """Links that hold in the repository lead to the page of the site, or become a name.

    Records and pictures among them are copied; a folder cannot be: it is told by its name.
    """
    page = HERE / f"{name}.md"
    if not page.exists():
        return
    included = re.search(r"^```\{include\} (\S+)$", source[0], re.MULTILINE)
    if included:
        page = (page.parent / included[1]).resolve()
        source[0] = page.read_text("utf-8")

    def lead(link: re.Match[str]) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = (page.parent / target).resolve()
        for elsewhere, there in PAGES.items():
            if path == (HERE / elsewhere).resolve():
                path = HERE / there
                # The README's text is not the site's first page.
                anchor = "" if there == "index.md" else anchor
        if path.is_dir():
            folder = f"`{path.relative_to(ROOT)}`"
            named = words.strip("`") in (folder.strip("`"), path.name)
            return folder if named else f"{words} in {folder}"
        relative = os.path.relpath(path, (HERE / f"{name}.md").parent)
        return f"[{words}]({relative}{anchor})"

    source[0] = LINK.sub(lead, source[0])


# --------------------------------------------------------------------------------- API reference

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # several parameters with one text stay together
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
add_module_names = True
python_maximum_signature_line_length = 72  # longer ones: a line for each parameter

# "Args:", "Source: ...": what is indented below is text.
SECTION = re.compile(r"^[A-Z][a-z]+( [a-z]+)?:( |$)")


def _take_the_text_below_an_assignment(
    app: Any, kind: str, name: str, at: Any, options: Any, text: list[str]
) -> None:
    """Autodoc finds the text of a value where the value was made, not where it is public."""
    from sphinx.pycode import ModuleAnalyzer

    own = name.rpartition(".")[2]
    for module in sorted(sys.modules):
        if kind == "data" and module.startswith("bandjax.") and own in vars(sys.modules[module]):
            found = ModuleAnalyzer.for_module(module).find_attr_docs()
            text[:] = found.get(("", own), text)


def _set_formulas_apart(
    app: Any, kind: str, name: str, at: Any, options: Any, text: list[str]
) -> None:
    """Formulas are indented blocks of a docstring: their lines and spaces stay as they are.

    Of a property's first line Napoleon would take what comes before a colon for its type, if
    there were no (empty) comment before it.
    """
    if kind in ("property", "attribute", "data"):
        text[:0] = ["..", ""]
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
        text = text and re.sub(r"<class 'jax\.numpy\.(\w+)'>", r"jnp.\1", text)
        return text and re.sub(r"\b(jaxlib\._jax|jax)\.Array\b", "Array", text)

    return short(arguments), short(returned)


# ------------------------------------------------------------------------------------------ looks

# Of code that a reader would run: not of outputs, formulas, or lines that were dropped.
NOT_RUN = ".cell_output, .highlight-diff, .highlight-none, .highlight-default:not(.doctest)"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_selector = f"div.highlight pre:not(:is({NOT_RUN}) pre)"
WIDE = 700  # pixels: such pictures cannot be read on a telephone unless they scroll
LONG = 25  # letters: columns with such cells keep some width, and their table scrolls
UNIT = re.compile(r"(?<=\d) (?=[%±]|(?:[KMG]i?B|[mµ]?s)\b)|(?<=±) ")


def _set_pictures(app: Any, doctree: Any) -> None:
    """Every picture has its own size, and so opens in it when it is clicked; wide ones scroll."""
    from docutils import nodes
    from sphinx.util.images import get_image_size

    for picture in doctree.findall(nodes.image):
        size = get_image_size(app.srcdir / picture["uri"])
        if size and "width" not in picture:
            picture["width"] = f"{size[0]}px"
            picture["classes"] += ["wide"] * (size[0] > WIDE)


def _keep_columns_readable(app: Any, doctree: Any) -> None:
    """Columns of text are marked: a narrow screen would make them one word wide."""
    from docutils import nodes

    for table in doctree.findall(nodes.table):
        rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
        for column in zip(*rows, strict=False):
            if max(len(cell.astext()) for cell in column) >= LONG:
                for cell in column:
                    cell["classes"].append("long")
        for name in table.findall(nodes.literal):
            name["classes"] += ["long"] * (len(name.astext()) > 2 * LONG)


def _keep_units_with_numbers(app: Any, doctree: Any) -> None:
    """No line ends between a number and its unit."""
    from docutils import nodes

    for text in list(doctree.findall(nodes.Text)):
        if UNIT.search(text) and not isinstance(
            text.parent, nodes.FixedTextElement | nodes.literal
        ):
            text.parent.replace(text, nodes.Text(UNIT.sub("\u00a0", text)))


html_theme = "sphinx_book_theme"
html_title = "bandjax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = True
html_domain_indices = False  # of modules: they are in the reference
html_show_sourcelink = True
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search is in the sidebar already
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
}


def _leave_out_what_python_says(
    app: Any, kind: str, name: str, member: Any, skip: bool, options: Any
) -> bool | None:
    """The fields of a named tuple stand in its docstring, with words of their own."""
    told = str(getattr(member, "__doc__", ""))
    return True if told.startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Registers what rewrites links, docstrings and looks."""
    app.connect("source-read", _lead_within_the_site)
    app.connect("doctree-read", _set_pictures)
    app.connect("doctree-read", _keep_columns_readable)
    app.connect("doctree-read", _keep_units_with_numbers)
    app.connect("autodoc-skip-member", _leave_out_what_python_says)
    app.connect("autodoc-process-signature", _name_arrays_shortly)
    # Before napoleon.
    app.connect("autodoc-process-docstring", _take_the_text_below_an_assignment, priority=50)
    app.connect("autodoc-process-docstring", _set_formulas_apart, priority=100)
