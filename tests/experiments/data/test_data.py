"""The loaders: right values from the official layouts, one clear line for anything else."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from archives import NORMALISED, write_batches, write_cifar, write_ucr

from experiments import data
from experiments.data import cifar10, cifar100
from experiments.settings.errors import UserError


def test_digits_split_is_fixed_and_stratified():
    first, second = data.load("digits"), data.load("digits")
    assert first.x_train.shape == (1437, 8, 8, 1)
    assert first.x_test.shape == (360, 8, 8, 1)
    assert first.x_train.dtype == np.float32
    assert first.y_train.dtype == np.int32
    assert first.x_train.min() == 0
    assert first.x_train.max() == 1
    np.testing.assert_array_equal(first.x_test, second.x_test)
    shares = np.bincount(first.y_test) / 360 - np.bincount(first.y_train) / 1437
    assert np.abs(shares).max() < 0.003
    train = {image.tobytes() for image in first.x_train}
    assert len(train) == 1437
    assert not train & {image.tobytes() for image in first.x_test}


def test_limited_keeps_the_first_training_examples_and_every_test_example():
    dataset = data.load("digits")
    few = dataset.limited(17)
    np.testing.assert_array_equal(few.x_train, dataset.x_train[:17])
    np.testing.assert_array_equal(few.y_train, dataset.y_train[:17])
    assert len(few.x_test) == 360
    assert few.classes == 10


@pytest.mark.parametrize("nested", [True, False])
def test_ucr_values_and_labels(tmp_path, nested):
    write_ucr(tmp_path, NORMALISED, "7\t1\t-1\t-1\t1\n")
    root = tmp_path if nested else tmp_path / "UCRArchive_2018"
    dataset = data.load("ucr:Tiny", root)
    assert dataset.name == "ucr:Tiny"
    assert dataset.classes == 2
    assert dataset.y_train.tolist() == [0, 1]
    assert dataset.y_test.tolist() == [1]
    assert dataset.x_train.dtype == np.float32
    np.testing.assert_array_equal(dataset.x_train[..., 0], [[1, -1, 1, -1], [-1, -1, 1, 1]])
    np.testing.assert_array_equal(dataset.x_test, [[[1], [-1], [-1], [1]]])


def test_ucr_raw_series_are_normalised_one_by_one(tmp_path):
    write_ucr(tmp_path, "1\t10\t20\t30\n2\t5\t5\t5\n", "1\t0\t3\t0\n")
    dataset = data.load("ucr:Tiny", tmp_path)
    root = np.sqrt(1.5)
    np.testing.assert_allclose(dataset.x_train[..., 0], [[-root, 0, root], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(
        dataset.x_test[0, :, 0], [-np.sqrt(0.5), np.sqrt(2), -np.sqrt(0.5)], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("1\t0\tNaN\t1\n", NORMALISED, r"TRAIN.tsv, line 1: a value is missing"),
        ("1\t0\t1\t1\n1\t0\t1\n", NORMALISED, r"line 2: 3 fields, expected 4 as on line 1"),
        (NORMALISED + "7\t1\t-", NORMALISED, r"line 3: could not convert"),
        (NORMALISED, "7\t1\t1\t-1\t-1\n1", r"TEST.tsv, line 2: 1 fields, expected 5"),
        ("", NORMALISED, r"TRAIN.tsv: the file is empty"),
        ("1.5\t0\t1\n", NORMALISED, r"line 1: label 1.5 is not a whole number"),
        ("\xff\xfe", NORMALISED, r"TRAIN.tsv: cannot be read"),
        (NORMALISED, "3\t1\t-1\t1\t-1\n", r"test label 3 is not in the training file"),
        (NORMALISED, "7\t1\t-1\n", r"training series have length 4, test series 2"),
    ],
)
def test_ucr_malformed(tmp_path, train, test, message):
    write_ucr(tmp_path, train, test)
    with pytest.raises(UserError, match=message) as caught:
        data.load("ucr:Tiny", tmp_path)
    assert "\n" not in str(caught.value)


def test_ucr_missing_file(tmp_path):
    write_ucr(tmp_path, NORMALISED, NORMALISED)
    (tmp_path / "UCRArchive_2018/Tiny/Tiny_TEST.tsv").unlink()
    with pytest.raises(UserError, match=r"Tiny_TEST\.tsv: no such file"):
        data.load("ucr:Tiny", tmp_path)
    with pytest.raises(UserError, match=r"UCR set 'Other' not found"):
        data.load("ucr:Other", tmp_path)
    with pytest.raises(UserError, match=r"consists of letters and digits"):
        data.load("ucr:../Tiny", tmp_path)


def test_cifar10_values(tmp_path, monkeypatch):
    batches = write_cifar(tmp_path, monkeypatch)
    dataset = data.load("cifar10", tmp_path)
    assert dataset.x_train.shape == (15, 32, 32, 3)
    assert dataset.x_train.dtype == np.float32
    assert dataset.y_train.dtype == np.int32
    assert dataset.classes == 10
    assert dataset.y_train[3:6].tolist() == batches["data_batch_2"][1].tolist()
    assert dataset.y_test.tolist() == batches["test_batch"][1].tolist()
    # A row of the file is red, then green, then blue, each plane row by row.
    stored = batches["data_batch_2"][0][1, 2 * 1024 + 5 * 32 + 7]
    back = dataset.x_train[4, 5, 7, 2] * cifar10.DEVIATION[2] + cifar10.MEAN[2]
    assert back * 255 == pytest.approx(int(stored), abs=1e-3)


def test_cifar100_values(tmp_path, monkeypatch):
    batches = write_batches(tmp_path, monkeypatch, cifar100, b"fine_labels", 100)
    dataset = data.load("cifar100", tmp_path)
    assert (dataset.name, dataset.classes) == ("cifar100", 100)
    assert dataset.x_train.shape == dataset.x_test.shape == (3, 32, 32, 3)
    assert dataset.y_train.tolist() == batches["train"][1].tolist()
    assert dataset.y_test.tolist() == batches["test"][1].tolist()
    stored = batches["test"][0][2, 1024 + 31 * 32 + 4]
    back = dataset.x_test[2, 31, 4, 1] * cifar100.DEVIATION[1] + cifar100.MEAN[1]
    assert back * 255 == pytest.approx(int(stored), abs=1e-3)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
@pytest.mark.parametrize(
    ("module", "key", "name"),
    [(cifar10, b"labels", "data_batch_3"), (cifar100, b"fine_labels", "train")],
)
def test_cifar_damaged(tmp_path, monkeypatch, damage, module, key, name):
    write_batches(tmp_path, monkeypatch, module, key, 10)
    path = tmp_path / module.FOLDER / name
    raw = bytearray(path.read_bytes())
    if damage == "truncated":
        del raw[-1]
    else:
        raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=rf"{name}: damaged or not the official file \(MD5"):
        data.load(module.__name__.rpartition(".")[2], tmp_path)


def test_cifar_missing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="CIFAR-10 not found: no folder"):
        data.load("cifar10", tmp_path)
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / cifar10.FOLDER / "test_batch").unlink()
    with pytest.raises(UserError, match="test_batch: no such file"):
        data.load("cifar10", tmp_path)
    with pytest.raises(UserError, match=r"CIFAR-100 not found: no folder .*cifar-100-python"):
        data.load("cifar100", tmp_path)
    write_batches(tmp_path, monkeypatch, cifar100, b"fine_labels", 100)
    (tmp_path / cifar100.FOLDER / "test").unlink()
    with pytest.raises(UserError, match="cifar-100-python/test: no such file"):
        data.load("cifar100", tmp_path)


class _Call:
    def __reduce__(self):
        return print, ("called from a data file",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_Call(), r"print is not allowed in a data file"),
        ({"labels": []}, r"not a CIFAR batch file"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, r"not a CIFAR batch file"),
    ],
)
def test_cifar_unpickler_is_restricted(tmp_path, monkeypatch, capsys, content, message):
    """Even a file with the expected sum may not call anything, nor hold anything else."""
    write_cifar(tmp_path, monkeypatch)
    raw = pickle.dumps(content, protocol=3)
    (tmp_path / cifar10.FOLDER / "data_batch_1").write_bytes(raw)
    sums = {**cifar10.MD5, "data_batch_1": hashlib.md5(raw, usedforsecurity=False).hexdigest()}
    monkeypatch.setattr(cifar10, "MD5", sums)
    with pytest.raises(UserError, match=message):
        data.load("cifar10", tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mnist",
            r"unknown data set 'mnist'; known: digits, cbf:SEED, ucr:NAME, cifar10, cifar100",
        ),
        ("ucr:", r"unknown data set 'ucr:'"),
        ("cifar10:x", r"unknown data set 'cifar10:x'"),
        ("ucr:Coffee", r"needs --data-dir"),
        ("cifar10", r"needs --data-dir"),
    ],
)
def test_unknown_set_or_no_folder(name, message):
    with pytest.raises(UserError, match=message):
        data.load(name)


def test_data_dir_must_exist(tmp_path):
    with pytest.raises(UserError, match=r"data directory .* does not exist"):
        data.load("cifar10", tmp_path / "nowhere")


def test_digits_enlarged():
    small, large = data.load("digits"), data.load("digits", None, 24)
    assert large.x_train.shape == (1437, 24, 24, 1)
    np.testing.assert_array_equal(
        large.x_train[5, 9:12, 3:6], small.x_train[5, 3:4, 1:2].repeat(3, 0).repeat(3, 1)
    )
    with pytest.raises(UserError, match=r"image_size of digits must be a multiple of 8, got 12"):
        data.load("digits", None, 12)


def test_cylinder_bell_and_funnel():
    first, other = data.load("cbf:0"), data.load("cbf:1")
    assert first.x_train.shape == (30, 128, 1)
    assert first.x_test.shape == (300, 128, 1)
    assert np.bincount(first.y_train).tolist() == [10, 10, 10]
    assert not np.array_equal(first.x_train, other.x_train)
    np.testing.assert_array_equal(first.x_train, data.load("cbf:0").x_train)
    np.testing.assert_allclose(first.x_test.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(first.x_test.std(1), 1, atol=1e-5)
    # A cylinder stays up; a bell is highest at its end, a funnel at its beginning.
    x = np.concatenate([first.x_train, first.x_test])[..., 0]
    y = np.concatenate([first.y_train, first.y_test])
    peaks = [np.median(x[y == label].argmax(1)) for label in range(3)]
    assert peaks[2] < peaks[0] < peaks[1]
    with pytest.raises(UserError, match=r"cbf:SEED takes a whole number, got 'x'"):
        data.load("cbf:x")


def test_ucr_training_file_in_halves(tmp_path):
    lines = [f"{label}\t{value}\t0\t1" for value, label in enumerate([1, 1, 2, 1, 2, 2, 2])]
    write_ucr(tmp_path, "\n".join(lines) + "\n", "1\t1\t1\t1\n")
    (tmp_path / "UCRArchive_2018/Tiny/Tiny_TEST.tsv").unlink()
    whole = np.array([[value, 0, 1] for value in range(7)], float)
    whole = (whole - whole.mean(1, keepdims=True)) / whole.std(1, keepdims=True)
    dataset = data.load("ucr:Tiny:halves", tmp_path)
    for x, y, rows in (
        (dataset.x_train, dataset.y_train, [0, 2, 3, 5]),
        (dataset.x_test, dataset.y_test, [1, 4, 6]),
    ):
        np.testing.assert_allclose(x[..., 0], whole[rows], rtol=1e-6)
        assert y.tolist() == [[0, 0, 1, 0, 1, 1, 1][row] for row in rows]
    with pytest.raises(UserError, match=r"and :halves may follow"):
        data.load("ucr:Tiny:thirds", tmp_path)


def test_the_first_images_of_cifar100(tmp_path, monkeypatch):
    """From a file of Python 3, whose bytes are encoded texts, and shorter than the official one."""
    folder = tmp_path / cifar100.FOLDER
    folder.mkdir()
    random = np.random.default_rng(8)
    first = {}
    for name, count in (("train", 5), ("test", 4)):
        pixels = random.integers(0, 256, (count, 3072), np.uint8)
        labels = random.integers(0, 100, count)
        batch = {b"data": pixels, b"fine_labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        images = pixels[:3].reshape(3, 3, 32, 32).transpose(0, 2, 3, 1)
        digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
        digest.update(labels[:3].astype("<i4").tobytes())
        first[name] = (3, digest.hexdigest())
        last = images, labels
    monkeypatch.setattr(cifar100, "FIRST", first)
    dataset = data.load("cifar100:first20000", tmp_path)
    assert dataset.x_train.shape == dataset.x_test.shape == (3, 32, 32, 3)
    assert dataset.y_test.tolist() == last[1][:3].tolist()
    back = dataset.x_test * cifar100.DEVIATION + cifar100.MEAN
    np.testing.assert_allclose(back * 255, last[0], atol=1e-3)
    monkeypatch.setattr(cifar100, "FIRST", {**first, "test": (3, "0" * 64)})
    with pytest.raises(UserError, match=r"test: its first 3 images are not those of the official"):
        data.load("cifar100:first20000", tmp_path)
