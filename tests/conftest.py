"""JAX settings that hold for every test."""

from __future__ import annotations

import os

DEVICES = 8

# XLA reads its flags once, when the backend starts, hence before anything imports JAX.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={DEVICES}"]
).strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# The shapes in the signatures of the core are checked in every test. (Public functions refuse
# wrong arguments in their own words.)
CHECKED = ["_conv.energy", "_conv.methods", "_conv.operator", "_native.product"]
CHECKED += ["_native.transform", "_spectra"]
with install_import_hook([f"bandjax.{name}" for name in CHECKED], "beartype.beartype"):
    import bandjax  # noqa: F401

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--sweep-every",
        type=int,
        default=1,
        metavar="N",
        help="of the parts of each random sweep run every N-th alone, and deselect the others",
    )


def pytest_collection_modifyitems(config, items):
    every = config.getoption("--sweep-every")
    seen: dict[str, int] = {}
    kept, dropped = [], []
    for item in items:
        if "random_configurations" not in item.name:
            kept.append(item)
            continue
        sweep = item.nodeid.partition("[")[0]
        seen[sweep] = seen.get(sweep, -1) + 1
        (dropped if seen[sweep] % every else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
