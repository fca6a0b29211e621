"""Figures 6 and 7: spectra of images, with DC in the corner and in the centre."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np

import bandjax
from bandjax import spectral
from experiments import data
from experiments.data.cifar10 import DEVIATION, MEAN
from experiments.paper.item import BUDGETS, Claim, Context, Item, Row, Verdict, word_of
from experiments.paper.pictures import panels
from experiments.settings.records import Record

SEED = 7  # Of the choice of the image.
PHOTO = "china.jpg"  # The paper's, of a dog, comes from ImageNet; this one with scikit-learn.
CROP = (slice(40, 296), slice(180, 436))
FLOOR = 1e-6  # Of the largest magnitude: what lies below is drawn as this.
HALF = bandjax.Compression(0.5)


def photograph() -> np.ndarray:
    """A photograph that scikit-learn ships, ``(256, 256, 3)`` in 0 .. 1."""
    from sklearn.datasets import load_sample_image

    return load_sample_image(PHOTO)[CROP].astype(np.float32) / 255


def image_of(context: Context) -> tuple[np.ndarray, str]:
    """An image ``(32, 32, 3)`` in 0 .. 1, and which it is."""
    if context.budget == "smoke":
        return photograph()[:32, :32], f"corner of {PHOTO}"
    images = data.load("cifar10", context.store.data_dir).x_test
    number = int(np.random.default_rng(SEED).integers(len(images)))
    return images[number] * DEVIATION + MEAN, f"CIFAR-10, test image {number}"


def magnitudes(channel: np.ndarray) -> np.ndarray:
    """Of all coefficients of a channel ``(height, width)``, DC in the corner."""
    height, width = channel.shape
    half = np.abs(np.asarray(spectral.analysis(jnp.asarray(channel)[None, ..., None])))[0, ..., 0]
    # The other half is its mirror image: |F(-u, -v)| = |F(u, v)|.
    whole = np.empty((height, width))
    whole[:, : width // 2 + 1] = half
    rest = np.arange(width // 2 + 1, width)
    whole[:, rest] = half[-np.arange(height) % height][:, width - rest]
    return whole


def compressed(channel: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], float]:
    """What is left of a channel's magnitudes, the box, and the true share that is dropped."""
    whole = magnitudes(channel)
    geometry = bandjax.conv_geometry(
        (1, *channel.shape, 1), (1, 1, 1, 1), HALF, padding="VALID", grid=channel.shape
    )
    kept = np.ones(whole.shape, bool)
    for axis, (size, limit) in enumerate(zip(whole.shape, geometry.modes, strict=True)):
        frequency = np.abs(np.fft.fftfreq(size, 1 / size))
        kept &= np.expand_dims(frequency <= limit, 1 - axis)
    return whole * kept, geometry.modes, geometry.compression


def measure(context: Context) -> Record:
    """The magnitudes of the image; the photograph's are made again where they are drawn."""
    image, name = image_of(context)
    channel = magnitudes(image[..., 0])
    energy = np.sort((channel**2).ravel())[::-1]
    share = np.cumsum(energy) / energy.sum()
    photo = photograph()
    left, modes, dropped = compressed(photo[..., 0])
    whole = magnitudes(photo[..., 0])
    return {
        "image": name,
        "magnitudes": [[float(f"{v:.4g}") for v in row] for row in channel.tolist()],
        "coefficients_for_99_percent": int(np.searchsorted(share, 0.99)) + 1,
        "box_for_99_percent": _smallest_box(channel, 0.99),
        "photo": {
            "name": f"{PHOTO} of scikit-learn, 256x256",
            "sha256": hashlib.sha256(photo.tobytes()).hexdigest(),
            "modes": list(modes),
            "dropped": dropped,
            "energy_kept": float((left**2).sum() / (whole**2).sum()),
            "energy_kept_without_mean": float(
                ((left**2).sum() - left[0, 0] ** 2) / ((whole**2).sum() - whole[0, 0] ** 2)
            ),
        },
    }


