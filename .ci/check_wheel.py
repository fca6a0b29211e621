"""Checks a wheel: it has all of the package, its kernels, and a tag that package indexes take."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"bandjax/_built.py"}


def problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel that was built from the source archive."""
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "bandjax").rglob("*")
        if path.is_file() and path.suffix in (".py", ".typed")
    } - GENERATED
    found = []
    with zipfile.ZipFile(wheel) as archive:
        files = (entry.filename for entry in archive.infolist() if not entry.is_dir())
        inside = {name for name in files if name.startswith("bandjax/")}
        kernels = {name for name in inside if name.startswith("bandjax/_ffi")}
        found += [f"missing: {name}" for name in sorted((sources | GENERATED) - inside)]
        found += [f"beyond: {n}" for n in sorted(inside - kernels - sources - GENERATED)]
        found += [
            f"differs: {name}"
            for name in sorted(sources)
            if name in inside and archive.read(name) != (ROOT / name).read_bytes()
        ]
    if len(kernels) != 1:
        found.append(f"one native module is wanted, there are {sorted(kernels)}")
    if sys.platform.startswith("linux") and "-manylinux" not in wheel.name:
        found.append(f"its tag is of this machine alone: {wheel.name}")
    return found


def main() -> int:
    """Checks the one wheel of a folder."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    found = problems(wheel)
    print("\n".join(found) or f"{wheel.name}: whole")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
