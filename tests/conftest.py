"""JAX settings that hold for every test, and a run that ends in time."""

from __future__ import annotations

import os
import time
import zlib

import effort

DEVICES = 8

# XLA reads its flags once, when the backend starts, hence before anything imports JAX. What the
# environment gave comes last, and counts.
os.environ["XLA_FLAGS"] = " ".join(
    [
        f"--xla_force_host_platform_device_count={DEVICES}",
        *effort.flags(),
        os.environ.get("XLA_FLAGS", ""),
    ]
).strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# The shapes in the signatures of the core are checked in every test. (Public functions refuse
# wrong arguments in their own words.)
CHECKED = ["_conv.energy", "_conv.methods", "_conv.operator", "_native.product"]
CHECKED += ["_native.transform", "_spectra.fft", "_spectra.product", "_spectra.transform"]
with install_import_hook([f"bandjax.{name}" for name in CHECKED], "beartype.beartype"):
    import bandjax  # noqa: F401
from bandjax._conv.tiles import FusedTiles, Tiles  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[Tiles, FusedTiles])
def form_of_tiles(request, monkeypatch):
    """Each of the two forms of the method "tiles" in turn, whatever they cost."""
    for form in (Tiles, FusedTiles):
        cost = 0.0 if form is request.param else 1e9
        monkeypatch.setattr(form, "cost", classmethod(lambda *_, cost=cost: cost))


# ----------------------------------------------------------------------------------- out of time

OUT_OF_TIME = "out of time (--seconds)"
DEADLINE = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption(
        "--seconds",
        type=float,
        default=float("inf"),
        help="skip what has not begun after so many seconds, and tell how much it was",
    )


def pytest_configure(config):
    config.stash[DEADLINE] = time.monotonic() + config.getoption("--seconds")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks as full what ``thin(n)`` leaves out: of a function's cases all but one of every n.

    Which ones is drawn from their names, so that no value of an argument is left out as a whole;
    the first of each function always runs.
    """
    seen = set()
    for item in items:
        mark = item.get_closest_marker("thin")
        function = item.nodeid.partition("[")[0]
        if (
            mark is not None
            and function in seen
            and zlib.crc32(item.nodeid.encode()) % mark.args[0]
        ):
            item.add_marker(pytest.mark.full)
        seen.add(function)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.monotonic() > item.config.stash[DEADLINE]:
        pytest.skip(OUT_OF_TIME)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    late = [report for report in skipped if OUT_OF_TIME in str(report.longrepr)]
    if late:
        terminalreporter.write_line(f"OUT OF TIME: {len(late)} cases did not run")
