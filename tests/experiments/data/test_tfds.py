"""Images of tensorflow-datasets: mocked, and small real sets that the tests prepare."""

from __future__ import annotations

import io
import json
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import data
from experiments.data import Dataset, StoredDataset
from experiments.data.examples import place
from experiments.data.tfds import cut
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.train import main

CLASSES = 3


def png(image: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    file.seek(0)
    return file


def gradient(height: int, width: int, blue: int = 77) -> np.ndarray:
    """Red is the column's index, green the row's."""
    image = np.full((height, width, 3), blue, np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def prepare(folder, images, labels, *, shape=(None, None, 3), splits=("train", "test"), keys=None):
    """Write a set called ``small`` with the same examples in each split."""

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=shape, encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=CLASSES),
            }
            if keys == "text":
                features = {"text": tfds.features.Text(), "label": features["label"]}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                value = {"text": "word"} if keys == "text" else {"image": png(image)}
                yield index, {**value, "label": label}

    Small(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "small" / "1.0.0"


@pytest.fixture
def gradients(tmp_path):
    images = [gradient(20 + i, 30 + 2 * i, 10 * i) for i in range(7)]
    prepare(tmp_path, images, [i % CLASSES for i in range(7)])
    return tmp_path


def test_mocked_cifar_is_kept_in_memory(tmp_path):
    with tfds.testing.mock_data(num_examples=9):
        dataset = data.load("tfds:cifar10", tmp_path)
    assert isinstance(dataset, Dataset)
    assert dataset.x_train.shape == dataset.x_test.shape == (9, 32, 32, 3)
    assert dataset.classes == 10
    assert dataset.x_train.dtype == np.float32
    assert dataset.y_train.dtype == np.int32
    np.testing.assert_allclose(dataset.x_train.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.x_train.std((0, 1, 2)), 1, atol=1e-5)
    place(dataset)  # Finite, and the labels are right.


def test_mocked_imagenet_is_streamed_and_tested_on_its_validation_images(tmp_path, monkeypatch):
    asked = []
    with tfds.testing.mock_data(num_examples=6), monkeypatch.context() as patch:
        mocked = tfds.core.DatasetBuilder.as_data_source

        def spy(self, split, **others):
            asked.append(split)
            return mocked(self, split, **others)

        patch.setattr(tfds.core.DatasetBuilder, "as_data_source", spy)
        dataset = data.load("tfds:imagenet2012", tmp_path)
        assert isinstance(dataset, StoredDataset)
        assert (dataset.train.shape, dataset.classes) == ((6, 224, 224, 3), 1000)
        x, y = dataset.train.read(np.array([4, 1]), None)
    assert asked == ["train", "validation"]
    assert x.shape == (2, 224, 224, 3)
    assert np.abs(x).max() < 3  # Shifted and scaled: bytes would be up to 255.
    assert y.dtype == np.int32
    assert "tensorflow" not in sys.modules


def test_images_of_one_size(tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, 6, 4, 1), np.uint8)
    prepare(tmp_path, images, [0, 1, 2, 0, 1], shape=(6, 4, 1))
    dataset = data.load("tfds:small", tmp_path)
    expected = (images / 255 - (images / 255).mean()) / (images / 255).std()
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        # Each split is stored in an order of its own.
        order = np.abs(x[:, None] - expected).max((2, 3, 4)).argmin(1)
        assert sorted(order) == list(range(5))
        np.testing.assert_allclose(x, expected[order], atol=1e-5)
        np.testing.assert_array_equal(y, np.array([0, 1, 2, 0, 1])[order])
    assert dataset.example_shape == (6, 4, 1)

    stored = data.load("tfds:small", tmp_path, 3)
    assert isinstance(stored, StoredDataset)
    assert stored.test.shape == (5, 3, 3, 1)


