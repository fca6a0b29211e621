"""The data sets, by name, as float32 arrays with channels last."""

from __future__ import annotations

from pathlib import Path

from experiments.data._dataset import Arrays as Arrays
from experiments.data._dataset import Dataset as Dataset
from experiments.data._dataset import Source as Source
from experiments.data._dataset import StoredDataset as StoredDataset
from experiments.data.cbf import load_cbf
from experiments.data.cifar10 import load_cifar10
from experiments.data.cifar100 import load_cifar100, load_first_of_cifar100
from experiments.data.digits import load_digits
from experiments.data.tfds import PREFIX, load_tfds
from experiments.data.ucr import load_ucr
from experiments.settings.errors import UserError

NAMES = "digits, cbf:SEED, ucr:NAME, cifar10, cifar100, cifar100:first20000, tfds:NAME"
_CIFAR = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "cifar100:first20000": load_first_of_cifar100,
}


def load(
    name: str, data_dir: Path | None = None, image_size: int | None = None
) -> Dataset | StoredDataset:
    """Load a data set.

    Args:
        name: ``digits`` (8x8 images, part of scikit-learn), ``cbf:SEED`` (generated time series),
            ``ucr:NAME`` (a set of the UCR time series archive; ``ucr:NAME:halves`` its training
            file alone, split in two), ``cifar10``, ``cifar100`` (``cifar100:first20000`` its
            first training images alone), or ``tfds:NAME`` (images of tensorflow-datasets).
        data_dir: the folder with the unpacked official archives, or that with the sets that
            ``tfds build`` has prepared; digits and cbf need none.
        image_size: height and width to which images of tensorflow-datasets are cut, or digits
            enlarged.

    Raises:
        UserError: no such set, its files are missing, truncated or damaged, or ``image_size`` is
            not for it.
    """
    kind, _, member = name.partition(":")
    if image_size is not None and not name.startswith((PREFIX, "digits")):
        raise UserError(f"image_size is for digits and {PREFIX}NAME alone, not for {name}")
    if name == "digits":
        return load_digits(image_size)
    if kind == "cbf" and member:
        return load_cbf(member)
    if not (name in _CIFAR or (kind in ("ucr", "tfds") and member)):
        raise UserError(f"unknown data set {name!r}; known: {NAMES}")
    if data_dir is None:
        raise UserError(f"data set {name!r} needs --data-dir, the folder with its files")
    if not data_dir.is_dir():
        raise UserError(f"data directory {str(data_dir)!r} does not exist")
    if name.startswith(PREFIX):
        return load_tfds(member, data_dir, image_size)
    return _CIFAR[name](data_dir) if name in _CIFAR else load_ucr(member, data_dir)
