"""What is timed: convolutions of well-known networks, training steps, inference."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import bandjax
from experiments.settings.bands import parse_band, parse_fixed_band
from experiments.settings.errors import UserError

LAYER_PEERS = ("lax", "torch", "fft", "fft-pow2")
NETWORK_PEERS = ("flax", "torch")
INFERENCE_PEERS = (*NETWORK_PEERS, "onnxruntime", "openvino")
DIRECTIONS = ("train", "forward")


@dataclass(frozen=True)
class Layer:
    """One convolution.

    Attributes:
        name: for the command line and the tables.
        group: the workloads that are reported together.
        batch: examples.
        size: of the map, an entry for each spatial axis.
        taps: of the kernel.
        inputs: channels of the input.
        outputs: channels of the output.
        groups: feature groups.
        padding: as in ``bandjax.band_conv``.
        strides: of every axis.
        input_dilation: of every axis; above one, a transposed convolution.
        bands: to time, as :func:`experiments.settings.bands.parse_band` reads them.
        peers: to time, unless others are asked for.
        without: why the other peers are not timed by themselves.
        directions: in which it is timed, ``train`` (output and both gradients) and ``forward``.
    """

    name: str
    group: str
    batch: int
    size: tuple[int, ...]
    taps: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int = 1
    padding: str | int = "SAME"
    strides: int = 1
    input_dilation: int = 1
    bands: tuple[str, ...] = ("none", "compression=0.5", "compression=0.75")
    peers: tuple[str, ...] = LAYER_PEERS
    without: str = ""
    directions: tuple[str, ...] = DIRECTIONS

    @property
    def known_peers(self) -> tuple[str, ...]:
        """All that can compute it."""
        return LAYER_PEERS

    @property
    def points(self) -> int:
        """Points of all maps of the input: its size without the channels."""
        return self.batch * math.prod(self.size)

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
        """``(batch, *size_out, outputs)``."""
        return (self.batch, *(axis.out for axis in self.geometry().axes), self.outputs)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of ``bandjax.band_conv``."""
        return {
            "padding": self.padding,
            "strides": self.strides,
            "input_dilation": self.input_dilation,
            "feature_group_count": self.groups,
        }

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
            grid=grid,
            **self.arguments,
        )

    def about(self) -> str:
        """One line for a person."""
        size, taps = ("×".join(map(str, lengths)) for lengths in (self.size, self.taps))
        depthwise = self.groups == self.inputs == self.outputs > 1
        parts = [taps, "depthwise" if depthwise else f"{self.inputs}→{self.outputs} channels"]
        if self.groups > 1 and not depthwise:
            parts.append(f"{self.groups} groups")
        if self.strides > 1:
            parts.append(f"stride {self.strides}")
        if self.input_dilation > 1:
            parts.append(f"transposed by {self.input_dilation}")
        parts.append(f"on {size} × {self.inputs}" if depthwise else f"on {size}")
        padding = f"padding {self.padding}" if isinstance(self.padding, int) else self.padding
        return ", ".join([*parts, padding, f"batch {self.batch}"])


@dataclass(frozen=True)
class Network:
    """A ResNet: a training step with SGD and momentum, or inference.

    Attributes:
        name, group, batch, bands, peers, without: as in :class:`Layer`.
        image: ``(height, width, channels)`` of an example.
        classes: number of outputs.
        widths: channels of each stage.
        blocks: basic blocks of each stage.
        stem_pool: whether a max pooling of stride 2 follows the stem.
        directions: ``train`` (a step) or ``forward`` (logits, by running statistics), or both.
    """

    name: str
    group: str
    batch: int
    image: tuple[int, int, int] = (32, 32, 3)
    classes: int = 10
    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    stem_pool: bool = False
    bands: tuple[str, ...] = ("none", "compression=0.5", "compression=0.75")
    peers: tuple[str, ...] = NETWORK_PEERS
    without: str = ""
    directions: tuple[str, ...] = ("train",)

    @property
    def known_peers(self) -> tuple[str, ...]:
        """All that can compute it."""
        return NETWORK_PEERS if "train" in self.directions else INFERENCE_PEERS

    def about(self) -> str:
        """One line for a person."""
        image = "×".join(map(str, self.image))
        what = (
            "a whole training step, SGD with momentum" if "train" in self.directions else "logits"
        )
        return f"{what}, on {image}, batch {self.batch}"


Workload: TypeAlias = Layer | Network


def what(workload: Workload, direction: str) -> str:
    """What a call computes, for titles."""
    if isinstance(workload, Layer):
        return "y, dx and dw" if direction == "train" else "y alone"
    return "a step" if direction == "train" else "logits"


def as_record(workload: Workload) -> dict[str, Any]:
    """A workload for JSON."""
    kind = type(workload).__name__
    return {"kind": kind, **{f.name: getattr(workload, f.name) for f in fields(workload)}}


