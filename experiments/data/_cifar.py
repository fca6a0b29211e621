"""What the two CIFAR sets have in common: batch files, which are pickles of Python 2."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.settings.errors import UserError


def folder_of(title: str, folder: Path) -> Path:
    """The folder itself.

    Raises:
        UserError: it is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{title} not found: no folder {folder}")
    return folder


def read_batch(path: Path, md5: str | None, key: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images ``(n, 32, 32, 3)`` and int32 labels ``(n,)`` of one batch file.

    Args:
        path: of the file.
        md5: its official sum; None for a file that is checked by what it holds.
        key: under which it has the labels.

    Raises:
        UserError: the file is missing, has another sum, or holds something else.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise UserError(f"{path}: damaged or not the official file (MD5 {found}, expected {md5})")
    try:
        # latin1 maps the bytes of Python 2's texts one to one.
        batch = _ArrayUnpickler(io.BytesIO(raw), encoding="latin1").load()
        images = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[key], np.int32).reshape(len(images))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a CIFAR batch file: {error}") from error
    return images.transpose(0, 2, 3, 1), labels


def standardised(images: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """uint8 images as float32, shifted and scaled by each channel's figures of 0 .. 1."""
    result = images.astype(np.float32)
    result /= 255  # In place: all of CIFAR is 600 MiB so.
    result -= mean
    result /= deviation
    return result


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, text, numbers and NumPy arrays; refuses to look up anything else.

    A plain unpickler would call whatever a file names. This one knows four names, and supplies
    NumPy's array constructor itself because its module has moved between versions of NumPy. Bytes
    that Python 3 wrote are texts of latin1 with the call that encodes them: they are left as texts,
    as Python 2's are read.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return lambda kind, shape, dtype: np.ndarray(shape, dtype)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
