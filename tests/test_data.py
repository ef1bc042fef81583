"""Loading images: the shipped digits and directories of parquet files."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from soae_ext.data import load_digits, load_directory

datasets = pytest.importorskip("datasets", reason="needs the datasets library")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
import pyarrow  # noqa: E402


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder, images, labels, name="test-00000-of-00001.parquet"):
    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"image": images, "label": labels}), folder / name)
    return folder


RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 6, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def test_grey_and_colour_images(tmp_path):
    grey = load_directory(write(tmp_path / "grey", [encoded(image) for image in GREY], [0, 1, 2, 3, 4]))
    assert grey.images.dtype == torch.float32
    np.testing.assert_array_equal(grey.images[:, 0].numpy(), GREY.astype(np.float32) / np.float32(255))
    assert grey.labels.tolist() == [0, 1, 2, 3, 4]
    colour = load_directory(write(tmp_path / "colour", [encoded(image) for image in COLOUR], [0] * 5))
    np.testing.assert_array_equal(colour.images.numpy(), COLOUR.transpose(0, 3, 1, 2) / np.float32(255))


def test_sixteen_bit_and_floating_point_images(tmp_path):
    deep = RNG.integers(0, 65536, (2, 6, 7), dtype=np.uint16)
    data = load_directory(write(tmp_path / "deep", [encoded(image) for image in deep], [0, 1]))
    np.testing.assert_allclose(data.images[:, 0].numpy(), deep / 65535, atol=1e-7)
    floats = RNG.random((2, 6, 7)).astype(np.float32) * 2
    data = load_directory(write(tmp_path / "floats", [encoded(image, "TIFF") for image in floats], [0, 1]))
    np.testing.assert_array_equal(data.images[:, 0].numpy(), floats)
    data = load_directory(write(tmp_path / "lists", floats.tolist(), [0, 1]))
    np.testing.assert_array_equal(data.images[:, 0].numpy(), floats)


def test_files_below_the_directory_in_order_and_only_of_the_split(tmp_path):
    below = tmp_path / "data"
    write(below, [encoded(image) for image in GREY[2:]], [2, 3, 4], "test-00001-of-00002.parquet")
    write(below, [encoded(image) for image in GREY[:2]], [0, 1], "test-00000-of-00002.parquet")
    write(below, [encoded(GREY[0])], [9], "train-00000-of-00001.parquet")
    assert load_directory(tmp_path).labels.tolist() == [0, 1, 2, 3, 4]
    assert load_directory(tmp_path, "train").labels.tolist() == [9]
    assert load_directory(tmp_path, n=3).labels.tolist() == [0, 1, 2]


def test_bad_directories_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load_directory(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file test-\*\.parquet"):
        load_directory(tmp_path)
    images = [encoded(image) for image in GREY]
    folder = write(tmp_path / "few", images, [0] * 5)
    with pytest.raises(ValueError, match="between 1 and 5"):
        load_directory(folder, n=6)
    mixed = write(tmp_path / "mixed", [encoded(GREY[0]), encoded(GREY[1][:4])], [0, 1])
    with pytest.raises(ValueError, match="differ in shape"):
        load_directory(mixed)
    (tmp_path / "columns").mkdir()
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "columns" / "test-0.parquet")
    with pytest.raises(ValueError, match="no column label"):
        load_directory(tmp_path / "columns")
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = (folder / "test-00000-of-00001.parquet").read_bytes()
    (broken / "test-0.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot read"):
        load_directory(broken)
    not_images = write(tmp_path / "junk", [{"bytes": b"junk", "path": None}], [0])
    with pytest.raises(ValueError, match="cannot read"):
        load_directory(not_images)


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        ([encoded(GREY[0])] * 2, [0.0, 0.5], "row 0: the label 0.0 is not an integer"),
        ([encoded(GREY[0])] * 2, [0, None], "row 1: the label None is not an integer"),
        ([encoded(GREY[0])] * 2, ["a", "b"], "row 0: the label 'a' is not an integer"),
        (["x.png", "y.png"], [0, 1], "row 0: expected an encoded image or an array"),
        ([{"bytes": b"no image", "path": None}], [0], "row 0: the image cannot be decoded$"),
    ],
)
def test_bad_rows_are_named_and_nothing_else_is_printed(tmp_path, capfd, images, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_directory(write(tmp_path / "rows", images, labels))
    assert capfd.readouterr().err == ""


def test_a_file_that_is_not_parquet_is_one_error(tmp_path, capfd):
    (tmp_path / "test-0.parquet").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot read"):
        load_directory(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_missing_datasets_library_is_named_with_its_remedy(tmp_path, monkeypatch):
    folder = write(tmp_path / "grey", [encoded(GREY[0])], [0])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'soae-ext\[full\]'"):
        load_directory(folder)


def test_the_shipped_digits_are_the_first_mnist_test_images():
    root = os.environ.get("SOAE_DATA_DIR")
    if not root or not Path(root, "mnist").is_dir():
        pytest.skip("SOAE_DATA_DIR does not name a directory with mnist/test-*.parquet")
    source, shipped = load_directory(Path(root, "mnist"), n=1000), load_digits()
    assert torch.equal(source.images, shipped.images)
    assert torch.equal(source.labels, shipped.labels)


def test_first_images():
    digits = load_digits()
    assert len(digits.first(None)) == len(digits) == 1000
    assert torch.equal(digits.first(7).images, digits.images[:7])
    for n in (0, -1, 1001):
        with pytest.raises(ValueError, match="between 1 and 1000"):
            digits.first(n)
