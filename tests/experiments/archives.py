"""Small data sets in the layouts of the official archives."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from experiments.data import cifar10


def write_ucr(root: Path, train: str, test: str, name: str = "Tiny") -> None:
    folder = root / "UCRArchive_2018" / name
    folder.mkdir(parents=True)
    (folder / f"{name}_TRAIN.tsv").write_text(train)
    (folder / f"{name}_TEST.tsv").write_text(test)


# Two series of mean 0 and standard deviation 1, the second with an outlying label.
NORMALISED = "-1\t1\t-1\t1\t-1\n7\t-1\t-1\t1\t1\n"


def python2_pickle(images: np.ndarray, labels: np.ndarray, key: bytes = b"labels") -> bytes:
    """The bytes that Python 2 wrote for ``{key: [...], "data": array}``, protocol 2."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    shape = b"K" + bytes([len(images)]) + b"M\x00\x0c\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    array += text(b"b") + b"\x87R(K\x01" + shape + dtype
    array += b"\x89T" + struct.pack("<I", images.size) + images.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(key) + numbers + text(b"data") + array + b"u."


def write_cifar(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Six batch files of three images in the official layout, and their sums as the expected."""
    return write_batches(root, monkeypatch, cifar10, b"labels", 10)


def write_batches(root, monkeypatch, module, key, classes):
    folder = root / module.FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    batches = {}
    sums = {}
    for name in module.MD5:
        batches[name] = rng.integers(0, 256, (3, 3072), np.uint8), rng.integers(0, classes, 3)
        raw = python2_pickle(*batches[name], key)
        (folder / name).write_bytes(raw)
        sums[name] = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(module, "MD5", sums)
    return batches
