"""From the rows of a dataset to tensors: decoding, scaling to [0, 1], cropping, and refusing what is not an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["collect", "resize"]

_Raw = npt.NDArray[Any]  # as stored, mostly of 8 bits: float32 would need four times the memory until all are read
_Pixels = npt.NDArray[np.float32]

# How datasets of the hub call the two columns; the first one that exists is taken.
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


def collect(
    library: Any, rows: Any, *, n: int | None, size: int | None
) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Read a dataset, one row after the other and no more than asked for.

    Args:
        library: the module `datasets`.
        rows: one of its datasets, in memory or streaming.
        n: rows to read; `None`: all.
        size: make every image `size` x `size` (see :func:`resize`); `None`: leave them.

    Returns:
        images `(n, C, H, W)` float32, labels `(n,)` int64, and the names of the classes if the dataset has them.

    Raises:
        ValueError: a missing column, fewer than `n` rows or none at all, images that differ in shape, or a row that
            cannot be used, by its number (from 0) or file.
    """
    features = dict(rows.features or {})
    columns = set(features) or set(next(iter(rows), {}))
    image, label = _column("image", _IMAGE_COLUMNS, columns), _column("label", _LABEL_COLUMNS, columns)
    names: tuple[str, ...] | None = tuple(getattr(features.get(label), "names", None) or ()) or None
    if isinstance(features.get(image), library.Image):
        rows = rows.cast_column(image, library.Image(decode=False))  # so that a bad image can be named by its row
    images: list[_Raw] = []
    labels: list[int] = []
    for number, row in enumerate(rows if n is None else rows.take(n)):
        try:
            labels.append(_label(row[label], names))
            images.append(_sized(_pixels(_decoded(library, row[image])), size))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(f"{_place(number, row[image])}: {error}") from error
    if not images:
        raise ValueError("there are no images in it")
    if n is not None and len(images) < n:
        raise ValueError(f"n must be between 1 and {len(images)}, the number of images in it; got {n}")
    return _stack(images), torch.tensor(labels, dtype=torch.int64), names


def resize(images: Tensor, size: int) -> Tensor:
    """Images `(n, C, H, W)` as `(n, C, size, size)`: the shorter side is scaled to `size`, the centre is kept.

    The interpolation is bicubic with antialiasing, clamped to [0, 1]. Images of that size come back unchanged.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    height, width = images.shape[2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = [max(size, round(height * scale)), max(size, round(width * scale))]
        images = interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def _column(what: str, names: tuple[str, ...], columns: Iterable[str]) -> str:
    for name in names:
        if name in columns:
            return name
    raise ValueError(f"there is no column {what} (or {', '.join(names[1:])}), only {sorted(columns)}")


def _place(number: int, image: Any) -> str:
    """How to find a row: images that lie in files of their own have a path."""
    if isinstance(image, Mapping) and image.get("bytes") is None and image.get("path"):
        return str(image["path"])
    return f"row {number}"


def _label(label: Any, names: tuple[str, ...] | None) -> int:
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
        raise ValueError(f"the label {label!r} is not an integer: number the classes from 0")
    if label < 0 or (names is not None and label >= len(names)):
        upper = "upwards" if names is None else f"to {len(names) - 1}"
        raise ValueError(f"the label {label} is outside 0 {upper}; is this split labelled?")
    return int(label)


def _decoded(library: Any, image: Any) -> Any:
    """An image of the Pillow library, if `image` is an encoded one (`bytes`, or the `path` of a file)."""
    if not isinstance(image, Mapping) or not {"bytes", "path"} & set(image):
        return image
    try:
        return library.Image().decode_example({"bytes": image.get("bytes"), "path": image.get("path")})
    except ImportError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = "" if "cannot identify image file" in str(error) else f" ({error})"
        raise ValueError(f"the image cannot be decoded{reason}") from error


def _pixels(image: Any) -> _Raw:
    """`(C, H, W)` as stored, of an image of the Pillow library or of nested lists."""
    if getattr(image, "mode", None) in ("P", "RGBA", "LA", "CMYK"):
        image = image.convert("RGB")
    array = np.asarray(image)
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3):
        raise ValueError(f"expected an encoded image or an array (H, W), (H, W, C) or (C, H, W), got {image!r:.40}")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError("the image has pixels that are NaN or infinite")
    if array.ndim == 2:
        return array[None]
    return array if len(array) in (1, 3) else array.transpose(2, 0, 1)


def _scaled(raw: _Raw) -> _Pixels:
    """Stored pixels as float32 in [0, 1]."""
    largest = {"b": 1, "u": 65535 if raw.dtype == np.uint16 else 255, "i": 255, "f": 1}[raw.dtype.kind]
    scaled: _Pixels = raw.astype(np.float32) / np.float32(largest)
    return scaled


def _sized(raw: _Raw, size: int | None) -> _Raw:
    if size is None:
        return raw
    resized: _Raw = resize(torch.from_numpy(_scaled(raw))[None], size)[0].numpy()
    return resized


def _stack(images: list[_Raw]) -> Tensor:
    """One tensor of all images; grey ones among coloured ones become coloured."""
    if {len(image) for image in images} == {1, 3}:
        images = [np.repeat(image, 3, axis=0) if len(image) == 1 else image for image in images]
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(
            f"the images differ in shape: {sorted(shapes)[:3]}; resize them to one shape, "
            "for instance by writing @224 after the name of the data"
        )
    stacked = np.empty((len(images), *shapes.pop()), np.float32)
    for number, image in enumerate(images):
        stacked[number] = _scaled(image)
    return torch.from_numpy(stacked)
