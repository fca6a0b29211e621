"""Follows every link between the pages of a built site, and looks for pictures without words.

``python docs/check_links.py FOLDER``
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.wordless: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects from one element."""
        told = dict(attrs)
        for name in ("id", "name"):
            if told.get(name):
                self.anchors.add(str(told[name]))
        for name in ("href", "src"):
            if told.get(name):
                self.targets.append(str(told[name]))
        # Without an alternative text of ours there is a file's name; the theme's are ornaments.
        ours = tag == "img" and "_static/" not in str(told.get("src"))
        if ours and " " not in (told.get("alt") or ""):
            self.wordless.append(str(told.get("src")))


def dead(folder: Path) -> list[str]:
    """Links that lead nowhere, each with its page; those to other sites are not followed."""
    # What lies under _static is the theme's: templates, too.
    paths = [p.resolve() for p in sorted(folder.rglob("*.html")) if "_static" not in p.parts]
    pages = {path: Page(path) for path in paths}
    found = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            missing = not there.exists()
            if there in pages and unquote(parts.fragment) not in pages[there].anchors:
                missing = True
            if missing:
                found.append(f"{path.relative_to(folder.resolve())}: {target}")
    return found


def wordless(folder: Path) -> list[str]:
    """Pictures that say nothing to somebody who cannot see them, each with its page."""
    return [
        f"{path.relative_to(folder)}: {picture} has no alternative text"
        for path in sorted(folder.rglob("*.html"))
        if "_static" not in path.parts
        for picture in Page(path).wordless
    ]


def main() -> int:
    """Prints dead links and pictures without words; returns 1 if there are any."""
    folder = Path(sys.argv[1])
    if not any(folder.rglob("*.html")):
        print(f"no pages in {folder}: build them by `make docs`")
        return 1
    found = dead(folder) + wordless(folder)
    print("\n".join(found) or "every link leads somewhere, every picture has words")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
