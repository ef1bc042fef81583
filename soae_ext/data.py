"""Images to attack: the digits that the package ships, or a directory of parquet files.

Every loader gives images as float32 in [0, 1] and labels as int64.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["ImageData", "load_digits", "load_directory", "shipped_file"]


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Labelled images.

    Attributes:
        images: `(n, C, H, W)` float32 in [0, 1].
        labels: `(n,)` int64.
        name: where they come from, for reports.
    """

    images: Tensor
    labels: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageData({self.name!r}, images {tuple(self.images.shape)})"

    def first(self, n: int | None) -> ImageData:
        """The first `n` images (`None`: all).

        Raises:
            ValueError: `n` is less than 1 or larger than the data.
        """
        if n is None:
            return self
        if not 1 <= n <= len(self):
            raise ValueError(f"must be between 1 and {len(self)}, the number of images in {self.name}; got {n}")
        return ImageData(self.images[:n], self.labels[:n], self.name)

    def check(self, shape: tuple[int, ...], classes: int) -> None:
        """Raise `ValueError` unless a network for images of this shape and so many classes can take the data."""
        if self.images.shape[1:] != shape:
            raise ValueError(f"the network takes images {shape}, these are {tuple(self.images.shape[1:])}")
        if not bool(((self.images >= 0) & (self.images <= 1)).all()):
            low, high = self.images.min().item(), self.images.max().item()
            raise ValueError(f"images must lie in [0, 1], these span [{low:.4g}, {high:.4g}]; scale them first")
        low_label, high_label = int(self.labels.min()), int(self.labels.max())
        if low_label < 0 or high_label >= classes:
            raise ValueError(f"labels must lie in 0 to {classes - 1}, these span {low_label} to {high_label}")


def shipped_file(name: str) -> Path:
    """Path of a file in `soae_ext/assets`."""
    with as_file(files("soae_ext") / "assets" / name) as path:
        return path


def load_digits() -> ImageData:
    """The 1,000 MNIST test images that the package ships (see `assets/README.md`), `(1000, 1, 28, 28)`."""
    tensors = load_file(shipped_file("digits.safetensors"))
    return ImageData(tensors["images"].float() / 255, tensors["labels"].long(), "the shipped digits")


def load_directory(path: str | os.PathLike[str], split: str = "test", n: int | None = None) -> ImageData:
    """Images from a directory of parquet files in the layout of the `datasets` library.

    The files of a split are called `{split}-*.parquet` (in the directory or below it) and have a column `image`, of
    encoded images or of arrays, and a column `label` of integers. They are read through `datasets`, an optional
    dependency, without a copy in its cache. 8-bit pixels are divided by 255, 16-bit pixels by 65535; floating-point
    pixels are taken as they are.

    Args:
        path: the directory.
        split: which files to read, e.g. `"test"` or `"train"`.
        n: read only the first `n` images; `None` reads all.

    Raises:
        ImportError: `datasets` is not installed.
        FileNotFoundError: no such directory, or no file of that split in it.
        ValueError: a file cannot be read, a column is missing, the images differ in shape, or there are fewer than `n`.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such directory: {path}")
    parquet = sorted(str(file) for file in path.rglob(f"{split}-*.parquet"))
    if not parquet:
        raise FileNotFoundError(f"no file {split}-*.parquet in {path}")
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise ImportError("reading parquet files needs the datasets library: pip install 'soae-ext[full]'") from error
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are raised again below, in one line
    try:
        rows = datasets.load_dataset("parquet", data_files={"data": parquet}, split="data", streaming=True)
        columns = rows.features or {}
        kind = columns.get("image")
        if isinstance(kind, dict) and "bytes" in kind:
            rows = rows.cast_column("image", datasets.Image())
        images, labels = _stack(rows if n is None else rows.take(n), set(columns))
    except (ArithmeticError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = "an image cannot be decoded" if "cannot identify image file" in str(error) else error
        raise ValueError(f"cannot read {path}: {reason}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
    return ImageData(images, labels, f"{path} ({split})").first(n)


def _stack(rows: Iterable[Any], columns: set[str]) -> tuple[Tensor, Tensor]:
    missing = {"image", "label"} - columns
    if missing:
        raise ValueError(f"there is no column {' and no column '.join(sorted(missing))}, only {sorted(columns)}")
    images, labels = [], []
    for number, row in enumerate(rows):
        label = row["label"]
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
            raise ValueError(f"row {number}: the label {label!r} is not an integer: number the classes from 0")
        try:
            images.append(_pixels(row["image"]))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        labels.append(int(label))
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        what = f"the images differ in shape: {sorted(shapes)[:3]}; resize them to one shape" if shapes else "no images"
        raise ValueError(what)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64)


def _pixels(image: Any) -> npt.NDArray[np.float32]:
    """`(C, H, W)` float32 of an image of the Pillow library, or of nested lists."""
    if getattr(image, "mode", None) in ("P", "RGBA", "LA", "CMYK"):
        image = image.convert("RGB")
    array = np.asarray(image)
    largest = {"b": 1, "u": 65535 if array.dtype == np.uint16 else 255, "i": 255, "f": 1}.get(array.dtype.kind)
    if largest is None or array.ndim not in (2, 3):
        raise ValueError(f"expected an encoded image or an array (H, W), (H, W, C) or (C, H, W), got {image!r:.40}")
    pixels: npt.NDArray[np.float32] = array.astype(np.float32) / np.float32(largest)
    if pixels.ndim == 2:
        return pixels[None]
    return pixels if len(pixels) in (1, 3) else np.ascontiguousarray(pixels.transpose(2, 0, 1))
