"""Images to be classified from tensorflow-datasets, read without TensorFlow."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.data._dataset import Dataset, StoredDataset
from experiments.settings.errors import UserError

PREFIX = "tfds:"
DEFAULT_SIZE = 224  # pixels, of images that have no common size
LARGEST = 2**31  # bytes, of images that are kept in memory
# Mean and standard deviation of ImageNet's training images (red, green, blue), 0 .. 1.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
# Of a random crop: share of the image's area, ratio of width to height (Szegedy et al., "Going
# Deeper with Convolutions", CVPR 2015, section 6), and how often one is drawn before giving up.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
CENTRE = 0.875  # of the shorter side, that is used for testing


def load_tfds(name: str, data_dir: Path, image_size: int | None = None) -> Dataset | StoredDataset:
    """A data set of tensorflow-datasets that has been prepared in ``data_dir``.

    Images of one size that take no more than 2 GiB as float32 are read at once, and each channel
    is shifted and scaled by the training images' mean and standard deviation. Others stay on the
    disk. For training, if augmentation is asked for, a random part of each is taken (8 to 100 % of
    the area, 3:4 to 4:3), mirrored by chance, and scaled to the common size. Else, if they have no
    common size or ``image_size`` is given, it is the centre, 7/8 of the shorter side. Their
    channels are shifted and scaled by the mean and the deviation of ImageNet's training images.

    The test examples are the split ``test``, or ``validation`` where there is no test split or it
    has no labels (``imagenet2012``).

    Args:
        name: as ``tensorflow_datasets.builder`` takes it: ``cifar10``, ``imagenet2012``,
            ``imagenette/160px-v2``, ``mnist:3.0.1``.
        data_dir: the folder that ``tfds build --data_dir`` wrote to.
        image_size: height and width of the squares; by default 224, for images of varying size.

    Raises:
        UserError: tensorflow-datasets is not installed, or the data set is unknown, not one of
            images with labels, not prepared, prepared in a format that needs TensorFlow, or
            damaged.
    """
    builder = _builder(name, data_dir)
    image_key, label_key = builder.info.supervised_keys or ("image", "label")
    shape, classes = _features(name, builder.info.features, image_key, label_key)
    splits = {"train": "train", "test": _test_split(name, builder)}
    sources = {part: _open(name, builder, split, data_dir) for part, split in splits.items()}
    counts = {part: len(source) for part, source in sources.items()}
    squares = image_size is not None or None in shape
    size = image_size or DEFAULT_SIZE
    shape = (*((size, size) if squares else shape[:2]), shape[2] or 3)
    stored = squares or 4 * sum(counts.values()) * math.prod(shape) > LARGEST
    parts = {
        part: _Images(
            f"data set {PREFIX}{name}: example %d of split {splits[part]!r}",
            source,
            (image_key, label_key),
            (counts[part], *shape),
            classes,
            squares,
        )
        for part, source in sources.items()
    }
    if stored:
        identity = json.dumps([builder.info.full_name, shape, _sizes(builder)])
        return StoredDataset(PREFIX + name, parts["train"], parts["test"], classes, identity)
    (x, y), (x_test, y_test) = (part.pixels(np.arange(part.shape[0])) for part in parts.values())
    mean, deviation = x.mean((0, 1, 2)), x.std((0, 1, 2))
    for images in (x, x_test):
        np.subtract(images, mean, out=images)
        np.divide(images, np.where(deviation > 0, deviation, 1), out=images)
    return Dataset(PREFIX + name, x, y, x_test, y_test, classes)


@dataclass(frozen=True)
class _Images:
    """A split. ``read`` is what ``experiments.data.Source`` asks for."""

    title: str  # of an example, with %d
    examples: Any
    keys: tuple[str, str]
    shape: tuple[int, ...]
    classes: int
    squares: bool  # that are cut out of the images

    def read(
        self, rows: np.ndarray, random: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.pixels(rows, random)
        mean, deviation = (MEAN, DEVIATION) if x.shape[-1] == 3 else (MEAN.mean(), DEVIATION.mean())
        x -= mean
        x /= deviation
        return x, y

    def pixels(
        self, rows: np.ndarray, random: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images from 0 to 1 and their labels.

        Raises:
            UserError: an example cannot be read, or its label is not one of the classes.
        """
        x = np.empty((len(rows), *self.shape[1:]), np.float32)
        y = np.empty(len(rows), np.int32)
        for at, row in enumerate(rows.tolist()):
            title = self.title % row
            try:
                example = self.examples[row]
                image = np.asarray(example[self.keys[0]])
            except Exception as error:  # Whatever the readers and decoders raise.
                raise UserError(f"{title} cannot be read: {first_line(error)}") from error
            label = int(example[self.keys[1]])
            if not 0 <= label < self.classes:
                raise UserError(f"{title} has label {label}, not one of 0 .. {self.classes - 1}")
            if self.squares or random is not None:
                image = cut(image, x.shape[1:3], random)
            if image.shape != x.shape[1:]:
                raise UserError(f"{title} is {image.shape}, not {x.shape[1:]}")
            x[at], y[at] = image, label
        x /= np.iinfo(np.uint8).max
        return x, y


