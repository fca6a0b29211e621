"""Figures 11 and 16: the error of one convolution, by energy and by its smallest coefficients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bandjax
from bandjax import spectral
from experiments import data
from experiments.data.cifar10 import DEVIATION, MEAN
from experiments.figures import fft_approximation
from experiments.paper.item import BUDGETS, Claim, Context, Item, Row, Verdict, percent, word_of
from experiments.paper.pictures import panels
from experiments.paper.spectra import photograph
from experiments.settings.records import Record

ENERGIES = (100, 99.9, 99.5, 99, 98, 97, 96, 95, 94, 92, 90, 88, 86, 84, 82, 80)
BATCH, TAPS, FILTERS = 32, (3, 3), 64  # Of figure 11; the paper does not name its own.
SEED = 0


def pixels_of(context: Context, count: int) -> np.ndarray:
    """The first test images ``(count, 32, 32, 3)`` in 0 .. 1; at smoke, patches of a photograph."""
    if context.budget == "smoke":
        photo = photograph()
        patches = photo.reshape(8, 32, 8, 32, 3).transpose(0, 2, 1, 3, 4)
        return patches.reshape(-1, 32, 32, 3)[:count]
    return data.load("cifar10", context.store.data_dir).x_test[:count] * DEVIATION + MEAN


def measure_batch(context: Context) -> Record:
    """Error and kept share by energy, of pixels from 0 to 1 and of standardised ones."""
    raw = pixels_of(context, BATCH)
    kernel = jax.nn.initializers.glorot_uniform()(jax.random.key(SEED), (*TAPS, 3, FILTERS))
    curves = {}
    for name, pixels in (("raw", raw), ("standardised", (raw - MEAN) / DEVIATION)):
        x = jnp.asarray(pixels, jnp.float32)
        exact = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        rows = [_at(energy, x, kernel, exact) for energy in ENERGIES]
        curves[name] = {
            "error_percent": [float(f"{100 * error:.5g}") for error, _ in rows],
            "kept": [float(f"{kept:.6g}") for _, kept in rows],
        }
    return {
        "settings": {"batch": BATCH, "taps": [*TAPS, 3], "filters": FILTERS, "seed": SEED},
        "energy_percent": list(ENERGIES),
        "curves": curves,
    }


def _at(energy: float, x: jax.Array, kernel: jax.Array, exact: jax.Array) -> tuple[float, float]:
    """The relative error at an energy, and the share of coefficients that it keeps."""
    band = bandjax.Energy(energy / 100)
    y = bandjax.band_conv(x, kernel, None if energy == 100 else band, method="dft")
    error = float(spectral.relative_error(y, exact))
    if energy == 100:
        return error, 1.0
    grid = bandjax.conv_geometry(x.shape, kernel.shape, None).grid
    sums = np.asarray(spectral.energy(spectral.analysis(x, grid), grid), np.float64)
    mask = spectral.energy_mask(jnp.asarray(sums, jnp.float32), grid, energy / 100)
    return error, float(np.asarray(mask).mean())


def draw_batch(record: Record) -> Any:
    """Error against energy, and against what that drops."""
    figure, ((by_energy, by_share),) = panels(2)
    energies = record["energy_percent"]
    for name, curve in record["curves"].items():
        error = curve["error_percent"]
        by_energy.plot(energies, error, ".-", label=f"{name} pixels")
        by_share.plot([100 * (1 - kept) for kept in curve["kept"]], error, ".-")
    by_energy.invert_xaxis()
    by_energy.set(
        title="Figure 11", xlabel="energy preserved (%)", ylabel="relative error of the output (%)"
    )
    by_share.set(xlabel="coefficients dropped (%)", ylabel="relative error of the output (%)")
    by_energy.legend(fontsize="small")
    for axes in (by_energy, by_share):
        axes.grid(alpha=0.3)
    return figure


def judge_batch(record: Record) -> Verdict:
    """Whether the error grows with every step down, and how it begins."""
    curve = record["curves"]["standardised"]
    errors = dict(zip(record["energy_percent"], curve["error_percent"], strict=True))
    kept = dict(zip(record["energy_percent"], curve["kept"], strict=True))
    steps = np.diff(curve["error_percent"])
    claims = (
        Claim(
            "the less energy, the larger the error",
            "yes" if (steps >= 0).all() else "no",
            f"{errors[100]:.1e} % at 100, {errors[99]:.1f} % at 99, {errors[80]:.1f} % at 80",
        ),
        Claim(
            "the first step costs most: an abrupt change, then a gentle slope",
            "yes" if errors[99] > errors[98] - errors[99] else "no",
            f"from 100 to 99: {errors[99]:.1f} points; from 99 to 98: "
            f"{errors[98] - errors[99]:.1f}",
        ),
    )
    line = (
        f"On {record['settings']['batch']} standardised images the output is off by "
        f"{errors[99]:.1f} % at energy 99 ({percent(1 - kept[99], 0)} of the coefficients dropped) "
        f"and by {errors[90]:.1f} % at 90. The paper prints a curve without numbers."
    )
    return Verdict(word_of(claims), line, (), claims)


def measure_one(context: Context) -> Record:
    """As ``experiments.figures.fft_approximation`` does."""
    images, step = (2, 1000) if context.budget == "smoke" else (100, 10)
    options = fft_approximation.Options(
        data_dir=context.store.data_dir, images=images, step=step, seed=SEED
    )
    pixels = (pixels_of(context, images) - MEAN) / DEVIATION
    return fft_approximation.measure(options, context.console, pixels)


def judge_one(record: Record) -> Verdict:
    """The paper's points beside the middle of our images."""
    rows = []
    inside = total = 0
    for name, points in record["paper"].items():
        for dropped, reported in points:
            low, median, high = fft_approximation.at(record, f"{name} 28x28", dropped)
            rows.append(
                Row(
                    f"{name}, {dropped:.2f} % dropped",
                    f"{reported:g} %",
                    f"{median:.3g} % ({low:.2g} to {high:.2g})",
                )
            )
            inside += low <= reported <= high
            total += 1
    lead = fft_approximation.at(record, "lead 28x28", 6.61)[1]
    top = fft_approximation.at(record, "top 28x28", 6.61)[1]
    beyond = [fft_approximation.at(record, "lead 28x28", x)[1] for x in (13, 56, 75, 97.5)]
    claims = (
        Claim(
            "top, one coefficient dropped: an error of thousandths of a per cent",
            "yes" if fft_approximation.at(record, "top 28x28", 0.02)[1] < 0.01 else "no",
            f"median {fft_approximation.at(record, 'top 28x28', 0.02)[1]:.2g} %",
        ),
        Claim(
            "at 6.61 % dropped, top errs less than lead (8.41 against 22.07 %)",
            "yes" if top < lead else "no",
            f"medians {top:.2g} against {lead:.2g} %",
        ),
        Claim(
            "lead: after the first step the error grows steadily with the rate",
            "yes" if (np.diff(beyond) > 0).all() else "no",
            ", ".join(f"{value:.3g}" for value in beyond) + " % at 13, 56, 75 and 97.5 % dropped",
        ),
    )
    images = record["settings"]["images"]
    line = (
        f"{inside} of the paper's {total} points lie between the 10th and the 90th percentile of "
        f"our {images} images. Its one image and filter are not named; of lead its first step "
        "(22 %) is beyond all of ours, and a relative error is large where a filter happens to "
        "answer little."
    )
    return Verdict(word_of(claims), line, tuple(rows), claims)


BATCH_ITEM = Item(
    name="energy-error",
    figures=("11",),
    title="error of one convolution by preserved energy, on a batch",
    paper=(
        "A convolution of a batch against PyTorch's. Ours: 32 CIFAR-10 images, 64 Glorot filters "
        "of 3x3x3, padding SAME, against jax.lax."
    ),
    costs=dict.fromkeys(BUDGETS, "seconds"),
    measure=measure_batch,
    draw=draw_batch,
    judge=judge_batch,
)
ONE_ITEM = Item(
    name="top-error",
    figures=("16", "2.10"),
    title="error of one convolution: lead and top, all rates",
    paper=(
        "One CIFAR-10 image, one Glorot filter of 5x5x3, grid 59x59, coefficients dropped from the "
        "high end (lead) or the smallest first (top). Ours: 100 images, each with its own filter."
    ),
    costs={**dict.fromkeys(BUDGETS, "some minutes"), "smoke": "seconds"},
    measure=measure_one,
    draw=fft_approximation.draw,
    judge=judge_one,
)
