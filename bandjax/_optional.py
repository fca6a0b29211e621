"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from typing import Any


def report_module(name: str) -> Any:
    """Imports part of a package that the library itself does without."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"bandjax draws with {package}: pip install 'bandjax[report]', or {package}"
        ) from error


def needs(module: str, package: str) -> ImportError:
    """The error of a module whose package is not installed; its extra has the module's name."""
    return ImportError(
        f"bandjax.{module} needs {package}: pip install 'bandjax[{module}]', or {package}"
    )