def cut(image: np.ndarray, size: tuple[int, ...], random: np.random.Generator | None) -> np.ndarray:
    """A part of an image ``(height, width, channels)`` of bytes, scaled.

    Args:
        image: any size.
        size: height and width of the result.
        random: chooses which part of the image is taken, and whether it is mirrored; None takes
            a square in the centre.
    """
    height, width = image.shape[:2]
    if random is None:
        side = CENTRE * min(height, width)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    else:
        box = _random_box(height, width, random)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    result = np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR, box=box))
    result = result.reshape(*size, image.shape[-1])
    return result[:, ::-1] if random is not None and random.random() < 0.5 else result


def _random_box(
    height: int, width: int, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge."""
    for _ in range(TRIES):
        area = random.uniform(*AREA) * height * width
        ratio = math.exp(random.uniform(*np.log(RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= w <= width and 1 <= h <= height:
            left, upper = random.integers(width - w + 1), random.integers(height - h + 1)
            return float(left), float(upper), float(left + w), float(upper + h)
    # A long and narrow image: the widest centre of an allowed ratio.
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, upper = (width - w) // 2, (height - h) // 2
    return float(left), float(upper), float(left + w), float(upper + h)


def _builder(name: str, data_dir: Path) -> Any:
    try:
        import array_record  # noqa: F401  # tensorflow-datasets reads with it.
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"data set {PREFIX}{name} needs tensorflow-datasets: pip install 'bandjax[tfds]'"
        ) from error
    # It warns of what is told below, and of decoders that it would rather have.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return tensorflow_datasets.builder(name, data_dir=data_dir)
    except Exception as error:  # ValueError, AssertionError and classes of its own.
        raise UserError(f"data set {PREFIX}{name}: {first_line(error)}") from error


def _features(
    name: str, features: Any, image_key: str, label_key: str
) -> tuple[tuple[int | None, ...], int]:
    """Shape of an image and number of classes."""
    import tensorflow_datasets as tfds

    known = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = known.get(image_key), known.get(label_key)
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"data set {PREFIX}{name} is not one of images with a class each; it has "
            f"{', '.join(known) or 'no named features'}"
        )
    if image.np_dtype != np.uint8:
        raise UserError(f"data set {PREFIX}{name}: pixels must be bytes, not {image.np_dtype}")
    return tuple(image.shape), int(label.num_classes)


def _test_split(name: str, builder: Any) -> str:
    """The split with which a network is tested."""
    known: Sequence[str] = list(builder.info.splits)
    order = ["test", "validation"]
    if name.startswith("imagenet2012"):
        order.reverse()  # The labels of its test images are not published.
    if known and "train" not in known:
        raise UserError(f"data set {PREFIX}{name} has no split 'train', only {', '.join(known)}")
    for split in order:
        if split in known or not known:
            return split
    raise UserError(
        f"data set {PREFIX}{name} has no split 'test' or 'validation', only {', '.join(known)}"
    )


def _open(name: str, builder: Any, split: str, data_dir: Path) -> Any:
    """One split of a prepared set, by index.

    Raises:
        UserError: it is not prepared, or not as array_record; told with the command that does it.
    """
    try:
        return builder.as_data_source(split=split)
    except Exception as error:
        command = f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
        if not builder.is_prepared():
            raise UserError(
                f"data set {PREFIX}{name} is not prepared in {str(data_dir)!r}: {command}"
            ) from error
        if isinstance(error, NotImplementedError):
            kind = builder.info.file_format
            raise UserError(
                f"data set {PREFIX}{name} is prepared as {kind.value}, which needs TensorFlow and "
                f"has no random access: {command}"
            ) from error
        raise UserError(f"data set {PREFIX}{name}: {first_line(error)}") from error


def _sizes(builder: Any) -> dict[str, list[int]]:
    """Of each split, the bytes and the examples of its files."""
    splits = builder.info.splits
    return {split: [info.num_bytes, *info.shard_lengths] for split, info in splits.items()}


def first_line(error: BaseException) -> str:
    """What an error says, without the lists that follow it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
