"""Random convolutions under random transformations, compared with literal sums in float64.

Every case is a function of one number: shapes and arguments, band, method, and a stack of
transformations (``jit``, nested ``vmap`` over input, kernel or both, ``scan``, recomputation, a
mesh).
Values are compared with the oracle of the tests, which shares no code with the library; gradients
by its linearity, ``<dL/dx, v> = <ct, conv(P v, w)>`` for random ``v``, and likewise for the kernel.
A case that is off is reduced, as long as it stays off, and told as one line that runs it again.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import bandjax
from bandjax._conv.classes import CLASSES
from experiments.settings.command import parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import provenance, write_json

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import configs
import oracle

DEVICES = 2
SWEEP = 20261127
BOUND = 1e-5  # of the largest number, at eps of float32 times what a sum amplifies
METHODS = (
    ("auto", None),
    *dict.fromkeys((c.name, "native" if c.native else "xla") for c in CLASSES),
)
MAPS = ("x", "kernel", "both", "scan")


@dataclass(frozen=True)
class Options:
    """Random convolutions under random transformations against float64 sums."""

    minutes: float = 10
    """How long."""
    cases: int | None = None
    """How many; by default as many as there is time for."""
    first: int = 0
    """Number of the first case."""
    case: int | None = None
    """Run this case alone, and tell what it is."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the result."""


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
      config: shapes, arguments and what to keep.
      method: of ``band_conv``.
      implementation: of ``band_conv``.
      maps: over what the convolution is mapped, outermost first: see ``MAPS``.
      remat: "none", "jax" or "bandjax".
      jit: whether it is compiled.
      mesh: whether the outermost mapped axis, or the batch, lies on two devices.
    """

    config: configs.Config
    method: str
    implementation: str | None
    maps: tuple[str, ...]
    remat: str
    jit: bool
    mesh: bool

    @property
    def band(self) -> Any:
        if self.config.modes is not None:
            return bandjax.Modes(*self.config.modes)
        return None if self.config.rate is None else bandjax.Compression(self.config.rate)


def case_of(number: int) -> Case:
    """The case of a number."""
    rng = np.random.default_rng((SWEEP, number, 3))
    native = bandjax.native_status().startswith("native: available")
    methods = [how for how in METHODS if native or how[1] != "native"]
    method, implementation = methods[rng.integers(len(methods))]
    maps = tuple(rng.choice(MAPS, size=rng.choice([0, 0, 1, 1, 2])))
    return Case(
        config=configs.random_config(SWEEP, number, banded=bool(rng.random() < 0.75)),
        method=method,
        implementation=implementation,
        maps=tuple(map(str, maps)),
        remat=str(rng.choice(["none", "none", "jax", "bandjax"])),
        jit=bool(rng.random() < 0.95),
        mesh=bool(rng.random() < 0.25),
    )


def error_of(case: Case) -> float:
    """The largest error of output and both gradients, in units of the largest number."""
    config = case.config
    rng = np.random.default_rng((*config.seed, 4))
    sizes = tuple(int(n) for n in rng.integers(1, 4, len(case.maps)))
    if case.mesh and sizes:
        sizes = (2 * sizes[0], *sizes[1:])
    x_lead = tuple(n for n, over in zip(sizes, case.maps, strict=True) if over != "kernel")
    k_lead = tuple(
        n for n, over in zip(sizes, case.maps, strict=True) if over in ("kernel", "both")
    )
    x, direction_x = (rng.normal(size=(*x_lead, *config.x_shape)) for _ in range(2))
    kernel, direction_k = (rng.normal(size=(*k_lead, *config.kernel_shape)) for _ in range(2))
    wanted = _by_oracle(case, x, kernel, sizes)
    ct = rng.normal(size=wanted.shape)
    function = _transformed(case)

    def run(x: Any, kernel: Any, ct: Any) -> Any:
        y, pull_back = jax.vjp(function, x, kernel)
        return y, *pull_back(ct)

    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, ct)]
    spread = x.shape[0] % DEVICES == 0 and (x_lead or config.batch)
    if case.mesh and spread and jax.device_count() >= DEVICES:
        mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))
        arrays[0] = jax.device_put(arrays[0], NamedSharding(mesh, PartitionSpec("d")))
    y, dx, dk = (jax.jit(run) if case.jit else run)(*arrays)
    errors = [oracle.gap(y, wanted)]
    for gradient, moved in (
        ((dx, direction_x), (direction_x, kernel)),
        ((dk, direction_k), (x, direction_k)),
    ):
        actual = np.vdot(np.asarray(gradient[0], np.float64), gradient[1])
        responses = _by_oracle(case, *moved, sizes)
        # Rounding grows as a random walk over the terms of the sum.
        scale = np.linalg.norm(ct) * np.linalg.norm(responses) + 1
        errors.append(float(abs(actual - np.vdot(ct, responses)) / scale))
    return max(errors)


def _by_oracle(case: Case, x: np.ndarray, kernel: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The convolution under the case's maps, element by element."""
    if not sizes:
        return oracle.convolve(x, kernel, case.config.geometry, case.config.groups)
    inner = dataclasses.replace(case, maps=case.maps[1:])
    over = case.maps[0]
    elements = [
        _by_oracle(
            inner,
            x if over == "kernel" else x[i],
            kernel[i] if over in ("kernel", "both") else kernel,
            sizes[1:],
        )
        for i in range(sizes[0])
    ]
    return np.stack(elements)


