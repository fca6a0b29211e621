"""What is timed: convolutions of well-known networks, and one whole training step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import bandjax
from experiments.settings.bands import parse_band, parse_fixed_band
from experiments.settings.errors import UserError

LAYER_PEERS = ("lax", "torch", "fft", "fft-pow2")
NETWORK_PEERS = ("flax", "torch")


@dataclass(frozen=True)
class Layer:
    """One convolution of stride 1.

    Attributes:
        name: for the command line and the tables.
        group: the workloads that are reported together.
        batch: examples.
        size: of the map, an entry for each spatial axis.
        taps: of the kernel.
        inputs: channels of the input.
        outputs: channels of the output.
        groups: feature groups: one, or as many as channels (a depthwise layer).
        padding: as in ``bandjax.band_conv``.
        bands: to time, as :func:`experiments.settings.bands.parse_band` reads them.
        peers: to time, unless others are asked for.
        without: why the other peers are not timed by themselves.
    """

    name: str
    group: str
    batch: int
    size: tuple[int, ...]
    taps: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int = 1
    padding: str = "SAME"
    bands: tuple[str, ...] = ("none", "compression=0.5", "compression=0.75")
    peers: tuple[str, ...] = LAYER_PEERS
    without: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(batch, *size, inputs)``."""
        return (self.batch, *self.size, self.inputs)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """``(*taps, inputs / groups, outputs)``."""
        return (*self.taps, self.inputs // self.groups, self.outputs)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(batch, *size, outputs)``; SAME and CIRCULAR keep the size."""
        return (self.batch, *self.size, self.outputs)

    @property
    def multiply_adds(self) -> int:
        """Real multiply-adds of the dense layer, forward."""
        return math.prod(self.output_shape) * math.prod(self.kernel_shape[:-1])

    def geometry(
        self, band: bandjax.Band = None, grid: tuple[int, ...] | None = None
    ) -> bandjax.ConvGeometry:
        """Grid, kept box and true compression at a band."""
        return bandjax.conv_geometry(
            self.input_shape,
            self.kernel_shape,
            band,
            padding=self.padding,
            feature_group_count=self.groups,
            grid=grid,
        )

    def about(self) -> str:
        """One line for a person."""
        kind = "depthwise" if self.groups > 1 else f"{self.inputs}→{self.outputs} channels"
        size, taps = ("×".join(map(str, lengths)) for lengths in (self.size, self.taps))
        channels = f" × {self.inputs}" if self.groups > 1 else ""
        return f"{taps}, {kind}, on {size}{channels}, {self.padding}, batch {self.batch}"


@dataclass(frozen=True)
class Network:
    """A training step of a ResNet with SGD and momentum.

    Attributes:
        name, group, batch, bands, peers, without: as in :class:`Layer`.
        image: ``(height, width, channels)`` of an example.
        classes: number of outputs.
        widths: channels of each stage.
        blocks: basic blocks of each stage.
    """

    name: str
    group: str
    batch: int
    image: tuple[int, int, int] = (32, 32, 3)
    classes: int = 10
    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bands: tuple[str, ...] = ("compression=0.5", "compression=0.75")
    peers: tuple[str, ...] = NETWORK_PEERS
    without: str = ""

    def about(self) -> str:
        """One line for a person."""
        image = "×".join(map(str, self.image))
        return f"a whole training step, SGD with momentum, on {image}, batch {self.batch}"


Workload: TypeAlias = Layer | Network


def _stages(group: str, suffix: str, batch: int) -> list[Workload]:
    widths_and_sizes = ((64, 32), (128, 16), (256, 8), (512, 4))
    bands = ("none", "compression=0.5", "compression=0.75", "compression=0.9")
    return [
        Layer(f"stage{n}{suffix}", group, batch, (s, s), (3, 3), c, c, bands=bands)
        for n, (c, s) in enumerate(widths_and_sizes, start=1)
    ]


def _fcn() -> list[Workload]:
    return [
        Layer(f"fcn{length}-conv{n}", "fcn", 16, (length,), (taps,), inputs, outputs)
        for length in (270, 4096)
        for n, taps, inputs, outputs in ((2, 5, 128, 256), (3, 3, 256, 128))
    ]


def _depthwise() -> list[Workload]:
    return [
        Layer(f"depthwise{k}", "depthwise", 8, (56, 56), (k, k), 64, 64, groups=64) for k in (7, 31)
    ]


_FNO = Layer(
    "fno",
    "fno",
    16,
    (64, 64),
    (64, 64),
    32,
    32,
    padding="CIRCULAR",
    bands=("modes=12,12",),
    peers=("fft",),
    without="a dense layer of 64×64 taps is nobody's choice; the grid of 64 is a power of two",
)

WORKLOADS: tuple[Workload, ...] = (
    *_stages("stages", "", 128),
    *_stages("stages-32", "-32", 32),
    *_fcn(),
    *_depthwise(),
    Layer("volume", "volume", 4, (32, 32, 32), (3, 3, 3), 32, 32),
    _FNO,
    Network("resnet18", "resnet18", 128),
)

GROUPS = {
    "stages": "the 3×3 layers of ResNet-18's four stages, batch 128",
    "stages-32": "the same, batch 32",
    "fcn": "layers of the fully convolutional network on long and short time series",
    "depthwise": "depthwise layers with small and large kernels",
    "volume": "a three-dimensional layer",
    "fno": "a periodic layer as in a Fourier neural operator: a kernel of its map's size, 12 modes",
    "resnet18": "a whole training step of ResNet-18 (3×3 stem, no max pooling)",
}


def select(
    names: Iterable[str], *, batch: int | None = None, bands: tuple[str, ...] | None = None
) -> list[Workload]:
    """The workloads of the given names, each once, in their own order.

    Args:
        names: of workloads or groups, or ``all``.
        batch: in place of each workload's own.
        bands: in place of each workload's own.

    Raises:
        UserError: a name is unknown, or a number or a band cannot be.
    """
    names = list(names)
    known = {*GROUPS, *(w.name for w in WORKLOADS), "all"}
    for name in names:
        if name not in known:
            raise UserError(f"unknown workload {name!r}; --list shows them")
    if not names:
        raise UserError("need at least one workload; --list shows them")
    if batch is not None and batch < 1:
        raise UserError(f"--batch must be >= 1, got {batch}")
    if bands is not None and not bands:
        raise UserError("need at least one band")
    chosen = [w for w in WORKLOADS if {"all", w.group, w.name} & {*names}]
    if batch is not None:
        chosen = [replace(w, batch=batch) for w in chosen]
    if bands is not None:
        labels = tuple(dict.fromkeys(parse_fixed_band(text)[0] for text in bands))
        chosen = [replace(w, bands=labels) for w in chosen]
        for workload in chosen:
            _check_bands(workload)
    return chosen


def _check_bands(workload: Workload) -> None:
    for label in workload.bands:
        try:
            if isinstance(workload, Layer):
                workload.geometry(parse_band(label)[1])
        except ValueError as error:
            raise UserError(f"band {label!r} on {workload.name}: {error}") from error
