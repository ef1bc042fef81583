"""A set of labelled images in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["ImageData"]


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Labelled images.

    Attributes:
        images: `(n, C, H, W)` float32 in [0, 1].
        labels: `(n,)` int64.
        name: where they come from, for reports.
        classes: the names of the classes in label order, if known.
    """

    images: Tensor
    labels: Tensor
    name: str
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageData({self.name!r}, images {tuple(self.images.shape)})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels in hexadecimal: equal data have equal ones, whatever they are called."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.images.dtype}".encode())
        digest.update(self.images.detach().cpu().contiguous().numpy().data)
        digest.update(self.labels.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def first(self, n: int | None) -> ImageData:
        """The first `n` images (`None`: all).

        Raises:
            ValueError: `n` is less than 1 or larger than the data.
        """
        if n is None:
            return self
        if not 1 <= n <= len(self):
            raise ValueError(f"must be between 1 and {len(self)}, the number of images in {self.name}; got {n}")
        return replace(self, images=self.images[:n], labels=self.labels[:n])

    def hold_out(self, count: int) -> tuple[ImageData, ImageData]:
        """All images but `count`, and these: of every class its share, evenly spaced, in whatever order they come.

        Raises:
            ValueError: `count` is less than 1, or leaves nothing.
        """
        if not 1 <= count < len(self):
            raise ValueError(f"count: must be between 1 and {len(self) - 1} of {len(self)} images; got {count}")
        held = torch.zeros(len(self), dtype=torch.bool)
        held[self.labels.cpu().argsort(stable=True)[torch.arange(count) * len(self) // count]] = True
        rest, chosen = (replace(self, images=self.images[part], labels=self.labels[part]) for part in (~held, held))
        return rest, chosen

    def check(self, shape: Sequence[int | None] | None = None, classes: int | None = None) -> None:
        """Raise unless a network can take the data.

        Args:
            shape: `(C, H, W)` of the images that the network takes; `None` instead of a number, or of all, stands for
                any.
            classes: the number of classes that the network knows; `None`: not known.

        Raises:
            TypeError: images that are not floating point, or labels that are not int64.
            ValueError: another shape, pixels outside [0, 1], or labels out of range; names the first such image.
        """
        images, labels = self.images, self.labels
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point in [0, 1], these are {images.dtype}; use x.float() / 255")
        if labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64, these are {labels.dtype}; use labels.long()")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"there must be one label per image: {len(images)} images, {tuple(labels.shape)} labels")
        if not len(images):
            raise ValueError(f"there are no images in {self.name}")
        given = tuple(images.shape[1:])
        if shape is not None and (
            len(shape) != len(given) or any(want not in (None, got) for want, got in zip(shape, given, strict=True))
        ):
            wanted = ", ".join("any" if side is None else str(side) for side in shape)
            raise ValueError(f"the network takes images ({wanted}), these are {given}")
        inside = ((images >= 0) & (images <= 1)).flatten(1).all(1)
        if not bool(inside.all()):
            low, high, row = images.min().item(), images.max().item(), int(inside.int().argmin())
            raise ValueError(
                f"images must lie in [0, 1], these span [{low:.4g}, {high:.4g}] (image {row} is the first outside); "
                "scale them first"
            )
        known = (labels >= 0) & (labels < (2**63 - 1 if classes is None else classes))
        if not bool(known.all()):
            low_label, high_label, row = int(labels.min()), int(labels.max()), int(known.int().argmin())
            upper = "upwards" if classes is None else f"to {classes - 1}"
            raise ValueError(
                f"labels must lie in 0 {upper}, these span {low_label} to {high_label} "
                f"(image {row} is the first outside)"
            )
