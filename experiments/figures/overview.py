"""Draw what a band-limited convolution keeps of an image: the picture in the README.

python -m experiments.figures.overview
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import tyro
from matplotlib import cbook, patches
from matplotlib import pyplot as plt

import bandjax
from bandjax import spectral

RATES = (0.5, 0.75, 0.95)
CROP = (slice(40, 296), slice(120, 376))  # the face, 256 x 256


@dataclass(frozen=True)
class Options:
    """Draw what a band-limited convolution keeps of an image."""

    out: Path = Path("experiments/results/overview.png")
    """The PNG file to write."""


def portrait() -> np.ndarray:
    """A public-domain photograph that Matplotlib ships, grey, ``(256, 256)`` in 0..1."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        image = plt.imread(file, format="jpg")
    return image[CROP].astype(np.float32).mean(axis=-1) / 255


def draw(image: np.ndarray) -> plt.Figure:
    """The image, its spectrum with the boxes outlined, and what each box holds of it."""
    grid = image.shape
    signal = jnp.asarray(image)[None, ..., None]
    # Shifted, DC lies in the centre row; the half spectrum has it in the left column.
    magnitude = jnp.abs(spectral.shift_dc(spectral.analysis(signal), axes=(1,)))[0, ..., 0]
    decibels = 20 * np.log10(np.asarray(magnitude) / float(magnitude.max()) + 1e-12)

    figure, axes = plt.subplots(1, 5, figsize=(14, 3.5), layout="constrained")
    axes[0].imshow(image, cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("input")
    rows, columns = grid
    heat = axes[1].imshow(
        decibels,
        cmap="magma",
        vmin=-90,
        vmax=0,
        extent=(-0.5, columns // 2 + 0.5, rows / 2 - 0.5, -rows / 2 - 0.5),
        aspect="equal",
    )
    figure.colorbar(heat, ax=axes[1], label="magnitude, dB", shrink=0.8)
    axes[1].set(title="half spectrum", xlabel="$u_2$", ylabel="$u_1$")
    colours = plt.get_cmap("viridis")(np.linspace(0.95, 0.4, len(RATES)))
    for axis, rate, colour in zip(axes[2:], RATES, colours, strict=True):
        geometry = bandjax.conv_geometry(
            signal.shape, (1, 1, 1, 1), bandjax.Compression(rate), padding="VALID"
        )
        u1, u2 = geometry.modes
        box = patches.Rectangle(
            (-0.5, -u1 - 0.5), u2 + 1, 2 * u1 + 1, fill=False, color=colour, linewidth=2
        )
        axes[1].add_patch(box)
        identity = jnp.ones((1, 1, 1, 1))
        kept = bandjax.band_conv(
            signal, identity, bandjax.Compression(rate), padding="VALID", method="dft"
        )
        axis.imshow(np.asarray(jax.device_get(kept))[0, ..., 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{geometry.compression:.0%} of coefficients dropped")
        for spine in axis.spines.values():
            spine.set(color=colour, linewidth=2)
    for axis in (axes[0], *axes[2:]):
        axis.set(xticks=[], yticks=[])
    return figure


def main() -> int:
    """The command line; returns the exit status."""
    options = tyro.cli(Options)
    mpl.use("Agg")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(portrait()).savefig(options.out, dpi=90)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
