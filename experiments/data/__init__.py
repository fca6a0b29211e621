"""The data sets, by name, as float32 arrays with channels last."""

from __future__ import annotations

from pathlib import Path

from experiments.data._dataset import Arrays as Arrays
from experiments.data._dataset import Dataset as Dataset
from experiments.data._dataset import Source as Source
from experiments.data._dataset import StoredDataset as StoredDataset
from experiments.data.cifar10 import load_cifar10
from experiments.data.cifar100 import load_cifar100
from experiments.data.digits import load_digits
from experiments.data.ucr import load_ucr
from experiments.errors import UserError

NAMES = "digits, ucr:NAME, cifar10, cifar100"
_CIFAR = {"cifar10": load_cifar10, "cifar100": load_cifar100}


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: ``digits`` (8x8 images, part of scikit-learn), ``ucr:NAME`` (a set of the UCR time
            series archive), ``cifar10`` or ``cifar100``.
        data_dir: the folder with the unpacked official archives; digits needs none.

    Raises:
        UserError: no such set, or its files are missing, truncated or damaged.
    """
    if name == "digits":
        return load_digits()
    kind, _, member = name.partition(":")
    if not (name in _CIFAR or (kind == "ucr" and member)):
        raise UserError(f"unknown data set {name!r}; known: {NAMES}")
    if data_dir is None:
        raise UserError(f"data set {name!r} needs --data-dir, the folder with its files")
    if not data_dir.is_dir():
        raise UserError(f"data directory {str(data_dir)!r} does not exist")
    return _CIFAR[name](data_dir) if name in _CIFAR else load_ucr(member, data_dir)
