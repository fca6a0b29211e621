"""The settings of a training run, and their defaults: those of the paper for each network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bandjax._conv.options import METHODS
from experiments.settings.codecs import parse_codec
from experiments.settings.errors import UserError

Method = Literal[METHODS]  # type: ignore[valid-type]  # of the library, whatever it has
Implementation = Literal["auto", "xla", "native"]
ResidualDtype = Literal["float32", "bfloat16", "int8"]
Remat = Literal["none", "spectra", "blocks", "inputs"]
Optimizer = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine", "onecycle", "plateau"]
Augment = Literal["none", "flip-crop", "random-resized-crop"]
Precision = Literal["float32", "bf16", "fp16"]
ParamDomain = Literal["spatial", "spectral"]


@dataclass(frozen=True)
class Settings:
    """Everything that a run's result depends on, but for its band and its seed.

    Attributes:
        model: a name in ``experiments.models.MODELS``.
        data: a name that ``experiments.data.load`` knows.
        image_size: height and width to which images of tensorflow-datasets are cut; None for 224
            where they have no common size.
        limit: train on the first so many examples; None for all.
        method: how bandjax computes the convolutions.
        implementation: whether by plain JAX, by native kernels, or as bandjax chooses.
        residual_dtype: type in which the spectra are kept for the backward pass.
        remat: ``spectra`` keeps them alone, and recomputes all else; ``blocks`` too, but a block of
            the network at a time, which needs less memory meanwhile and more time; ``inputs`` keeps
            the input of each block alone (``jax.checkpoint``); ``none`` keeps everything.
        saved: by which codec the rest is kept, see ``experiments.settings.codecs``.
        param_domain: ``spectral`` for filters whose parameters are their spectra.
        epochs: passes over the training examples.
        precision: type in which the layers compute; parameters and batch statistics are float32.
            ``fp16`` scales the loss, so that small gradients are not lost.
        batch_size: examples of which a gradient is taken at a time.
        accumulate: so many such gradients are averaged for one step. That equals a batch so many
            times larger, but for batch norm, which normalises each of the small batches by its
            own statistics.
        learning_rate: the first step's learning rate; with ``onecycle`` the highest.
        optimizer: Adam, or SGD with momentum.
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        weight_decay: this times each parameter is added to its gradient (L2), before momentum or
            Adam's moments.
        label_smoothing: share of each label that is spread evenly over all classes, in training
            alone.
        augment: ``flip-crop`` mirrors each training image left to right with probability one half
            and shifts it by up to 4 pixels along each axis; ``random-resized-crop`` takes a random
            part of it, mirrored or not, see ``experiments.data.tfds``; ``none`` does neither.
        schedule: ``constant``; ``cosine`` decay to zero over all steps; ``onecycle``, a rise from
            a 25th over 30 % of the steps and a fall to a 10,000th of that; ``plateau``, which
            multiplies the rate by ``plateau_factor`` when the training loss of
            ``plateau_patience`` epochs in a row has not come below its best.
        plateau_factor: see ``schedule``.
        plateau_patience: see ``schedule``.
    """

    model: str
    data: str
    image_size: int | None = None
    limit: int | None = None
    method: Method = "auto"
    implementation: Implementation = "auto"
    residual_dtype: ResidualDtype = "float32"
    remat: Remat = "none"
    saved: str = "none"
    param_domain: ParamDomain = "spatial"
    epochs: int = 30
    precision: Precision = "float32"
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-3
    optimizer: Optimizer = "adam"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augment: Augment = "none"
    schedule: Schedule = "constant"
    plateau_factor: float = 0.5
    plateau_patience: int = 50

    def __post_init__(self) -> None:
        """Checks what no data set is needed for."""
        for name in ("epochs", "batch_size", "accumulate", "plateau_patience"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
            _require(getattr(self, name) < 2**31, f"{name} must be below 2^31", getattr(self, name))
        if parse_codec(self.saved) is not None and self.remat in ("spectra", "blocks"):
            raise UserError(
                f"saved {self.saved!r} goes with remat none or inputs: spectra are what "
                f"remat {self.remat} keeps"
            )
        size = self.image_size
        _require(size is None or size >= 1, "image_size must be at least 1", size)
        _require(self.limit is None or self.limit >= 1, "limit must be at least 1", self.limit)
        rate = self.learning_rate
        _require(0 < rate < math.inf, "learning_rate must be positive and finite", rate)
        _require(0 <= self.momentum < 1, "momentum must satisfy 0 <= momentum < 1", self.momentum)
        nesterov = not self.nesterov or (self.optimizer == "sgd" and self.momentum > 0)
        _require(nesterov, "nesterov needs --optimizer sgd and a momentum", self.optimizer)
        decay = self.weight_decay
        _require(0 <= decay < math.inf, "weight_decay must be finite and not negative", decay)
        smoothing = self.label_smoothing
        _require(
            0 <= smoothing < 1, "label_smoothing must satisfy 0 <= label_smoothing < 1", smoothing
        )
        factor = self.plateau_factor
        _require(0 < factor < 1, "plateau_factor must satisfy 0 < plateau_factor < 1", factor)

    def as_dict(self) -> dict[str, Any]:
        """The settings as they are written into a record."""
        return asdict(self)


# What each network's experiment in the paper used; CNN, ResNet-8 and ResNet-20 are not in it.
_DEEP = {
    "epochs": 350,
    "batch_size": 32,
    "learning_rate": 0.01,
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "augment": "flip-crop",
    "schedule": "plateau",
    "plateau_factor": 0.1,
    "plateau_patience": 10,
}
# As He et al. trained it, but for the schedule: they lowered the rate in two steps.
_SMALL_RESNET = {
    "epochs": 164,
    "batch_size": 128,
    "learning_rate": 0.1,
    "optimizer": "sgd",
    "weight_decay": 1e-4,
    "augment": "flip-crop",
    "schedule": "cosine",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "cnn": {"epochs": 30, "batch_size": 64, "schedule": "cosine"},
    "fcn": {"epochs": 300, "batch_size": 16, "schedule": "plateau"},
    "lenet": {"epochs": 300, "batch_size": 64, "optimizer": "sgd"},
    "resnet8": _SMALL_RESNET,
    "resnet20": _SMALL_RESNET,
    "resnet20-projection": _SMALL_RESNET,
    "resnet18": _DEEP,
    "resnet18-pool": _DEEP,
    "resnet50": {**_DEEP, "learning_rate": 0.1, "weight_decay": 1e-4},
    "densenet121": {**_DEEP, "weight_decay": 1e-4},
    "densenet121-12": {**_DEEP, "weight_decay": 1e-4},
    "densenet13-12": {**_DEEP, "weight_decay": 1e-4},
}


def settings_for(model: str, data: str, **chosen: Any) -> Settings:
    """The model's default settings, with those that the user chose (not None) in their place.

    A mirrored digit is not a digit: there the default is not to augment. For ImageNet it is the
    random crop that is usual for it.
    """
    defaults = dict(DEFAULTS.get(model, {}))
    if data.startswith(("digits", "tfds:mnist")):
        defaults.pop("augment", None)
    elif data.startswith(("tfds:imagenet2012", "tfds:imagenette")) and "augment" in defaults:
        defaults["augment"] = "random-resized-crop"
    given = {name: value for name, value in chosen.items() if value is not None}
    return Settings(model=model, data=data, **{**defaults, **given})


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise UserError(f"{rule}, got {value}")
