"""`soae data pack` and the files that it writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import save_file

from soae_ext.data import ImageData, load_data, load_digits
from soae_ext.data.decode import _scaled
from soae_ext.data.packed import load_packed, save_packed, to_bytes
from tests.cli_harness import assert_refused, call

GENERATOR = torch.Generator().manual_seed(0)
LEVELS = torch.randint(256, (6, 3, 5, 4), generator=GENERATOR, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
CLASSES = ("ant", "bee", "cat")


def data(rows=slice(None), images=None, labels=LABELS, classes=CLASSES):
    images = LEVELS.float() / 255 if images is None else images
    return ImageData(images[rows], labels[rows], "insects", classes)


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "insects.safetensors"
    save_packed({"train": data(), "test": data(slice(4, None))}, path)
    return path


def test_every_level_is_kept_exactly():
    levels = np.arange(256, dtype=np.uint8)
    decoded = torch.from_numpy(_scaled(levels))  # as pictures and parquet files are read
    assert torch.equal(to_bytes(decoded), torch.from_numpy(levels))
    assert torch.equal(to_bytes(decoded).float() / 255, decoded)


def test_splits_come_back_bit_by_bit(packed):
    train, test = load_data(str(packed), "train"), load_data(str(packed))
    for found, wanted in ((train, data()), (test, data(slice(4, None)))):
        assert found.fingerprint == wanted.fingerprint
        assert (found.images.dtype, found.labels.dtype) == (torch.float32, torch.int64)
        assert found.classes == CLASSES
    assert train.name == f"{packed} (train)"
    assert torch.equal(load_data(str(packed), "train", 2).images, data().images[:2])
    assert load_data(f"{packed}@3", "train").images.shape == (6, 3, 3, 3)


def test_the_file_is_plain(packed):
    """Another library finds what the documentation says."""
    tensors = load_numpy(packed)
    assert sorted(tensors) == ["test.images", "test.labels", "train.images", "train.labels"]
    np.testing.assert_array_equal(tensors["train.images"], LEVELS.numpy())
    assert tensors["train.images"].dtype == np.uint8
    with safe_open(packed, framework="np") as file:
        assert json.loads(file.metadata()["classes"]) == list(CLASSES)


def test_a_file_without_splits_is_read_whole(tmp_path):
    path = tmp_path / "own.safetensors"
    save_file({"images": LEVELS, "labels": LABELS.to(torch.uint8)}, path)
    for split in ("train", "test"):
        found = load_data(str(path), split)
        assert torch.equal(found.images, LEVELS.float() / 255)
        assert torch.equal(found.labels, LABELS)
        assert (found.classes, found.name) == (None, str(path))
    fine = torch.rand(2, 1, 4, 4, generator=GENERATOR)
    save_file({"images": fine, "labels": LABELS[:2]}, path)
    assert torch.equal(load_data(str(path)).images, fine)


def test_finer_pixels_are_refused_or_rounded(tmp_path):
    fine = data(images=(LEVELS.float() / 255 + 1e-3).clamp(0, 1))
    path = tmp_path / "fine.safetensors"
    with pytest.raises(ValueError, match="do not come from 8 bits"):
        save_packed({"test": fine}, path)
    assert not list(tmp_path.iterdir())
    save_packed({"test": fine}, path, rounding=True)
    assert torch.equal(load_packed(path, "test").images, data().images)
    halves = torch.tensor([0.5, 1.4, 254.6]) / 255
    assert to_bytes(halves, rounding=True).tolist() in ([0, 1, 255], [1, 1, 255])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "no split"),
        ({"a.b": data()}, "must be a word"),
        ({"train": data(), "test": data(images=torch.zeros(6, 1, 5, 4))}, "differ in shape"),
        ({"train": data(), "test": data(classes=None)}, "differ in classes"),
        ({"train": data(labels=LABELS + 1)}, "labels must lie in 0 to 2"),
        ({"train": data(images=LEVELS.float())}, r"must lie in \[0, 1\]"),
        ({"train": data(images=torch.full((6, 3, 5, 4), torch.nan))}, r"must lie in \[0, 1\]"),
        ({"train": data(slice(0))}, "no images"),
    ],
)
def test_what_is_not_packed(tmp_path, splits, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"kept")
    with pytest.raises(ValueError, match=message):
        save_packed(splits, path)
    assert path.read_bytes() == b"kept"
    assert [file.name for file in tmp_path.iterdir()] == ["bad.safetensors"]


def test_what_is_not_read(tmp_path, packed):
    def written(metadata=None, **tensors):
        path = tmp_path / "bad.safetensors"
        save_file(tensors, path, metadata)
        return path

    def refused(path, message, kind=ValueError, split="test", n=None):
        with pytest.raises(kind, match=message) as found:
            load_data(str(path), split, n)
        assert str(path) in str(found.value)
        assert "\n" not in str(found.value)

    refused(packed, "has no split val, only test, train", FileNotFoundError, "val")
    refused(packed, "n must be between 1 and 2", n=3)
    refused(written(weight=torch.zeros(2)), "holds no images")
    refused(written(images=LEVELS), "holds no images")
    refused(written(images=LEVELS[0], labels=LABELS[:3]), "expected images")
    refused(written(images=LEVELS, labels=LABELS[:3]), "expected images")
    refused(written(images=LEVELS[:, :, :0], labels=LABELS), "expected images")
    refused(written(images=LEVELS[:0], labels=LABELS[:0]), "no images")
    refused(written(images=LEVELS.long(), labels=LABELS), "images must be uint8")
    refused(written(images=LEVELS, labels=LABELS.float()), "labels must be whole numbers")
    refused(written(images=LEVELS, labels=LABELS - 1), "labels must lie in 0 upwards")
    refused(written(images=LEVELS.float(), labels=LABELS), r"must lie in \[0, 1\]")
    refused(written(images=torch.full((6, 1, 4, 4), torch.nan), labels=LABELS), r"must lie in \[0, 1\]")
    for text in ("ant,bee", '{"0": "ant"}', "[0, 1]"):
        refused(written({"classes": text}, images=LEVELS, labels=LABELS), "JSON list of names")
    refused(written({"classes": '["ant", "bee"]'}, images=LEVELS, labels=LABELS), "labels must lie in 0 to 1")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(packed.read_bytes()[:-50])
    refused(broken, "is truncated")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_packed(tmp_path / "none.safetensors", "test")


# The command


def test_the_command_packs_what_the_others_read(capfd, tmp_path):
    path = tmp_path / "digits.safetensors"
    status, out, err = call(capfd, "data", "pack", "digits", "--split", "test", "--n", "20", "--output", str(path))
    assert (status, err) == (0, "")
    assert out == f"{path}: test 20 images 1 x 28 x 28 of 10 classes, {path.stat().st_size / 1e6:.1f} MB\n"
    assert torch.equal(load_data(str(path)).images, load_digits().images[:20])
    status, out, _ = call(capfd, "attack", "--data", str(path), "--attack", "FGSM", "--n", "15")
    assert status == 0
    assert out.startswith(f"15 images of {path} (test)")


def test_each_split_has_its_number(capfd, tmp_path, packed):
    for numbers, wanted in ((["3", "1"], (3, 1)), (["2"], (2, 2)), ([], (6, 2))):
        path = tmp_path / "again.safetensors"
        words = ["data", "pack", str(packed), "--output", str(path), *(["--n", *numbers] if numbers else [])]
        assert call(capfd, *words)[0] == 0
        assert (len(load_packed(path, "train")), len(load_packed(path, "test"))) == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "SPEC: is required"),
        ("digits", "--output: is required"),
        ("digits --output {}/x.npz", "--output: must end in .safetensors"),
        ("digits --output {}/no/x.safetensors", "--output: no such directory"),
        ("digits --output {}/x.safetensors", "SPEC: digits: the shipped images are test images"),
        ("digits --output {}/x.safetensors --split", "--split: name at least one"),
        ("digits --output {}/x.safetensors --split test test", "--split: each only once"),
        ("digits --output {}/x.safetensors --split test --n 3 4", "--n: one number for all splits"),
        ("digits --output {}/x.safetensors --split test --n 0", "--n: must be at least 1"),
        ("digits --output {}/x.safetensors --split test --n 1001", "--n: must be between 1 and 1000"),
        ("digits --output {}/x.safetensors --split test --n 1.5", "--n: cannot take '1.5'"),
        ("digit --output {}/x.safetensors", "SPEC: no such file or directory: digit"),
        ("digits@14 --output {}/x.safetensors --split test", "SPEC: the pixels do not come from 8 bits"),
        ("digits other --output {}/x.safetensors", "other: unknown word"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_overwritten(capfd, tmp_path, words, message):
    kept = tmp_path / "x.safetensors"
    kept.write_bytes(b"kept")
    assert_refused(capfd, ["data", "pack", *words.format(tmp_path).split()], f"soae data pack: {message}")
    assert kept.read_bytes() == b"kept"
    assert [file.name for file in tmp_path.iterdir()] == [kept.name]


def test_rounding_from_the_command_line(capfd, tmp_path):
    path = tmp_path / "small.safetensors"
    words = ["data", "pack", "digits@14", "--split", "test", "--n", "5", "--output", str(path), "--round"]
    assert call(capfd, *words)[0] == 0
    distance = (load_packed(path, "test").images - load_data("digits@14", n=5).images).abs().max()
    assert distance <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("words", [["data"], ["data", "pac"]])
def test_half_a_command_names_the_whole(capfd, words):
    assert_refused(capfd, words, "soae: did you mean data pack?")


def test_cifar10_fits_the_limit_of_57_mb(capfd, data_dir, tmp_path):
    if not (data_dir / "cifar10").is_dir():
        pytest.skip("SOAE_DATA_DIR holds no folder cifar10")
    path = tmp_path / "cifar10.safetensors"
    words = ["data", "pack", f"cifar10:{data_dir}", "--n", "16667", "1000", "--output", str(path)]
    status, out, err = call(capfd, *words)
    assert status == 0, err
    assert "train 16,667, test 1,000 images 3 x 32 x 32 of 10 classes" in out
    assert path.stat().st_size < 57e6
    direct = load_data(f"cifar10:{data_dir}", "train", 50)
    assert load_packed(path, "train", 50).fingerprint == direct.fingerprint
