"""The examples in the documentation are true."""

from __future__ import annotations

import doctest
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import bandjax

MODULES = [
    "_approximate",
    "_band",
    "_calibrate",
    "_checkpoint",
    "_compiled",
    "_conv",
    "_geometry",
    "_hook",
    "_plan",
    "_spectral_conv",
    "_summary",
    "_variants",
    "linen",
    "memory",
    "nnx",
    "plot",
    "schedule",
    "spectral",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"bandjax.{name}")
    # The examples use the public names as somebody would who has imported them.
    public = {name: getattr(bandjax, name) for name in dir(bandjax) if not name.startswith("_")}
    names = {**public, **vars(module), "jax": jax, "jnp": jnp, "nnx": nnx}
    results = doctest.testmod(module, globs=names)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_layout_in_build_md_is_that_of_the_package():
    root = pathlib.Path(bandjax.__file__).parent
    told = re.findall(r"\b\w+\.py\b", (root.parent / "BUILD.md").read_text().split("## Layout")[1])
    assert sorted(told) == sorted(p.name for p in root.glob("*.py") if p.name != "__init__.py")