def test_the_centre_is_cut_for_testing(gradients):
    dataset = data.load("tfds:small", gradients, 7)
    assert dataset.test.shape == (7, 7, 7, 3)
    x, labels = dataset.test.read(np.arange(7), None)
    pixels = 255 * (
        x * np.array([0.229, 0.224, 0.225], np.float32)
        + np.array([0.485, 0.456, 0.406], np.float32)
    )
    for image, label in zip(pixels, labels, strict=True):
        index = round(image[..., 2].mean() / 10)
        np.testing.assert_allclose(image[..., 2], 10 * index, atol=1e-3)
        assert label == index % CLASSES
        height = 20 + index
        steps = (np.arange(7) + 0.5) / 7 - 0.5
        columns = (30 + 2 * index) / 2 - 0.5 + 0.875 * height * steps
        rows = height / 2 - 0.5 + 0.875 * height * steps
        np.testing.assert_allclose(image[..., 0], np.broadcast_to(columns, (7, 7)), atol=1.01)
        np.testing.assert_allclose(image[..., 1], np.broadcast_to(rows[:, None], (7, 7)), atol=1.01)


def test_random_parts():
    image = gradient(180, 240)
    random = np.random.default_rng(3)
    areas, ratios, mirrored, corners = [], [], [], []
    for _ in range(400):
        part = cut(image, (16, 16), random).astype(float)
        assert part.shape == (16, 16, 3)
        assert (part[..., 2] == 77).all()
        columns, rows = part[:, :, 0].mean(0), part[:, :, 1].mean(1)
        mirrored.append(columns[0] > columns[-1])
        columns = columns[::-1] if mirrored[-1] else columns
        width, height = (line[-1] - line[0] for line in (columns, rows))
        assert rows[-1] > rows[0]
        width, height = width * 16 / 15, height * 16 / 15
        areas.append(width * height / (180 * 240))
        ratios.append(width / height)
        corners.append((columns[0] / 240, rows[0] / 180))
    assert 0.06 < min(areas) < 0.12
    assert 0.9 < max(areas) < 1.02
    assert 0.4 < np.mean(areas) < 0.56
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.43
    assert 160 < sum(mirrored) < 240
    assert np.max(corners, axis=0).min() > 0.5
    assert np.min(corners, axis=0).max() < 0.1


@pytest.mark.parametrize(("height", "width"), [(3, 255), (255, 3), (1, 1)])
def test_a_narrow_image_gives_its_centre(height, width):
    random = np.random.default_rng(0)
    parts = [cut(gradient(height, width), (4, 4), random).astype(float) for _ in range(20)]
    for part in parts:
        assert abs(part[..., 0].mean() - (width - 1) / 2) <= 2 or height == width
        assert abs(part[..., 1].mean() - (height - 1) / 2) <= 2 or height == width


