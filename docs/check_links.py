"""Follows every link between the pages of a built site. ``python docs/check_links.py FOLDER``."""

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


def main() -> int:
    """Prints the dead links; returns 1 if there are any."""
    folder = Path(sys.argv[1])
    if not any(folder.rglob("*.html")):
        print(f"no pages in {folder}: build them by `make docs`")
        return 1
    found = dead(folder)
    print("\n".join(found) or "every link leads somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
