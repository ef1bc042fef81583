"""Images packed into one safetensors file: 8-bit pixels, labels and the names of the classes, split by split.

The tensors of a split are `SPLIT.images` `(n, C, H, W)` uint8 and `SPLIT.labels` `(n,)`; the metadata hold `classes`, a
JSON list. A file with just `images` and `labels` has no splits: it is read whole, whichever split is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from .._files import replacing
from .images import ImageData

__all__ = ["load_packed", "save_packed", "to_bytes"]

_PARTS = ("images", "labels")
_WHOLE_NUMBERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def save_packed(splits: Mapping[str, ImageData], path: Path, *, rounding: bool = False) -> None:
    """Write labelled images to `path`; the file appears whole or not at all.

    Args:
        splits: the data by the name of their split, all of one shape.
        path: the file to write or replace.
        rounding: take the nearest of the 256 levels where a pixel is none of them, instead of refusing it.

    Raises:
        ValueError: no split, a name that is not a word, data that differ in shape or classes, labels or pixels out of
            range, or pixels that do not come from 8 bits.
        OSError: `path` cannot be written.
    """
    if not splits:
        raise ValueError("there is no split to write")
    tensors: dict[str, Tensor] = {}
    for split, data in splits.items():
        if not re.fullmatch(r"[\w-]+", split):
            raise ValueError(f"the name of a split must be a word, got '{split}'")
        data.check(classes=None if data.classes is None else len(data.classes))
        tensors |= {f"{split}.images": to_bytes(data.images, rounding=rounding), f"{split}.labels": data.labels.clone()}
    for what, found in (
        ("shape", {str(tuple(data.images.shape[1:])) for data in splits.values()}),
        ("classes", {str(data.classes) for data in splits.values()}),
    ):
        if len(found) > 1:
            raise ValueError(f"the splits differ in {what}: {' and '.join(sorted(found))}; pack them into two files")
    classes = next(iter(splits.values())).classes
    metadata = {} if classes is None else {"classes": json.dumps(classes)}
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(serialize(content, metadata))


def load_packed(path: Path, split: str, n: int | None = None) -> ImageData:
    """The first `n` images of a split (`None`: all), each pixel exactly its 8-bit level divided by 255.

    Floating-point pixels, which a file from elsewhere may hold, are taken as they are. Only what is asked for is read.

    Raises:
        FileNotFoundError: there is no such file, or it has no such split.
        ValueError: it is damaged or holds no images with labels, fewer than `n` of them, or some out of range.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            images, labels = _names(path, set(file.keys()), split)
            shape, count = file.get_slice(images).get_shape(), file.get_slice(labels).get_shape()
            if len(shape) != 4 or 0 in shape[1:] or count != shape[:1]:
                raise ValueError(
                    f"{path}: expected {images} (n, C, H, W) and {labels} (n,), got {tuple(shape)} and {tuple(count)}"
                )
            if n is not None and not 1 <= n <= shape[0]:
                raise ValueError(f"n must be between 1 and {shape[0]}, the number of images in {path}; got {n}")
            pixels, numbers = file.get_slice(images)[:n], file.get_slice(labels)[:n]
            classes = _classes(path, (file.metadata() or {}).get("classes"))
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or is not a safetensors file ({error})") from error
    name = str(path) if images == "images" else f"{path} ({split})"
    return _checked(path, ImageData(_scaled(path, pixels), _integers(path, numbers), name, classes))


def to_bytes(images: Tensor, *, rounding: bool = False) -> Tensor:
    """`images`, float in [0, 1], as the uint8 tensor that they are exactly 1/255 of.

    Args:
        images: any shape.
        rounding: take the nearest level where a pixel is not a whole multiple of 1/255.

    Raises:
        ValueError: some pixel is not, and `rounding` is off.
    """
    levels = (images * 255).round().clamp(0, 255).to(torch.uint8)
    if not rounding and not torch.equal(levels.to(images.dtype) / 255, images):
        raise ValueError("the pixels do not come from 8 bits (they are finer, or were resized): round them")
    return levels


def _names(path: Path, names: set[str], split: str) -> tuple[str, str]:
    """The tensors that hold the images and the labels of `split`."""
    for images, labels in ((f"{split}.images", f"{split}.labels"), _PARTS):
        if {images, labels} <= names:
            return images, labels
    splits = sorted(name.rpartition(".")[0] for name in names if name.endswith(".images"))
    if splits:
        raise FileNotFoundError(f"{path} has no split {split}, only {', '.join(splits)}")
    raise ValueError(f"{path} holds no images: expected the tensors SPLIT.images and SPLIT.labels of `soae data pack`")


def _classes(path: Path, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        names: Any = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: the metadata `classes` must be a JSON list of names, got {text:.60}")
    return tuple(names)


def _scaled(path: Path, pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if pixels.is_floating_point():
        return pixels.float()
    raise ValueError(f"{path}: the images must be uint8, or floating point in [0, 1]; these are {pixels.dtype}")


def _integers(path: Path, labels: Tensor) -> Tensor:
    if labels.dtype not in _WHOLE_NUMBERS:
        raise ValueError(f"{path}: the labels must be whole numbers, these are {labels.dtype}")
    return labels.long()


def _checked(path: Path, data: ImageData) -> ImageData:
    try:
        data.check(classes=None if data.classes is None else len(data.classes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return data
