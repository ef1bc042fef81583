"""The files that the package ships."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from safetensors.torch import load_file

from .images import ImageData

__all__ = ["load_digits", "shipped_file"]


def shipped_file(name: str) -> Path:
    """Path of a file in `soae_ext/assets`."""
    with as_file(files("soae_ext") / "assets" / name) as path:
        return path


def load_digits() -> ImageData:
    """The 1,000 MNIST test images that the package ships (see `assets/README.md`), `(1000, 1, 28, 28)`."""
    tensors = load_file(shipped_file("digits.safetensors"))
    names = tuple(str(digit) for digit in range(10))
    return ImageData(tensors["images"].float() / 255, tensors["labels"].long(), "the shipped digits", names)