def _transformed(case: Case) -> Any:
    """The function of input and kernel that the case calls."""

    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return bandjax.band_conv(
            x,
            kernel,
            case.band,
            method=case.method,
            implementation=case.implementation,
            **case.config.arguments(),
        )

    f: Any = function
    if case.remat == "jax":
        f = jax.checkpoint(f, policy=bandjax.save_spectra)
    elif case.remat == "bandjax":
        f = bandjax.checkpoint(f)
    for over in reversed(case.maps):
        f = _scanned(f) if over == "scan" else jax.vmap(f, _AXES[over])
    return f


_AXES = {"x": (0, None), "kernel": (None, 0), "both": (0, 0)}


def _scanned(f: Any) -> Any:
    def scanned(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, x: (carry, f(x, kernel)), None, x)[1]

    return scanned


def simpler(case: Case) -> Iterator[Case]:
    """Cases that are a little simpler, those that explain most first."""
    for i in range(len(case.maps)):
        yield dataclasses.replace(case, maps=case.maps[:i] + case.maps[i + 1 :])
    for field, plain in (("mesh", False), ("remat", "none"), ("jit", False), ("jit", True)):
        if getattr(case, field) != plain and not (field == "jit" and plain and not case.jit):
            yield dataclasses.replace(case, **{field: plain})
    config, rank = case.config, len(case.config.sizes)
    for field, plain in (
        ("batch", (1,)),
        ("strides", (1,) * rank),
        ("input_dilation", (1,) * rank),
        ("kernel_dilation", (1,) * rank),
        ("grid", None),
        ("padding", "VALID"),
        ("taps", (1,) * rank),
    ):
        if getattr(config, field) != plain:
            yield dataclasses.replace(case, config=dataclasses.replace(config, **{field: plain}))


def outcome(case: Case) -> float | str:
    """The error of a case, or what it raised."""
    try:
        return error_of(case)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"


def is_off(result: float | str) -> bool:
    return isinstance(result, str) or not result <= BOUND


def reduced(case: Case) -> Case:
    """The simplest case on the way down that is still off in the same way."""
    kind = type(outcome(case))
    while True:
        for candidate in simpler(case):
            try:
                result = outcome(candidate)
            except (AssertionError, ValueError):  # no such convolution
                continue
            if is_off(result) and isinstance(result, kind):
                case = candidate
                break
        else:
            return case


def told(case: Case) -> str:
    """A case in one line."""
    config = case.config
    arguments = ", ".join(f"{name}={value!r}" for name, value in config.arguments().items())
    return (
        f"x {config.x_shape}, kernel {config.kernel_shape}, band {case.band!r}, {arguments}, "
        f"method={case.method!r}, implementation={case.implementation!r}; maps {case.maps}, "
        f"remat {case.remat}, jit {case.jit}, mesh {case.mesh}"
    )


def fuzz(options: Options) -> dict[str, Any]:
    """Runs cases until the time is up; returns what happened."""
    end = time.monotonic() + 60 * options.minutes
    number, worst, off = options.first, 0.0, []
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=options.cases)
        while time.monotonic() < end and number - options.first != options.cases:
            case = case_of(number)
            result = outcome(case)
            if is_off(result):
                line = told(reduced(case))
                off.append({"case": number, "result": result, "reduced": line})
                bar.console.print(f"case {number} is off ({result}): {line}", markup=False)
            else:
                worst = max(worst, float(result))
            number += 1
            description = f"{number - options.first} cases, {len(off)} off, worst {worst:.1e}"
            bar.update(task, advance=1, description=description)
            if number % 50 == 0:
                jax.clear_caches()  # No program is run twice.
    return {
        "cases": number - options.first,
        "first": options.first,
        "bound": BOUND,
        "worst": worst,
        "off": off,
        "native": bandjax.native_status(),
        **provenance(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 where a case was off."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> int:
        options = parse_options(Options, words, "python -m experiments.fuzz")
        if options.minutes <= 0:
            raise UserError(f"minutes must be positive, got {options.minutes}")
        for name, least in (("cases", 1), ("first", 0), ("case", 0)):
            value = getattr(options, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be >= {least}, got {value}")
        if options.case is not None:
            case = case_of(options.case)
            result = outcome(case)
            print(f"case {options.case}: {told(case)}\n{result}")
            return int(is_off(result))
        record = fuzz(options)
        print(
            f"{record['cases']} cases from {record['first']} on, {len(record['off'])} off, "
            f"worst error {record['worst']:.1e} (bound {BOUND})"
        )
        if options.out is not None:
            write_json(options.out, record)
        return int(bool(record["off"]))

    return run_command(action, "nothing is written")