def test_what_is_drawn_is_the_seed_s(gradients):
    dataset = data.load("tfds:small", gradients, 8)
    rows = np.array([5, 0, 3])
    one, again, other = (
        dataset.train.read(rows, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    x, y = dataset.train.read(rows, None)
    for i, row in enumerate(rows):
        alone, label = dataset.train.read(rows[i : i + 1], None)
        np.testing.assert_array_equal(alone[0], x[i])
        assert label[0] == y[i], row


def test_stored_images_of_one_size_are_cut_for_training_alone(tmp_path, monkeypatch):
    image = gradient(12, 20)
    prepare(tmp_path, [image] * 3, [0, 1, 2], shape=(12, 20, 3))
    monkeypatch.setattr("experiments.data.tfds.LARGEST", 100)
    dataset = data.load("tfds:small", tmp_path)
    assert isinstance(dataset, StoredDataset)
    assert dataset.train.shape == (3, 12, 20, 3)
    whole = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    rows = np.arange(3)
    np.testing.assert_allclose(dataset.test.read(rows, None)[0], [whole] * 3, atol=1e-5)
    parts, _ = dataset.train.read(rows, np.random.default_rng(0))
    assert parts.shape == (3, 12, 20, 3)
    assert all(np.abs(part - whole).max() > 0.01 for part in parts)


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_a_job_from_the_command_line(gradients, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--model", "cnn", "--data", "tfds:small", "--data-dir", str(gradients)]
    options += ["--image-size", "12", "--batch-size", "3", "--epochs", "2", "--seeds", "0"]
    options += ["--augment", "random-resized-crop", "--band", "compression=0.5"]
    assert main([*options, "--out", str(out)]) == 0
    record = json.loads((out / "compression-0.5_seed-0.json").read_text())
    assert record["config"]["image_size"] == 12
    assert record["config"]["augment"] == "random-resized-crop"
    losses = record["curves"]["train_loss"]
    assert main([*options, "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "compression-0.5_seed-0.json").read_text())
    assert again["curves"]["train_loss"] == losses
    plain = [word if word != "random-resized-crop" else "none" for word in options]
    assert main([*plain, "--out", str(tmp_path / "plain")]) == 0
    other = json.loads((tmp_path / "plain" / "compression-0.5_seed-0.json").read_text())
    assert other["curves"]["train_loss"] != losses
    capsys.readouterr()


def test_defaults():
    assert settings_for("resnet50", "tfds:imagenet2012").augment == "random-resized-crop"
    assert settings_for("resnet50", "tfds:cifar10").augment == "flip-crop"
    assert settings_for("cnn", "tfds:imagenet2012").augment == "none"
    assert settings_for("resnet18", "tfds:mnist:3.0.1").augment == "none"


def damage_nothing(folder):
    """The set is fine; what is asked of it is not."""


def cut_short(folder):
    file = next(folder.glob("*train*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def take_away(folder):
    next(folder.glob("*train*")).unlink()


def say_tfrecord(folder):
    file = folder / "dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (cut_short, "small", r"example \d of split 'train' cannot be read: "),
        (take_away, "small", r"example \d of split 'train' cannot be read: .*No such file"),
        (say_tfrecord, "small", "prepared as tfrecord, which needs TensorFlow"),
        (damage_nothing, "cifar10", "not prepared in .*: tfds build cifar10 --file_format=array"),
        (damage_nothing, "no_such_set", "Dataset no_such_set not found"),
        (damage_nothing, "small:9.9.9", "tfds:small:9.9.9: Dataset small not found"),
        (damage_nothing, "cifar10/none", "BuilderConfig none not found"),
        (damage_nothing, "../small", r"name string \.\./small failed"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(gradients, tmp_path, capsys, damage, name, words):
    damage(gradients / "small" / "1.0.0")
    options = ["--data", f"tfds:{name}", "--data-dir", str(gradients), "--image-size", "8"]
    options += ["--batch-size", "3", "--epochs", "1", "--seeds", "0", "--band", "none"]
    assert main([*options, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert re.search(words, said[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"splits": ("train",)}, "no split 'test' or 'validation', only train"),
        ({"splits": ("test",)}, "no split 'train', only test"),
        ({"keys": "text"}, "not one of images with a class each; it has"),
    ],
)
def test_sets_that_are_not_for_this(tmp_path, arguments, words):
    prepare(tmp_path, [gradient(8, 8)] * 3, [0, 1, 2], **arguments)
    with pytest.raises(UserError, match=words):
        data.load("tfds:small", tmp_path)


def test_a_label_that_is_not_a_class(gradients):
    file = gradients / "small/1.0.0/features.json"
    text = file.read_text()
    assert text.count('"numClasses": "3"') == 1
    file.write_text(text.replace('"numClasses": "3"', '"numClasses": "2"'))
    dataset = data.load("tfds:small", gradients, 8)
    with pytest.raises(UserError, match=r"of split 'train' has label 2, not one of 0 \.\. 1"):
        dataset.train.read(np.arange(7), None)


def test_validation_where_there_is_no_test_split(tmp_path):
    prepare(tmp_path, [gradient(8, 8)] * 3, [0, 1, 2], splits=("train", "validation"))
    assert data.load("tfds:small", tmp_path).test.shape == (3, 224, 224, 3)


def test_what_is_missing_or_not_for_it(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="needs --data-dir"):
        data.load("tfds:cifar10")
    with pytest.raises(UserError, match="unknown data set 'tfds:'"):
        data.load("tfds:", tmp_path)
    with pytest.raises(UserError, match="image_size of digits must be a multiple of 8, got 12"):
        data.load("digits", None, 12)
    with pytest.raises(UserError, match="image_size must be at least 1, got 0"):
        settings_for("cnn", "tfds:cifar10", image_size=0)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        UserError, match=r"needs tensorflow-datasets: pip install 'bandjax\[tfds\]'"
    ):
        data.load("tfds:cifar10", tmp_path)
