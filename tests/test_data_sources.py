"""Data by name: parquet layouts, picture folders, saved datasets, the hub; and what `load_data` refuses."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from soae_ext.data import load_data, load_digits
from soae_ext.data.decode import resize

datasets = pytest.importorskip("datasets", reason="needs the datasets library")

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 8, 9), dtype=np.uint8)


def tensors(arrays: np.ndarray) -> torch.Tensor:
    """What images `(n, H, W[, 3])` of 8 bits must come out as."""
    channels_last = arrays[..., None] if arrays.ndim == 3 else arrays
    return torch.from_numpy(channels_last.transpose(0, 3, 1, 2) / np.float32(255)).float()


def dataset(arrays=COLOUR, labels=(0, 1, 2, 0, 1, 2), image="image", label="label", names=("ant", "bee", "cat")):
    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    features = datasets.Features({image: datasets.Image(), label: kind})
    pictures = [Image.fromarray(array) for array in arrays]
    return datasets.Dataset.from_dict({image: pictures, label: list(labels)}, features=features)


def pictures(root: Path, files: dict[str, np.ndarray]) -> Path:
    for name, array in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / name)
    return root


# Names


def test_the_shipped_digits() -> None:
    digits = load_data("digits", n=7)
    assert torch.equal(digits.images, load_digits().images[:7])
    assert digits.classes == tuple("0123456789")
    assert load_data("digits", n=2, size=14).images.shape == (2, 1, 14, 14)
    with pytest.raises(ValueError, match="there is no split train"):
        load_data("digits", "train")


def test_named_data_in_the_folder_of_the_environment_variable(tmp_path: Path, monkeypatch) -> None:
    for name in ("mnist", "cifar10"):
        (tmp_path / name).mkdir()
        dataset(names=(name, "bee", "cat")).to_parquet(tmp_path / name / "test-00000-of-00001.parquet")
    monkeypatch.setenv("SOAE_DATA_DIR", str(tmp_path))
    for spec in ("mnist", f"mnist:{tmp_path}", f"mnist:{tmp_path / 'mnist'}"):
        data = load_data(spec)
        assert data.classes == ("mnist", "bee", "cat")
        assert data.name == "mnist (test)"
        assert torch.equal(data.images, tensors(COLOUR))
    with pytest.raises(FileNotFoundError, match=r"SOAE_DATA_DIR=.* holds no folder imagenet-sample"):
        load_data("imagenet-sample")
    monkeypatch.delenv("SOAE_DATA_DIR")
    with pytest.raises(FileNotFoundError, match="give imagenet-sample:DIR"):
        load_data("imagenet-sample")


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (1, 28, 28), 10), ("cifar10", (3, 32, 32), 10), ("imagenet-sample", (3, 224, 224), 1000)],
)
def test_the_first_thousand_images_of_real_data(data_dir: Path, name: str, shape: tuple, classes: int) -> None:
    if not (data_dir / name).is_dir():
        pytest.skip(f"SOAE_DATA_DIR holds no folder {name}")
    data = load_data(f"{name}:{data_dir}", n=1000)
    data.check(shape, classes)
    assert len(data) == 1000
    assert len(data.classes) == classes
    assert len(data.labels.unique()) == classes
    if name == "imagenet-sample":
        assert torch.equal(data.labels, torch.arange(1000))
    if name == "mnist":
        assert data.fingerprint == load_digits().fingerprint


# Parquet


@pytest.mark.parametrize(
    "name", ["test.parquet", "test-0.parquet", "test/0000.parquet", "plain/test/x.parquet", "part-0.parquet"]
)
def test_layouts_of_parquet_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    dataset().to_parquet(tmp_path / name)
    if name != "part-0.parquet":  # whose name says nothing about splits, so that the directory is read whole
        other = tmp_path / name.replace("test", "train")
        other.parent.mkdir(parents=True, exist_ok=True)
        dataset(labels=[0] * 6).to_parquet(other)
        assert load_data(str(tmp_path), "train").labels.tolist() == [0] * 6
        with pytest.raises(FileNotFoundError, match=r"no file validation-\*\.parquet"):
            load_data(str(tmp_path), "validation")
    assert load_data(str(tmp_path)).labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(load_data(str(tmp_path / name)).images, tensors(COLOUR))


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("img", "fine_label")])
def test_names_of_the_columns(tmp_path: Path, image: str, label: str) -> None:
    dataset(image=image, label=label).to_parquet(tmp_path / "test.parquet")
    data = load_data(str(tmp_path))
    assert torch.equal(data.images, tensors(COLOUR))
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == ("ant", "bee", "cat")


def test_only_the_images_that_are_asked_for_are_decoded(tmp_path: Path, monkeypatch) -> None:
    dataset().to_parquet(tmp_path / "test.parquet")
    dataset().save_to_disk(tmp_path / "saved")
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *given: decoded.append(1) or decode(*given))
    for source in (tmp_path / "test.parquet", tmp_path / "saved"):
        decoded.clear()
        assert len(load_data(str(source), n=2)) == 2
        assert len(decoded) == 2


# Pictures


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    """Labels by the sorted names of the class folders; the classes take turns."""
    names = ["bee/1.png", "ant/b.png", "cat/deep/er/x.PNG", "ant/a.png", "bee/0.png", "ant/c.png"]
    root = pictures(tmp_path, dict(zip(names, COLOUR, strict=True)))
    (root / "ant" / "notes.txt").write_text("no picture")
    (root / ".hidden").mkdir()
    data = load_data(str(root))
    assert data.classes == ("ant", "bee", "cat")
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 0]
    assert torch.equal(data.images, tensors(COLOUR[[3, 4, 2, 1, 0, 5]]))
    assert torch.equal(load_data(str(root), n=2).images, data.images[:2])


def test_class_folders_with_numbers_for_names(tmp_path: Path) -> None:
    root = pictures(tmp_path, {"10/x.png": GREY[0], "9/x.png": GREY[1], "011/x.png": GREY[2]})
    data = load_data(str(root))
    assert data.labels.tolist() == [9, 10, 11]
    assert data.classes is None
    assert torch.equal(data.images, tensors(GREY[[1, 0, 2]]))


def test_one_folder_per_split(tmp_path: Path) -> None:
    root = pictures(tmp_path, {"train/a/x.png": GREY[0], "val/a/x.png": GREY[1], "val/b/x.png": GREY[2]})
    assert load_data(str(root), "train").labels.tolist() == [0]
    assert load_data(str(root), "val").labels.tolist() == [0, 1]
    with pytest.raises(FileNotFoundError, match="no folder test, only train, val"):
        load_data(str(root))


def test_pictures_of_many_kinds(tmp_path: Path) -> None:
    """JPEG, grey among coloured, palettes, transparency and CMYK come out as three channels."""
    picture = Image.fromarray(COLOUR[0])
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "0.png")
    picture.convert("L").save(tmp_path / "a" / "1.png")
    picture.convert("RGBA").save(tmp_path / "a" / "2.png")
    picture.convert("P").save(tmp_path / "a" / "3.png")
    picture.convert("CMYK").save(tmp_path / "a" / "4.jpg", quality=100)
    data = load_data(str(tmp_path))
    data.check((3, 8, 9), 1)
    assert torch.equal(data.images[0], tensors(COLOUR)[0])
    grey = torch.from_numpy(np.asarray(picture.convert("L")) / np.float32(255))
    assert torch.equal(data.images[1], grey.expand(3, 8, 9))
    assert torch.equal(data.images[2], data.images[0])


def test_pictures_of_many_sizes(tmp_path: Path) -> None:
    root = pictures(tmp_path, {"a/0.png": COLOUR[0], "a/1.png": COLOUR[1][:5]})
    with pytest.raises(ValueError, match=r"differ in shape: \[\(3, 5, 9\), \(3, 8, 9\)\]; .*@224 after"):
        load_data(str(root))
    data = load_data(str(root), size=4)
    assert data.images.shape == (2, 3, 4, 4)
    assert torch.equal(load_data(f"{root}@4").images, data.images)
    assert load_data(f"{root}@4").name == f"{root} (test) at 4 x 4"
    for spec, size in ((f"{root}@4", 4), (f"{root}@0", None)):
        with pytest.raises(ValueError, match="give one size"):
            load_data(spec, size=size)
    pictures(tmp_path / "other@4", {"a/0.png": COLOUR[0]})
    assert load_data(str(tmp_path / "other@4")).images.shape == (1, 3, 8, 9)
    with pytest.raises(ValueError, match="size must be at least 1"):
        load_data(str(root), size=0)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 61, 16), (61, 40, 16), (10, 12, 24), (33, 33, 20)])
def test_resizing_agrees_with_pillow(height: int, width: int, size: int) -> None:
    """Up to the rounding to 8 bits, which Pillow does after each of the two passes."""
    ramp = np.add.outer(np.sin(np.arange(height) / 5), np.cos(np.arange(width) / 7))
    array = np.uint8(255 * (ramp - ramp.min()) / np.ptp(ramp))
    scale = size / min(height, width)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    scaled = np.asarray(Image.fromarray(array).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (high - size) // 2, (wide - size) // 2
    expected = scaled[top : top + size, left : left + size] / np.float32(255)
    ours = resize(tensors(array[None]), size)[0, 0]
    assert np.abs(ours.numpy() - expected).max() <= 2 / 255


def test_pictures_that_cannot_be_used(tmp_path: Path, capfd) -> None:
    with pytest.raises(FileNotFoundError, match="neither parquet files nor class folders"):
        load_data(str(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match="no images"):
        load_data(str(tmp_path))
    root = pictures(tmp_path, {"a/0.png": COLOUR[0], "b/1.png": COLOUR[1]})
    whole = (root / "b" / "1.png").read_bytes()
    for content in (b"junk", whole[: len(whole) // 2], b""):
        (root / "b" / "1.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"/b/1\.png: the image cannot be decoded") as told:
            load_data(str(root))
        assert "\n" not in str(told.value)
    assert len(load_data(str(root), n=1)) == 1
    assert capfd.readouterr().err == ""


# Saved datasets and the hub


def test_datasets_saved_to_disk(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "one")
    data = load_data(str(tmp_path / "one"), n=4)
    assert torch.equal(data.images, tensors(COLOUR[:4]))
    assert data.classes == ("ant", "bee", "cat")
    datasets.DatasetDict({"train": dataset(labels=[0] * 6), "test": dataset()}).save_to_disk(tmp_path / "two")
    assert load_data(str(tmp_path / "two"), "train").labels.tolist() == [0] * 6
    with pytest.raises(FileNotFoundError, match="no split validation, only train, test"):
        load_data(str(tmp_path / "two"), "validation")


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_of_the_hub(monkeypatch, streaming: bool) -> None:
    asked = []

    def load_dataset(*names: str, **options: object):
        asked.append((names, options))
        rows = dataset(image="img")
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("SOAE_DATA_DIR", raising=False)
    data = load_data("hub:someone/insects:small", "validation", n=5)
    assert asked.pop() == (("someone/insects", "small"), {"split": "validation", "streaming": True})
    assert torch.equal(data.images, tensors(COLOUR[:5]))
    assert data.classes == ("ant", "bee", "cat")
    assert data.name == "hub:someone/insects:small (validation)"
    load_data("cifar10")
    assert asked.pop()[0] == ("uoft-cs/cifar10",)


@pytest.mark.parametrize(
    ("error", "kind", "complaint"),
    [
        (ConnectionError("no\nroute"), ConnectionError, "cannot read hub:a/b .*no route; download its parquet files"),
        (datasets.exceptions.DatasetNotFoundError("none"), FileNotFoundError, "cannot read hub:a/b .*none"),
        (datasets.exceptions.DatasetGenerationError("odd"), ValueError, "cannot read hub:a/b .*odd"),
        (ValueError('Bad split: test. Available splits: ["train"]'), ValueError, "cannot read hub:a/b .*Bad split"),
    ],
)
def test_a_hub_that_cannot_be_read_is_one_line(monkeypatch, capfd, error, kind, complaint) -> None:
    def load_dataset(*names: str, **options: object):
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1 s")
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(kind, match=complaint) as told:
        load_data("hub:a/b")
    assert "\n" not in str(told.value)
    assert capfd.readouterr().err == ""


def test_without_a_network_the_hub_is_one_line(monkeypatch, capfd) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"cannot read hub:soae/no-such-data \(test\)"):
        load_data("hub:soae/no-such-data")
    with pytest.raises(ValueError, match="needs the name of a dataset"):
        load_data("hub:")
    assert capfd.readouterr().err == ""


# What is refused, whatever the source


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [([0, 1, -1, 0, 0, 0], "row 2: the label -1 is outside 0 to 2"), ([0, None, 0, 0, 0, 0], "row 1: the label None")],
)
def test_labels_that_name_no_class(tmp_path: Path, labels: list, complaint: str) -> None:
    dataset(labels=labels).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=complaint):
        load_data(str(tmp_path))


def test_negative_labels_without_class_names(tmp_path: Path) -> None:
    dataset(labels=[0, 99, 0, -3, 0, 0], names=None).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="row 3: the label -3 is outside 0 upwards"):
        load_data(str(tmp_path))
    data = load_data(str(tmp_path), n=3)
    with pytest.raises(ValueError, match=r"must lie in 0 to 9, these span 0 to 99 \(image 1 is the first outside\)"):
        data.check((3, 8, 9), 10)


def test_pixels_that_are_not_numbers(tmp_path: Path) -> None:
    floats = RNG.random((3, 8, 9)).astype(np.float32)
    floats[1, 2, 3] = np.nan
    datasets.Dataset.from_dict({"image": floats.tolist(), "label": [0, 1, 2]}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="row 1: the image has pixels that are NaN"):
        load_data(str(tmp_path))


def test_too_few_images_none_and_bad_numbers(tmp_path: Path) -> None:
    dataset().to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="n must be between 1 and 6, the number of images in it; got 7"):
        load_data(str(tmp_path), n=7)
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
            load_data(str(tmp_path), n=n)
    dataset(arrays=[], labels=[]).to_parquet(tmp_path / "test.parquet")
    for n in (None, 1):
        with pytest.raises(ValueError, match="there are no images in it"):
            load_data(str(tmp_path), n=n)


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or directory: nmist .*digits, mnist, cifar10"):
        load_data("nmist")
    (tmp_path / "list.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"list\.csv is not a \.parquet or \.safetensors file"):
        load_data(str(tmp_path / "list.csv"))


def test_a_missing_library_is_named_with_its_remedy(tmp_path: Path, monkeypatch) -> None:
    dataset().to_parquet(tmp_path / "test.parquet")
    for name in ("datasets", "PIL.Image"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=r"pip install 'soae-ext\[full\]'"):
                load_data(str(tmp_path))
            assert len(load_data("digits")) == 1000