def from_record(record: dict[str, Any]) -> Workload:
    """The workload that :func:`as_record` was given."""
    kinds: dict[str, type[Workload]] = {"Layer": Layer, "Network": Network}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k != "kind"}
    return kinds[record["kind"]](**values)


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


def _maps() -> list[Workload]:
    peers, without = ("lax", "torch"), "the composition of jnp.fft takes minutes"
    sizes = ((8, 64, 64), (8, 128, 32), (2, 256, 32), (1, 512, 16))
    layers = [
        Layer(f"map{s}", "maps", n, (s, s), (3, 3), c, c, peers=peers, without=without)
        for n, s, c in sizes
    ]
    volumes = [
        Layer(f"volume{s}", "volumes", 1, (s,) * 3, (3,) * 3, c, c, peers=peers, without=without)
        for s, c in ((64, 16), (96, 32))
    ]
    return [*layers, *volumes]


def _users() -> list[Workload]:
    """Layers that users of JAX have reported to be slow."""
    common: dict[str, Any] = {
        "peers": ("lax",),
        "without": "the question is whether to leave the dense convolution",
    }
    up = {"padding": 2, "input_dilation": 2, **common}
    return [
        Layer("up-3d", "users", 2, (16,) * 3, (4,) * 3, 64, 64, **up),
        Layer("up-3d-to-one", "users", 2, (16,) * 3, (4,) * 3, 64, 1, **up),
        Layer("up-2d", "users", 8, (16, 16), (4, 4), 64, 64, **up),
        Layer("up-1d", "users", 8, (512,), (16,), 64, 64, padding=11, input_dilation=8, **common),
        Layer("grouped", "users", 16, (32, 32), (3, 3), 64, 64, groups=8, **common),
        Layer("depthwise3", "users", 16, (32, 32), (3, 3), 64, 64, groups=64, **common),
        Layer("taps100", "users", 8, (1024,), (100,), 32, 32, **common),
        Layer("taps1001", "users", 4, (16000,), (1001,), 1, 40, **common),
        Layer("taps16x16", "users", 4, (64, 64), (16, 16), 16, 16, **common),
        Layer("stem", "users", 8, (112, 112), (7, 7), 3, 64, strides=2, **common),
        Layer("to-one-3d", "users", 1, (32,) * 3, (3,) * 3, 32, 1, **common),
        Layer("small-map", "users", 32, (2, 2), (3, 3), 512, 512, **common),
    ]


def _scaling() -> list[Workload]:
    """Maps and volumes from small to large, so many at once that all have as many points."""
    common: dict[str, Any] = {
        "peers": ("lax", "torch", "fft"),
        "without": "the other composition shows how jnp.fft scales",
        "directions": ("train",),
    }
    layers = []
    for rank, channels, sizes in (
        (2, 32, (8, 16, 32, 64, 128, 256, 512)),
        (3, 16, (16, 24, 32, 48, 64, 96)),
    ):
        for s in sizes:
            batch = max(1, round(SCALING_POINTS / s**rank))
            shape = ((s,) * rank, (3,) * rank, channels, channels)
            layers.append(Layer(f"scale{rank}d-{s}", SCALING, batch, *shape, **common))
    return layers


def _inference() -> list[Workload]:
    bands = ("none", "compression=0.5", "compression=0.75", "compression=0.85")
    common: dict[str, Any] = {"bands": bands, "peers": INFERENCE_PEERS, "directions": ("forward",)}
    return [Network(f"infer{batch}", "inference", batch, **common) for batch in (32, 1)]


SCALING = "scaling"
SCALING_POINTS = 2**18  # of each batch
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
    *_maps(),
    *_users(),
    Layer("volume", "volume", 4, (32, 32, 32), (3, 3, 3), 32, 32),
    _FNO,
    Network("resnet18", "resnet18", 128),
    Network("resnet18-pool", "resnet18-pool", 128, stem_pool=True),
    *_inference(),
    *_scaling(),
)

GROUPS = {
    "stages": "the 3×3 layers of ResNet-18's four stages, batch 128",
    "stages-32": "the same, batch 32",
    "fcn": "layers of the fully convolutional network on long and short time series",
    "depthwise": "depthwise layers with small and large kernels",
    "maps": "3×3 layers on large maps",
    "volumes": "3×3×3 layers on large volumes",
    "users": "layers that users of JAX have reported to be slow",
    "volume": "a three-dimensional layer",
    "fno": "a periodic layer as in a Fourier neural operator: a kernel of its map's size, 12 modes",
    "resnet18": "a whole training step of ResNet-18 (3×3 stem, no max pooling)",
    "resnet18-pool": "the same with max pooling after the stem: maps of 16×16 to 2×2",
    "inference": "ResNet-18's logits (3×3 stem, no max pooling), batch 32 and batch 1",
    "scaling": "time a point against the size of the map, in a picture of its own",
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