def _smallest_box(channel: np.ndarray, share: float) -> dict[str, float]:
    """The square box that holds a share of the energy, and of how many coefficients."""
    size = channel.shape[0]
    frequency = np.abs(np.fft.fftfreq(size, 1 / size))
    reach = np.maximum.outer(frequency, frequency)
    energy, total = channel**2, (channel**2).sum()
    for limit in range(size // 2 + 1):
        inside = reach <= limit
        if energy[inside].sum() >= share * total:
            return {"limit": limit, "of_coefficients": float(inside.mean())}
    raise AssertionError("the whole box holds everything")


def decibels(values: np.ndarray, largest: float) -> np.ndarray:
    """Magnitudes in dB below the largest, cut at the floor."""
    return 20 * np.log10(np.maximum(values / largest, FLOOR))


def draw(record: Record) -> Any:
    """The image's spectrum both ways; the photograph and its spectrum, whole and compressed."""
    channel = np.array(record["magnitudes"])
    photo = photograph()
    largest = float(magnitudes(photo[..., 0]).max())
    left, _, dropped = compressed(photo[..., 0])
    figure, ((corner, centre), (above, above_heat), (below, below_heat)) = panels(
        2, 3, width=4.6, height=3.9
    )
    whole = decibels(channel, channel.max())
    for axes, values, title in (
        (corner, whole, "Figure 6: DC in the corner"),
        (centre, np.fft.fftshift(whole), "DC in the centre"),
    ):
        heat = axes.imshow(values, cmap="gray", interpolation="bilinear")
        axes.set(title=title, xticks=[], yticks=[])
        figure.colorbar(heat, ax=axes, label="magnitude (dB)", shrink=0.8)
    everything = magnitudes(photo[..., 0])
    for axes, heat_axes, values, title in (
        (above, above_heat, everything, "Figure 7: the photograph"),
        (below, below_heat, left, f"{100 * dropped:.0f} % of its coefficients dropped"),
    ):
        rebuilt = photo if values is everything else _rebuilt(photo)
        axes.imshow(np.clip(rebuilt, 0, 1))
        heat = heat_axes.imshow(
            np.fft.fftshift(decibels(values, largest)), cmap="gray", interpolation="bilinear"
        )
        figure.colorbar(heat, ax=heat_axes, label="magnitude (dB)", shrink=0.8)
        axes.set(title=title, xticks=[], yticks=[])
        heat_axes.set(xticks=[], yticks=[], title="channel 0, DC in the centre")
    return figure


def _rebuilt(photo: np.ndarray) -> np.ndarray:
    """What the box holds of a photograph, by a band-limited convolution with a single one."""
    x = jnp.asarray(np.moveaxis(photo, -1, 0)[..., None])
    identity = jnp.ones((1, 1, 1, 1))
    y = bandjax.band_conv(x, identity, HALF, padding="VALID", grid=photo.shape[:2], method="dft")
    return np.moveaxis(np.asarray(y)[..., 0], 0, -1)


def judge(record: Record) -> Verdict:
    """What of the paper's words about its pictures holds."""
    box = record["box_for_99_percent"]
    photo = record["photo"]
    fewer = 1 / box["of_coefficients"]
    claims = (
        Claim(
            "magnitudes decrease from the corners towards the middle",
            "yes" if _decreases(np.array(record["magnitudes"])) else "no",
            "mean magnitude by distance from DC, in four rings, falls",
        ),
        Claim(
            "99 % of the energy needs 2 to 4 times fewer coefficients, usually",
            "yes" if fewer >= 2 else "no",
            f"box |u| <= {box['limit']:.0f}: {fewer:.1f} times fewer; the mean colour is most of "
            "the energy of pixels from 0 to 1",
        ),
    )
    line = (
        f"At {100 * photo['dropped']:.1f} % dropped the photograph keeps "
        f"{100 * photo['energy_kept']:.2f} % of its energy, "
        f"{100 * photo['energy_kept_without_mean']:.1f} % without its mean: "
        "faint ripples in the sky are all that shows. The paper's image was of a dog, from "
        "ImageNet."
    )
    rows = (
        Row("99 % of the energy", "2 to 4 times fewer elements", f"{fewer:.1f} times fewer"),
        Row("photograph", "50 % dropped", f"{100 * photo['dropped']:.1f} % dropped"),
    )
    return Verdict(word_of(claims), line, rows, claims)


def _decreases(channel: np.ndarray) -> bool:
    """Whether the mean magnitude falls from ring to ring, away from DC."""
    size = channel.shape[0]
    frequency = np.abs(np.fft.fftfreq(size, 1 / size))
    reach = np.maximum.outer(frequency, frequency)
    edges = np.linspace(0, size // 2 + 1, 5)
    rings = [channel[(reach >= a) & (reach < b)].mean() for a, b in pairwise(edges)]
    return bool((np.diff(rings) < 0).all())


ITEM = Item(
    name="heatmaps",
    figures=("6", "7"),
    title="heat maps of spectra",
    paper=(
        "One channel of a random CIFAR-10 image with DC in the corner and in the centre; a "
        "photograph and its spectrum with half of the coefficients, in dB. Ours: the photograph "
        f"{PHOTO} that scikit-learn ships."
    ),
    costs=dict.fromkeys(BUDGETS, "seconds"),
    measure=measure,
    draw=draw,
    judge=judge,
)
