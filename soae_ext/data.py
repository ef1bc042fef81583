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

    The files of a split are called `{split}-*.parquet` (in the directory or below it) and have a column `image` of
    encoded images and a column `label` of integers. They are read through `datasets`, an optional dependency, without
    a copy in its cache.

    Args:
        path: the directory.
        split: which files to read, e.g. `"test"` or `"train"`.
        n: read only the first `n` images; `None` reads all.

    Raises:
        ImportError: `datasets` is not installed.
        FileNotFoundError: no such directory, or no file of that split in it.
        ValueError: a column is missing, the images differ in shape, or there are fewer than `n`.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such directory: {path}")
    parquet = sorted(str(file) for file in path.rglob(f"{split}-*.parquet"))
    if not parquet:
        raise FileNotFoundError(f"no file {split}-*.parquet in {path}")
    images, labels = _read(parquet, n)
    data = ImageData(images, labels, f"{path} ({split})")
    return data.first(n)


def _read(parquet: list[str], n: int | None) -> tuple[Tensor, Tensor]:
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise ImportError("reading parquet files needs the datasets library: pip install 'soae-ext[full]'") from error
    rows = datasets.load_dataset("parquet", data_files={"data": parquet}, split="data", streaming=True)
    missing = {"image", "label"} - set(rows.features)
    if missing:
        raise ValueError(f"{parquet[0]} has no column {' and '.join(sorted(missing))}; it has {sorted(rows.features)}")
    rows = rows.cast_column("image", datasets.Image())
    return _stack(rows if n is None else rows.take(n))


def _stack(rows: Iterable[Any]) -> tuple[Tensor, Tensor]:
    pixels, labels = [], []
    for row in rows:
        pixels.append(np.asarray(row["image"], dtype=np.uint8))
        labels.append(int(row["label"]))
    shapes = {array.shape for array in pixels}
    if len(shapes) > 1:
        raise ValueError(f"the images differ in shape: {sorted(shapes)[:3]}; resize them to one shape first")
    images = torch.from_numpy(np.stack(pixels)).float() / 255
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(labels, dtype=torch.int64)
