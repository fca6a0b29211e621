"""The settings of a training run, and their defaults: those of the paper for each network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from experiments.errors import UserError

Method = Literal["auto", "fft", "dft", "direct"]
ResidualDtype = Literal["float32", "bfloat16", "int8"]
Remat = Literal["none", "spectra"]
Optimizer = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine", "plateau"]


@dataclass(frozen=True)
class Settings:
    """Everything that a run's result depends on, but for its band and its seed.

    Attributes:
        model: a name in ``experiments.models.MODELS``.
        data: a name that ``experiments.data.load`` knows.
        limit: train on the first so many examples; None for all.
        method: how bandjax computes the convolutions.
        residual_dtype: type in which the spectra are kept for the backward pass.
        remat: ``spectra`` keeps them alone, and recomputes all else; ``none`` keeps everything.
        epochs: passes over the training examples.
        batch_size: examples in a step.
        learning_rate: the first step's learning rate.
        optimizer: Adam, or SGD with momentum.
        momentum: of SGD.
        schedule: ``constant``; ``cosine`` decay to zero over all steps; ``plateau``, which
            multiplies the rate by ``plateau_factor`` when the training loss of
            ``plateau_patience`` epochs in a row has not come below its best.
        plateau_factor: see ``schedule``.
        plateau_patience: see ``schedule``.
    """

    model: str
    data: str
    limit: int | None = None
    method: Method = "auto"
    residual_dtype: ResidualDtype = "float32"
    remat: Remat = "none"
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Optimizer = "adam"
    momentum: float = 0.9
    schedule: Schedule = "constant"
    plateau_factor: float = 0.5
    plateau_patience: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "plateau_patience"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        _require(self.limit is None or self.limit >= 1, "limit must be at least 1", self.limit)
        rate = self.learning_rate
        _require(0 < rate < math.inf, "learning_rate must be positive and finite", rate)
        _require(0 <= self.momentum < 1, "momentum must satisfy 0 <= momentum < 1", self.momentum)
        factor = self.plateau_factor
        _require(0 < factor < 1, "plateau_factor must satisfy 0 < plateau_factor < 1", factor)

    def as_dict(self) -> dict[str, Any]:
        """The settings as they are written into a record."""
        return asdict(self)


# What each network's experiment in the paper used; the CNN is not in the paper.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cnn": {"epochs": 30, "batch_size": 64, "schedule": "cosine"},
    "fcn": {"epochs": 300, "batch_size": 16, "schedule": "plateau"},
    "lenet": {"epochs": 300, "batch_size": 64, "optimizer": "sgd"},
}


def settings_for(model: str, data: str, **chosen: Any) -> Settings:
    """The model's default settings, with those that the user chose (not None) in their place."""
    given = {name: value for name, value in chosen.items() if value is not None}
    return Settings(model=model, data=data, **{**DEFAULTS.get(model, {}), **given})


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise UserError(f"{rule}, got {value}")
